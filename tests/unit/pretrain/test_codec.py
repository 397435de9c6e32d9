"""The sample's codec: what comes back, the same bytes in every process, and damage that is named as such."""

import copy
import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from pretrain import codec
from pretrain import sample as contract
from pretrain.codec import decode, encode
from pretrain.sample import (
    CorruptSample,
    Facet,
    Function,
    Image,
    Modality,
    Sample,
    Structure,
    Term,
    Text,
)

ROOT = Path(__file__).resolve().parents[3]
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"


def chain(
    residue: list[int],
    letters: str,
    seed: int = 0,
    scale: float = 20.0,
    missing: float = 0.0,
    atoms: tuple[str, ...] = contract.BACKBONE,
    **facts: object,
) -> Structure:
    """A random chain on the 0.01 Å grid, so that it comes back equal and not only close."""
    draw = np.random.default_rng(seed)
    mask = draw.random((len(letters), len(atoms))) >= missing
    steps = np.rint(draw.normal(scale=scale, size=(len(letters), len(atoms), 3)) / contract.STEP)
    coordinates = np.where(mask[..., None], steps, 0).astype(np.float32) * np.float32(contract.STEP)
    return Structure("x", coordinates, mask, np.array(residue, dtype=np.int32), letters, atoms, **facts)  # type: ignore[arg-type]


def whole() -> Sample:
    """A sample with something in every field, also a text outside ASCII and a chain with gaps, holes and a mutation."""
    first = chain([2, 3, 4, 9, 10, 30], "TAWRQE", missing=0.3, resolution=1.85, identity=0.8333)
    second = chain(list(range(33)), SEQUENCE, seed=1, atoms=("CA",), confidence=np.arange(33, dtype=np.float32))
    return Sample(
        key="P12345-2_x",
        sequence=SEQUENCE,
        structures=(first, second),
        function=Function(
            (Term("GO:0005524", "IDA"), Term("GO:0003677", "IEA")),
            (Text("Binds β-catenin; 5′→3′ exonuclease\n“quoted”.", "uniprot:function"),),
        ),
        images=(Image("i0", b"\x89PNG one"), Image("i1", b"\x89PNG two", ("protein", "nucleus"))),
    )


PART = chain([0, 1, 5], "MKA")
SOME = {
    "all": whole(),
    "sequence": Sample("a", sequence=SEQUENCE),
    "structure": Sample("b", structures=(PART,)),
    "terms": Sample("c", function=Function(terms=(Term("GO:0005524", "IDA"),))),
    "text": Sample("d", function=Function(texts=(Text("Unknown.", "uniprot:function"),))),
    "image": Sample("e", images=(Image("i", b"\x89PNG"),)),
    "unknown letters": Sample("f", sequence="MXUBZ", structures=(chain([1, 3], "XB"),)),
    "nothing resolved": Sample("g", sequence=SEQUENCE, structures=(chain([0, 1], "MK", missing=1.0),)),
}


def assert_equal(one: Sample, other: Sample) -> None:
    assert (one.key, one.sequence, one.function, one.images) == (
        other.key,
        other.sequence,
        other.function,
        other.images,
    )
    assert len(one.structures) == len(other.structures)
    for a, b in zip(one.structures, other.structures, strict=True):
        assert (a.id, a.letters, a.atoms, a.resolution, a.identity) == (
            b.id,
            b.letters,
            b.atoms,
            b.resolution,
            b.identity,
        )
        for x, y in ((a.coordinates, b.coordinates), (a.mask, b.mask), (a.residue, b.residue)):
            assert x.dtype == y.dtype and np.array_equal(x, y)
        assert (a.confidence is None) == (b.confidence is None)
        if a.confidence is not None and b.confidence is not None:
            assert a.confidence.dtype == b.confidence.dtype and np.array_equal(a.confidence, b.confidence)


@pytest.mark.parametrize("name", SOME)
def test_round_trip(name: str) -> None:
    assert_equal(decode(dict(encode(SOME[name]))), SOME[name])


@pytest.mark.parametrize("name", SOME)
def test_encoding_again_gives_the_same_bytes(name: str) -> None:
    assert encode(decode(dict(encode(SOME[name])))) == encode(SOME[name])


def test_members_are_named_for_webdataset_and_images_stay_as_they_are() -> None:
    members = encode(whole())
    assert [name for name, _ in members] == ["P12345-2_x.safetensors", "P12345-2_x.0.png", "P12345-2_x.1.png"]
    assert members[1][1] == b"\x89PNG one"


