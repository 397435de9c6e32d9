"""Where the work of `prepare` runs: Ray tasks, here or on an existing cluster, or (workers = 0) in this process.

Tasks are calls of module functions with small arguments and small results; data goes through files. So nothing but
metadata is in Ray's object store, which is kept at its minimum.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

OBJECT_STORE = 100 << 20  # bytes; Ray's lower limit is 75 MiB

T = TypeVar("T")


class Workers:
    """A context: Ray is started when it opens and shut down when it closes, and only if it was started here."""

    def __init__(self, count: int, address: str | None = None) -> None:
        self.count, self.address = count, address
        self.folder: str | None = None

    def __enter__(self) -> "Workers":
        if self.count:
            import ray

            if ray.is_initialized():
                raise ValueError("Ray is already running in this process; call ray.shutdown() before prepare")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
            if self.address:
                ray.init(address=self.address, **quiet)
            else:  # a short folder: the paths of Unix sockets below it may have 107 bytes
                self.folder = tempfile.mkdtemp(prefix="ff", dir="/tmp")
                ray.init(num_cpus=self.count, object_store_memory=OBJECT_STORE, _temp_dir=self.folder, **quiet)
        return self

    def __exit__(self, *_: object) -> None:
        if self.count:
            import ray

            ray.shutdown()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, calls: Sequence[partial[T]]) -> Iterator[T]:
        """The calls' results as they come, in any order. The first error ends the run, as itself, not as Ray's."""
        if not self.count:
            yield from (call() for call in calls)
            return
        import ray
        from ray.exceptions import RayTaskError

        remote: Any = ray.remote(num_cpus=1, max_retries=2)(_call)
        waiting = [remote.remote(call) for call in calls]
        try:
            while waiting:
                (done, *_), waiting = ray.wait(waiting)
                yield ray.get(done)
        except RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, ValueError | OSError) else error) from None
        finally:
            for task in waiting:
                ray.cancel(task, force=False)


def _call(call: Callable[[], T]) -> T:
    return call()
