"""A member of a shard: a safetensors file with one metadata entry, written always alike and read without trust.

Several metadata entries come out in another order in every process, one does not; so everything that is no array is one
canonical JSON text. Written here, not by the format's library: its reader copies, and takes twice the time.
"""

import json
import struct

import numpy as np
from numpy.typing import NDArray

MAX_HEADER = 16 << 20  # bytes; a longer header is damage, not data


class CorruptSample(ValueError):
    """A member that cannot be a sample: truncated, overlong, or not what its header says."""


_TYPES = {"uint8": "U8", "int16": "I16", "int32": "I32"}
_DTYPES = {"U8": np.dtype("u1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4")}


def serialize(tensors: dict[str, NDArray[np.generic]], about: dict[str, object]) -> bytes:
    """A safetensors file. Widest types first and names sorted, as the format's own writer lays them out."""
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"sample": canonical(about)}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _TYPES[tensors[name].dtype.name],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return (
        struct.pack("<Q", len(text)) + text + b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name in order)
    )


def parse(data: bytes) -> tuple[dict, dict[str, NDArray]]:
    """(the `sample` metadata, tensors as views of `data`). Every length is checked before it is believed."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise CorruptSample(f"header of {length} bytes in a member of {len(data)}")
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header.pop("__metadata__")["sample"])
    body = memoryview(data)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= len(body):
            raise CorruptSample(f"tensor {name} at bytes {start}–{end} of {len(body)}")
        tensors[name] = np.frombuffer(body[start:end], dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return about, tensors


def canonical(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, UTF-8 as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