def test_the_format_is_stock_safetensors_with_one_metadata_key() -> None:
    data = encode(whole())[0][1]
    tensors = safetensors.numpy.load(data)
    assert tensors["sequence"].tobytes().decode() == SEQUENCE
    assert tensors["0.xyz"].dtype == np.int16 and tensors["0.xyz"].shape == (6, 4, 3)
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert list(header["__metadata__"]) == ["sample"]
    assert (8 + struct.unpack("<Q", data[:8])[0]) % 8 == 0  # tensors are aligned, so readers may map them


def test_bytes_do_not_depend_on_the_process() -> None:
    program = """
import hashlib, sys
sys.path[:0] = sys.argv[1:]
from test_codec import SOME
from pretrain.codec import encode
print(hashlib.sha256(repr([encode(sample) for sample in SOME.values()]).encode()).hexdigest())
"""
    expected = hashlib.sha256(repr([encode(sample) for sample in SOME.values()]).encode()).hexdigest()
    for seed in ("0", "1", "4711"):
        command = [sys.executable, "-c", program, str(ROOT), str(Path(__file__).parent)]
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def test_coordinates_are_stored_to_half_a_step() -> None:
    draw = np.random.default_rng(3)
    coordinates = draw.normal(scale=20, size=(3, 3, 3)).astype(np.float32)
    one = Structure("x", coordinates, np.ones((3, 3), bool), np.arange(3, dtype=np.int32), "MKA")
    back = decode(dict(encode(Sample("a", structures=(one,))))).structures[0]
    assert np.abs(back.coordinates - coordinates).max() <= contract.STEP / 2 + 1e-5


def test_missing_atoms_come_back_as_zero_whatever_stood_there() -> None:
    mask = np.array([[True, False, True]])
    one = Structure("x", np.full((1, 3, 3), 7.5, np.float32), mask, np.zeros(1, np.int32), "M")
    back = decode(dict(encode(Sample("a", structures=(one,))))).structures[0]
    assert np.array_equal(back.mask, mask)
    assert (back.coordinates[0, 1] == 0).all() and np.allclose(back.coordinates[0, [0, 2]], 7.5)


