"""Predicted aligned errors (PAE) of AlphaFold models: the JSON file that belongs to a model → uint8 [L, L], Å.

AlphaFold DB has written them in two ways. Until version 2: `residue1`, `residue2` and `distance`, three lists of L²
numbers. Since version 3: `predicted_aligned_error`, L rows of L integers. AlphaFold 3 and ColabFold write `pae` in the
second way, with decimals. Row i, column j: the error expected at residue j when the models are aligned on residue i.

The numbers are read by numpy from the text between the brackets: a parser of JSON would make a Python object of each.
"""

import re
import warnings
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.files import SourceError, Stream
from pretrain.places import Place

MODEL = re.compile(r"(?P<model>AF-[A-Z0-9]+(?:-\d+)?-F\d+)(?:-model)?(?:_v(?P<version>\d+))?")
FILE = re.compile(
    r"(?P<model>AF-[A-Z0-9]+(?:-\d+)?-F\d+)-predicted_aligned_error(?:_v(?P<version>\d+))?\.json(?:\.gz)?"
)
FIELD = r'"%s"\s*:\s*(?=\[)'
MATRIX = re.compile((FIELD % "(?:predicted_aligned_error|pae)").encode())
COLUMNS = tuple(re.compile((FIELD % name).encode()) for name in ("residue1", "residue2", "distance"))
SPACE = b" \t\r\n"
BYTES = 24  # of text per pair of residues: two indices of four digits and a distance, each with a comma and a space
SLACK = 1 << 20  # bytes of whatever else a file says
LARGEST = 192 << 20  # bytes of a file; one of 2,700 residues, the longest models, has 130 MB in the old layout
MOST_ROWS = 20_000  # no matrix of so many fits into what is allowed
LARGEST_MATRIX = 96 << 20  # bytes of a matrix, which is counted in six times as many; one of 2,700 residues has 30 MB


def find_pae(place: Place, name: str) -> str | None:
    """The PAE file beside a model's file: of the same version if it is there, else of the newest. None: there is none.

    A folder is listed once per process, so this costs nothing for the second of its 20,000 models.
    """
    match = MODEL.match(PurePosixPath(name).name)
    found = _listed(place, str(PurePosixPath(name).parent)).get(match["model"]) if match else None
    if not found:
        return None
    return found.get(int((match and match["version"]) or -1), found[max(found)])


@lru_cache(maxsize=8)
def _listed(place: Place, folder: str) -> dict[str, dict[int, str]]:
    """The PAE files of a folder, by model and version (-1: none in the name)."""
    folder = "" if folder == "." else folder
    files: dict[str, dict[int, str]] = {}
    for name in place.list(folder):
        if match := FILE.fullmatch(name):
            files.setdefault(match["model"], {})[int(match["version"] or -1)] = f"{folder}/{name}".lstrip("/")
    return files


def read_pae(place: Place, name: str, length: int) -> NDArray[np.uint8]:
    """uint8 [length, length]: rounded to whole Å, 0 to 255. Raises SourceError, as `parse_pae` does."""
    with Stream.open(place, name) as stream:
        return parse_pae(stream.whole(min(BYTES * length**2 + SLACK, LARGEST)), name, length)


def parse_pae(data: bytes, name: str, length: int) -> NDArray[np.uint8]:
    """`read_pae` of a file's decompressed content.

    Raises SourceError (`unparsable_pae`, `pae_shape`, `pae_not_finite`) for what is no such file, ends too early, is of
    another length than the model, or has values that are no numbers.
    """
    if field := MATRIX.search(data):
        text = _list(data, field.end(), name)
        _check_rows(text, name, length)
        return _rounded(_numbers(text, name, length**2), name).reshape(length, length)
    fields = [column.search(data) for column in COLUMNS]
    if not all(fields):
        raise SourceError(
            "unparsable_pae",
            f"{name}: no field predicted_aligned_error, pae, or residue1, residue2 and distance in its"
            f" {len(data)} bytes; fetch the file again, or leave it out",
        )
    row, column, distance = (_numbers(_list(data, each.end(), name), name, length**2) for each in fields if each)
    place = ((row - 1) * length + column - 1).astype(np.intp)
    inside = min(row.min(), column.min()) >= 1 and max(row.max(), column.max()) <= length
    if not inside or (np.bincount(place, minlength=length**2) != 1).any():
        raise SourceError("pae_shape", f"{name}: residue1 and residue2 are not every pair of {length} residues once")
    matrix = np.empty(length**2, dtype=np.uint8)
    matrix[place] = _rounded(distance, name)
    return matrix.reshape(length, length)


