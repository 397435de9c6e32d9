"""Where the work of `prepare` runs: Ray tasks, on an existing cluster (an address) or here, or in this process.

Tasks are calls of module functions with small arguments and small results; data goes through files. So nothing but
metadata is in Ray's object store, which is kept at its minimum.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

OBJECT_STORE = 100 << 20  # bytes; Ray's lower limit is 75 MiB
AHEAD = 4  # tasks per core that are handed to Ray at a time
STARTS = 3  # times that Ray is given to start
RETRIES = 10  # times that a task is given to another worker when its own has died

T = TypeVar("T")


class Workers:
    """A context: Ray is started when it opens and shut down when it closes, and only if it was started here.

    count: tasks at a time. Without an address they run on this machine, and 0 does without Ray. An address always means
    the cluster there: then the count limits our share of it, and 0 takes what it has.
    """

    def __init__(self, count: int, address: str | None = None) -> None:
        self.count, self.address = count, address
        self.ray = bool(count or address)
        self.folder: str | None = None

    def __enter__(self) -> "Workers":
        if self.ray:
            import ray

            if ray.is_initialized():
                raise ValueError("Ray is already running in this process; call ray.shutdown() before prepare")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
            if self.address:
                try:
                    _knock(self.address)
                    ray.init(address=self.address, **quiet)
                except OSError as error:
                    raise ValueError(
                        f"no Ray cluster answers at {self.address!r} ({error}); is it running, and if it asks for a "
                        "token (as `ray start` does), are RAY_AUTH_MODE=token and RAY_AUTH_TOKEN set?"
                    ) from None
            else:  # a short folder: the paths of Unix sockets below it may have 107 bytes
                self.folder = tempfile.mkdtemp(prefix="ff", dir="/tmp")
                _start(num_cpus=self.count, object_store_memory=OBJECT_STORE, _temp_dir=self.folder, **quiet)
        return self

    def __exit__(self, *_: object) -> None:
        if self.ray:
            import ray

            ray.shutdown()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, function: Callable[..., T], shared: Sequence[Any], items: Sequence[tuple]) -> Iterator[T]:
        """`function(*shared, *item)` of every item, as they come, in any order. The first error ends the run as itself.

        What is shared goes to the cluster once; of the items a few per core are on their way at a time, or on a cluster
        that others may use too, as many as `count` says.
        """
        if not self.ray:
            yield from (function(*shared, *item) for item in items)
            return
        import ray
        from ray.exceptions import RayError, RayTaskError

        task: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_call).options(name=function.__name__)
        common = ray.put((function, tuple(shared)))
        limit = max(16, AHEAD * int(ray.cluster_resources().get("CPU", 1)))
        if self.address and self.count:
            limit = self.count
        left = iter(items)
        waiting = [task.remote(common, item) for item in islice(left, limit)]
        try:
            while waiting:
                (done, *_), waiting = ray.wait(waiting)
                waiting += [task.remote(common, item) for item in islice(left, 1)]
                yield ray.get(done)
        except RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, ValueError | OSError) else error) from None
        except RayError as error:
            raise OSError(
                f"a worker died {RETRIES + 1} times at one task ({error}); is memory short? What is done stays done: "
                "take fewer workers and give the same command again"
            ) from error
        finally:
            for task in waiting:
                ray.cancel(task, force=False)


def _start(**options: Any) -> None:
    """Ray on this machine. It gives its own processes 30 s to come up, which is short where much else runs."""
    import ray

    for left in range(STARTS - 1, -1, -1):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises no narrower one
            ray.shutdown()
            if "timed out" not in str(error):
                raise
            if not left:
                raise OSError(
                    f"Ray did not start within its 30 s, {STARTS} times ({str(error)[:200]}); what else runs on this "
                    "machine? workers=0 prepares without Ray"
                ) from error


def _knock(address: str) -> None:
    """Raises OSError where nothing listens at `host:port`: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _call(common: tuple[Callable[..., T], tuple], item: tuple) -> T:
    function, shared = common
    return function(*shared, *item)
