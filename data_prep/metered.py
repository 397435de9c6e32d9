"""A place that counts what is read of it, so that a plan knows how far it has come in a file."""

from typing import IO, Any

from pretrain.places import Place


class Metered(Place):
    """A place that counts the bytes that are read of its files."""

    given = 0

    def open(self, name: str) -> IO[bytes]:
        return _Counted(super().open(name), self)  # type: ignore[return-value]

    def read(self, name: str, begin: int = 0, size: int | None = None) -> bytes:
        data = super().read(name, begin, size)
        object.__setattr__(self, "given", self.given + len(data))
        return data


class _Counted:
    def __init__(self, file: IO[bytes], meter: Metered) -> None:
        self._file, self._meter = file, meter

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        object.__setattr__(self._meter, "given", self._meter.given + len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        size = self._file.readinto(buffer)  # type: ignore[attr-defined]  # every binary file has it
        object.__setattr__(self._meter, "given", self._meter.given + size)
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