def _list(data: bytes, begin: int, name: str) -> bytes:
    """The list that begins there, with its brackets: up to the object's end or its next field."""
    ends = [at for at in (data.find(b"}", begin), data.find(b'"', begin)) if at >= 0]
    text = data[begin : min(ends)].rstrip(SPACE).removesuffix(b",").rstrip(SPACE) if ends else b""
    if not text.endswith(b"]"):
        raise SourceError(
            "unparsable_pae",
            f"{name}: {len(data)} bytes, and a list of numbers that begins at {begin} has no end; fetch the file again",
            f"byte {begin}",
        )
    return text


def _check_rows(text: bytes, name: str, length: int) -> None:
    """Hold a matrix to `length` rows of `length`: each bracket that opens one stands after so many commas."""
    if len(text) > LARGEST_MATRIX:
        raise SourceError("too_large", f"{name}: a matrix of {len(text)} bytes; {LARGEST_MATRIX} are allowed")
    if (brackets := max(text.count(b"["), text.count(b"]"))) > MOST_ROWS:
        raise SourceError("pae_shape", f"{name}: {brackets} lists; the model has {length} residues")
    codes = np.frombuffer(text, dtype=np.uint8)
    opened, closed = np.flatnonzero(codes == ord("[")), np.flatnonzero(codes == ord("]"))
    commas = np.cumsum(codes == ord(","), dtype=np.int32)
    rows = len(opened) - 1
    nested = rows < 1 or len(closed) != rows + 1 or (opened[2:] < closed[: rows - 1]).any() or opened[1] > closed[0]
    wide = 0 if nested else int(commas[closed[0]]) + 1
    first = np.arange(rows) * wide
    if nested or (commas[opened[1:]] != first).any() or (commas[closed[:-1]] != first + wide - 1).any():
        raise SourceError("pae_shape", f"{name}: not rows of one length, {rows} lists; the model has {length} residues")
    if rows != length or wide != length:
        raise SourceError("pae_shape", f"{name}: {rows} rows of {wide}, the model has {length} residues")


def _numbers(text: bytes, name: str, count: int) -> NDArray[Any]:
    """`count` numbers with commas between, in brackets that are passed over."""
    if b"NaN" in text or b"Infinity" in text:
        raise SourceError(
            "pae_not_finite", f"{name}: NaN or Infinity among its numbers; fetch it again, or leave it out"
        )
    flat = text.translate(None, b"[]" + SPACE)
    seen = flat.count(b",") + 1 if flat else 0
    if seen != count:
        raise SourceError("pae_shape", f"{name}: {seen} numbers, the model has {count**0.5:.0f} residues")
    kind = np.float64 if any(mark in flat for mark in (b".", b"e", b"E")) else np.int32
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns where it stops before the end
            values = np.fromstring(flat, dtype=kind, sep=",")
    except (ValueError, DeprecationWarning) as error:
        raise SourceError("unparsable_pae", f"{name}: {error}; fetch the file again, or leave it out") from error
    if len(values) != count:
        raise SourceError("unparsable_pae", f"{name}: {count} numbers expected, {len(values)} could be read")
    return values


def _rounded(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise SourceError("pae_not_finite", f"{name}: numbers beyond all bounds; fetch it again, or leave it out")
    whole = np.rint(values) if values.dtype.kind == "f" else values
    return whole.clip(0, 255).astype(np.uint8)