@pytest.mark.parametrize(("reach", "kind"), [(327.67, np.int16), (327.68, np.int32), (5000.0, np.int32)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_wider_type_holds_what_16_bits_cannot(reach: float, kind: type, sign: int) -> None:
    coordinates = np.zeros((2, 3, 3), np.float32)
    coordinates[1, 2, 0] = sign * reach
    one = Structure("x", coordinates, np.ones((2, 3), bool), np.arange(2, dtype=np.int32), "MK")
    members = dict(encode(Sample("a", structures=(one,))))
    stored = safetensors.numpy.load(members["a.safetensors"])["0.xyz"]
    assert stored.dtype == kind
    assert decode(members).structures[0].coordinates[1, 2, 0] == pytest.approx(sign * reach, abs=contract.STEP / 2)


def test_an_atom_that_is_absent_does_not_widen_the_type() -> None:
    coordinates = np.full((1, 3, 3), 9999.0, np.float32)
    one = Structure("x", coordinates, np.zeros((1, 3), bool), np.zeros(1, np.int32), "M")
    members = dict(encode(Sample("a", structures=(one,))))
    assert safetensors.numpy.load(members["a.safetensors"])["0.xyz"].dtype == np.int16
    assert not decode(members).structures[0].coordinates.any()


def test_what_follows_from_the_rest_is_not_stored() -> None:
    plain = Sample("a", sequence=SEQUENCE, structures=(chain(list(range(33)), SEQUENCE),))
    stored = set(safetensors.numpy.load(encode(plain)[0][1]))
    assert stored == {"sequence", "0.xyz"}  # no mask (all present), no letters (as the sequence), no residue column


def test_confidence_is_rounded_to_whole_points_within_bounds() -> None:
    one = chain([0, 1, 2], "MKT", confidence=np.array([-3.0, 70.4, 250.0], np.float32))
    back = decode(dict(encode(Sample("a", structures=(one,))))).structures[0]
    assert back.confidence is not None and back.confidence.tolist() == [0.0, 70.0, 100.0]


def test_mismatch_marks_the_mutated_residues() -> None:
    assert whole().structures[0].mismatch(SEQUENCE).tolist() == [False, False, True, False, False, False]


def test_modalities_and_facets_of_every_subset() -> None:
    assert {name: one.modalities for name, one in SOME.items()} == {
        "all": tuple(Modality),
        "sequence": (Modality.SEQUENCE,),
        "structure": (Modality.STRUCTURE,),
        "terms": (Modality.FUNCTION,),
        "text": (Modality.FUNCTION,),
        "image": (Modality.IMAGE,),
        "unknown letters": (Modality.SEQUENCE, Modality.STRUCTURE),
        "nothing resolved": (Modality.SEQUENCE, Modality.STRUCTURE),
    }
    assert SOME["all"].facets == Facet(31) and SOME["terms"].facets == Facet.TERMS and SOME["text"].facets == Facet.TEXT
    assert contract.group_name(SOME["all"].modalities) == "sequence_structure_function_image"


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Sample("a.b", sequence="M"), "must match"),
        (lambda: Sample("", sequence="M"), "must match"),
        (lambda: Sample("a"), "no modality"),
        (lambda: Sample("a", sequence=""), "no modality"),
        (lambda: Sample("a", function=Function()), "no modality"),
        (lambda: Sample("a", structures=(chain([], ""),)), "0 letters"),
        (lambda: Sample("a", structures=(chain([0, 1], "MKT"),)), "strictly increasing"),
        (lambda: Sample("a", structures=(chain([1, 1], "MK"),)), "strictly increasing"),
        (lambda: Sample("a", structures=(chain([-1, 1], "MK"),)), "strictly increasing"),
        (lambda: Sample("a", sequence="MK", structures=(chain([1, 2], "KT"),)), "beyond the sequence"),
        (lambda: Sample("a", structures=(chain([0], "M", scale=np.nan),)), "not finite"),
    ],
)
def test_a_broken_contract_is_an_error_when_the_sample_is_made(build: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["all", "structure", "terms"])
def test_a_member_cut_anywhere_is_corrupt_and_nothing_else(name: str) -> None:
    """At every byte: neither another exception nor a sample that is silently less than it was."""
    (member, data), *images = encode(SOME[name])
    for end in range(len(data)):
        with pytest.raises(CorruptSample):
            decode({member: data[:end], **dict(images)})


@pytest.mark.parametrize("name", ["all", "structure"])
@pytest.mark.parametrize("bits", [0x15, 0x01, 0x08])
def test_a_damaged_member_is_corrupt_or_keeps_the_contract(name: str, bits: int) -> None:
    """Every byte of the header changed in turn. What still parses is the shard checksum's business, but whatever does
    is a sample that `Sample` would have taken, or says otherwise when it is asked for all of it."""
    (member, data), *images = encode(SOME[name])
    header = 8 + struct.unpack("<Q", data[:8])[0]
    refused = 0
    for place in range(header):
        broken = bytearray(data)
        broken[place] ^= bits
        try:
            codec.whole(decode({member: bytes(broken), **dict(images)}))
        except CorruptSample:
            refused += 1
    assert header / 3 < refused < header


def test_a_structure_that_was_read_is_like_any_other() -> None:
    """Its arrays are made when they are asked for: also by a copy, by another process, or by nobody."""
    data = dict(encode(SOME["all"]))
    for copied in (copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one)), lambda one: replace(one)):  # noqa: S301
        assert_equal(copied(decode(data)), SOME["all"])
        first = copied(decode(data).structures[0])
        assert_equal(replace(decode(data), structures=(first, SOME["all"].structures[1])), SOME["all"])
    read = decode(data).structures[0]
    assert read.coordinates is read.coordinates and not hasattr(read, "colour")
    with pytest.raises(ValueError, match="beyond the sequence"):
        replace(decode(data), sequence="MK")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff" * 64,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 20) + b'{"__metadata__": {}}',
        struct.pack("<Q", 1 << 62) + b"{}",
    ],
)
def test_what_was_never_a_sample_is_corrupt(damage: bytes) -> None:
    with pytest.raises(CorruptSample):
        decode({"a.safetensors": damage})


def test_a_deeply_nested_header_is_corrupt() -> None:
    header = b"[" * 200_000
    with pytest.raises(CorruptSample):
        decode({"a.safetensors": struct.pack("<Q", len(header)) + header})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("structure", {"letters": None}),
        ("structure", {"letters": (np.zeros(2, np.uint8))}),
        ("structure", {"letters": np.full(3, 200, np.uint8)}),
        ("structure", {"letters": np.full(3, 0x4141, np.int16)}),
        ("structure", {"mask": np.ones((3, 3), np.uint8)}),
        ("structure", {"confidence": np.ones(4, np.uint8)}),
        ("structure", {"states": np.full(2, 65, np.uint8)}),
        ("structure", {"pae": np.ones((3, 2), np.uint8)}),
        ("structure", {"xyz": np.full((3, 4, 3), -(2**31), np.int32)}),
        ("structure", {"xyz": np.zeros((3, 4), np.int16)}),
        ("structure", {"xyz": np.zeros((0, 4, 3), np.int16)}),
        ("all", {"xyz": np.zeros((6, 3, 3), np.int16)}),
    ],
)
def test_arrays_that_break_the_contract_are_corrupt(name: str, change: dict[str, NDArray | None]) -> None:
    (member, data), *images = encode(SOME[name])
    tensors = safetensors.numpy.load(data)
    about = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]
    tensors |= {f"0.{each}": array for each, array in change.items() if array is not None}
    kept = {each: array for each, array in tensors.items() if change.get(each.removeprefix("0."), array) is not None}
    with pytest.raises(CorruptSample):
        codec.whole(decode({member: safetensors.numpy.save(kept, about), **dict(images)}))
    assert decode({member: safetensors.numpy.save(safetensors.numpy.load(data), about), **dict(images)}).structures


def test_members_that_do_not_belong_together_are_corrupt() -> None:
    (_, data), *images = encode(SOME["all"])
    for members in (dict(images), {"other.safetensors": data, **dict(images)}, {"P12345-2_x.safetensors": data}):
        with pytest.raises(CorruptSample):
            decode(members)


def test_a_tensor_beyond_the_member_or_of_another_shape_is_corrupt() -> None:
    def rebuilt(change: dict[str, object]) -> bytes:
        data = encode(SOME["structure"])[0][1]
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        header["0.xyz"] |= change
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    assert decode({"b.safetensors": rebuilt({})}).structures
    changes: tuple[dict[str, object], ...] = (
        {"data_offsets": [0, 10_000]},
        {"data_offsets": [-8, 72]},
        {"data_offsets": [72, 0]},
        {"shape": [3, 4, 4]},
        {"shape": [4, 3, 3]},
        {"dtype": "F64"},
    )
    for change in changes:
        with pytest.raises(CorruptSample):
            decode({"b.safetensors": rebuilt(change)})


@pytest.mark.parametrize("words", [[["GO:1"]], [[1, "IEA"]], {}, None, "GO:1", [["GO:1", "IEA", "more"]]])
@pytest.mark.parametrize("which", ["terms", "texts"])
def test_terms_and_texts_are_not_believed(which: str, words: object) -> None:
    """Nor are they looked at before somebody asks."""
    data = encode(SOME["all"])[0][1]
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["sample"] = json.dumps(json.loads(header["__metadata__"]["sample"]) | {which: words})
    text, (_, *images) = json.dumps(header).encode(), encode(SOME["all"])
    members = {"P12345-2_x.safetensors": struct.pack("<Q", len(text)) + text + data[8 + length :], **dict(images)}
    read = decode(members)
    assert read.sequence == SEQUENCE and read.function is not None
    with pytest.raises(CorruptSample):
        getattr(read.function, which)
    with pytest.raises(CorruptSample):
        codec.whole(read)


@pytest.mark.parametrize(
    "runs",
    [
        *([[0, 10**13]], [[0, 2]], [[0, -3], [0, 6]], [[0]], [[10**30, 3]], [["0", 3]]),
        *([[0, -(10**13)], [0, 10**13 + 3]], [[1, 2], [2, 1]], [[3, 2], [0, 1]], [[-1, 3]], [[2**31 - 2, 3]]),
        *([[0, 1.5], [2, 1.5]], [[0, 3, 0]], {}, [[0, 4]]),
    ],
)
def test_residue_runs_are_not_believed(runs: list[list[object]]) -> None:
    data = encode(SOME["structure"])[0][1]
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["sample"])
    about["structures"][0]["runs"] = runs
    header["__metadata__"]["sample"] = json.dumps(about)
    text = json.dumps(header).encode()
    with pytest.raises(CorruptSample):
        decode({"b.safetensors": struct.pack("<Q", len(text)) + text + data[8 + length :]})
