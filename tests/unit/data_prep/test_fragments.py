"""Fragments of one long model: joined where they agree, apart and named where they do not."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest
from Bio.SVDSuperimposer import SVDSuperimposer
from scipy.spatial.transform import Rotation

from data_prep.align import place
from data_prep.fragments import FragmentConfig, assemble
from data_prep.records import Rejection, StructureRecord
from data_prep.sources.coordinates.states import states
from data_prep.sources.files import resolve
from tests.pack import PACK

SAMPLE = resolve("package:data_prep/sample") / "structures"
ATOMS = ("N", "CA", "C")
SIZE, STEP = 140, 40  # of the fragments that the sample's longest chain is cut into
CONFIG = FragmentConfig(step=STEP)


def read(path: str, accession: str) -> StructureRecord:
    """A whole chain as one record; pLDDT of an experiment are made up."""
    residues = gemmi.read_structure(path)[0][0].get_polymer()
    coordinates = np.array([[r[name][0].pos.tolist() for name in ATOMS] for r in residues], dtype=np.float32)
    mask = np.ones(coordinates.shape[:2], dtype=bool)
    predicted = "AF-" in path
    sure = [r["CA"][0].b_iso if predicted else 75 + 20 * np.sin(i / 9) ** 2 for i, r in enumerate(residues)]
    return StructureRecord(
        key=accession,
        source=path,
        id=f"AF-{accession}-F1",
        letters="".join(gemmi.find_tabulated_residue(r.name).one_letter_code.upper() for r in residues),
        atoms=ATOMS,
        coordinates=coordinates,
        mask=mask,
        number=np.arange(1, len(residues) + 1, dtype=np.int32),
        confidence=np.array(sure, dtype=np.float32),
        begin=1,
        end=len(residues),
        shift=-1,
        states=states(coordinates, mask, ATOMS),
        fragment=1,
    )


@pytest.fixture(scope="module")
def chain() -> StructureRecord:
    return read(f"{SAMPLE}/3fpz_A.cif.gz", "P12345")


def plddt(record: StructureRecord) -> np.ndarray:
    assert record.confidence is not None
    return record.confidence


def cut(chain: StructureRecord, begin: int, end: int, fragment: int, noise: float = 0.0) -> StructureRecord:
    """Residues [begin, end) as AlphaFold DB would give them: numbered from 1, in a frame of their own."""
    draw = np.random.default_rng(fragment)
    moved = chain.coordinates[begin:end].astype(np.float64) + draw.normal(0, noise or 1e-12, (end - begin, 3, 3))
    moved = Rotation.random(rng=draw).apply(moved.reshape(-1, 3)).reshape(moved.shape) + draw.normal(0, 50, 3)
    return replace(
        chain,
        source=f"{chain.id[:-1]}{fragment}-model_v4.cif.gz",
        id=f"{chain.id[:-1]}{fragment}",
        letters=chain.letters[begin:end],
        coordinates=moved.astype(np.float32),
        mask=chain.mask[begin:end].copy(),
        number=np.arange(1, end - begin + 1, dtype=np.int32),
        confidence=plddt(chain)[begin:end].copy(),
        begin=begin + 1,
        end=end,
        shift=begin - 1,
        states=chain.states and chain.states[begin:end],
        pae=np.zeros((end - begin, end - begin), dtype=np.uint8),
        fragment=fragment,
    )


def fragments(chain: StructureRecord, size: int = SIZE, step: int = STEP, noise: float = 0.0) -> list[StructureRecord]:
    length, parts = len(chain.letters), []
    for begin in range(0, max(length - size + step, 1), step):
        parts.append(cut(chain, begin, min(begin + size, length), len(parts) + 1, noise))
    return parts


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each atom after superposing all."""
    fit = SVDSuperimposer()
    fit.set(a.reshape(-1, 3).astype(np.float64), b.reshape(-1, 3).astype(np.float64))
    fit.run()
    return np.linalg.norm(fit.get_transformed() - a.reshape(-1, 3), axis=1)


def join(parts: list[StructureRecord], config: FragmentConfig = CONFIG) -> StructureRecord:
    (joined,), rejected = assemble(parts, config)
    assert rejected == []
    return joined


def apart(parts: list[StructureRecord], config: FragmentConfig = CONFIG) -> tuple[list[str], Rejection]:
    """Ids of what is left, and the one rejection."""
    kept, (rejection,) = assemble(parts, config)
    return [structure.id for structure in kept], rejection


def same(joined: StructureRecord, chain: StructureRecord) -> None:
    assert joined.letters == chain.letters
    assert joined.states == chain.states
    assert joined.number.tolist() == list(range(len(chain.letters)))
    assert (joined.begin, joined.end, joined.shift, joined.fragment) == (1, len(chain.letters), 0, 0)
    assert joined.pae is None
    assert joined.mask.all()
    assert distance(chain.coordinates, joined.coordinates).max() < 1e-3
    assert joined.coordinates.dtype == np.float32


def test_what_was_cut_is_whole_again(chain):
    parts = fragments(chain)
    assert [part.begin for part in parts] == [1, 41, 81, 121, 161, 201]
    joined = join(parts)
    assert joined.id == "AF-P12345" and joined.position == "F1 to F6"
    assert np.array_equal(plddt(joined), plddt(chain))
    same(joined, chain)


@pytest.mark.parametrize("accession", ["P42345", "O00555", "P00451"])
def test_long_models_cut_as_alphafold_db_cuts_are_whole_again(accession):
    found = sorted((PACK / "afdb").glob(f"AF-{accession}-F1-model*"))
    if not found:
        pytest.skip(f"no model of {accession} under {PACK}")
    whole = read(str(found[0]), accession)
    parts = fragments(whole, 1400, 200)
    assert len(parts) > 5 and len(parts[0].letters) == 1400
    joined = join(parts, FragmentConfig())
    assert joined.id == f"AF-{accession}"
    same(joined, whole)
    noisy = join(fragments(whole, 1400, 200, noise=0.4), FragmentConfig())
    off = distance(whole.coordinates, noisy.coordinates)
    assert 0.4 < np.sqrt(np.square(off).mean()) < 0.9


def test_order_and_company_do_not_matter(chain):
    parts = fragments(chain)
    other = replace(chain, id="1abc_A", fragment=0)
    kept, rejected = assemble([parts[3], other, *parts[:3], *parts[:3:-1]], CONFIG)
    assert rejected == []
    assert [structure.id for structure in kept] == ["AF-P12345", "1abc_A"]
    assert kept[1] is other
    assert kept[0].coordinates.tobytes() == join(parts).coordinates.tobytes()


def test_a_model_of_one_fragment_is_left_alone(chain):
    twice = [chain, replace(chain, source="another file")]
    kept, rejected = assemble(twice, CONFIG)
    assert kept == twice and rejected == []
    assert assemble([], CONFIG) == ([], [])


def test_begins_that_are_not_stated_follow_from_the_number(chain):
    bare = [replace(part, begin=None, end=None, shift=None) for part in fragments(chain)]
    same(join(bare), chain)
    stated = [replace(part, shift=None) for part in fragments(chain)]
    same(join(stated, FragmentConfig(step=7)), chain)
    onward = [replace(part, number=part.number + (part.begin or 0) - 1, shift=-1) for part in fragments(chain)]
    same(join(onward, FragmentConfig(step=7)), chain)


def test_a_joined_chain_finds_its_place_in_the_sequence(chain):
    joined = join(fragments(chain))
    sequence = chain.letters[:50] + "W" + chain.letters[51:]
    found = place(joined.letters, joined.number, sequence, joined.begin, joined.end, joined.shift, 0.9, 0.9)
    assert found.residue.tolist() == list(range(len(sequence)))


def test_the_chain_goes_over_once_and_where_the_other_is_surer(chain):
    first, second = cut(chain, 0, 180, 1, noise=0.3), cut(chain, 60, 311, 2, noise=0.3)
    plddt(first)[:], plddt(second)[:] = 80, 80
    plddt(first)[110:], plddt(second)[:50] = 75, 72  # the second is the surer one from residue 110 on
    joined = join([first, second])
    assert plddt(joined)[:100].tolist() == [80] * 100
    assert np.count_nonzero(plddt(joined) != 80) < 12
    peptide = np.linalg.norm(joined.coordinates[1:, 0] - joined.coordinates[:-1, 2], axis=1)
    apart = [np.linalg.norm(part.coordinates[1:, 0] - part.coordinates[:-1, 2], axis=1) for part in (first, second)]
    own = {round(float(x), 3) for each in apart for x in each}
    assert sum(round(float(x), 3) not in own for x in peptide) <= 1


def test_equally_sure_the_earlier_is_kept(chain):
    first, second = cut(chain, 0, 180, 1), cut(chain, 60, 311, 2)
    plddt(first)[:], plddt(second)[:] = 90, 90
    letters = replace(second, states="p" * len(second.letters))
    joined = join([replace(first, states="a" * len(first.letters)), letters])
    assert joined.states is not None
    assert joined.states.count("a") > 150 and joined.states == "a" * joined.states.count("a") + "p" * (
        311 - joined.states.count("a")
    )


def test_absent_atoms_stay_absent_and_what_one_part_lacks_the_whole_lacks(chain):
    first, second = cut(chain, 0, 180, 1), cut(chain, 60, 311, 2)
    second.mask[200, 0] = False
    second.coordinates[200, 0] = 0
    joined = join([first, replace(second, states=None, confidence=None)])
    assert not joined.mask[260, 0] and joined.mask.sum() == 311 * 3 - 1
    assert joined.coordinates[260, 0].tolist() == [0, 0, 0]
    assert joined.states is None and joined.confidence is None


def test_domains_that_lie_otherwise_are_joined_over_the_larger(chain):
    first, second = cut(chain, 0, 200, 1), cut(chain, 40, 311, 2)
    first.coordinates[:80] = first.coordinates[:80] @ Rotation.from_euler("x", 70, degrees=True).as_matrix() + 9
    joined = join([first, second])  # of 160 common residues, 120 have not moved
    assert distance(chain.coordinates[80:], joined.coordinates[80:]).max() < 1e-3
    assert distance(chain.coordinates[:80], joined.coordinates[:80]).max() < 1e-3


def test_fragments_that_agree_in_too_little_stay_apart(chain):
    first, second = cut(chain, 0, 200, 1), cut(chain, 40, 311, 2)
    for at in range(40, 200, 40):
        first.coordinates[at : at + 40] = (
            Rotation.random(rng=np.random.default_rng(at))
            .apply(first.coordinates[at : at + 40].reshape(-1, 3))
            .reshape(-1, 3, 3)
        )
    ids, rejection = apart([first, second])
    assert ids == ["AF-P12345-F1", "AF-P12345-F2"]
    assert rejection.reason == "fragments_disagree"
    assert rejection.source == second.source and rejection.key == "P12345"
    assert "160 residues in common; of 160 confident ones 0.2" in rejection.detail
    assert "min_agreeing is 0.5" in rejection.detail
    assert join([first, second], FragmentConfig(min_agreeing=0.2, max_rmsd=4)).id == "AF-P12345"


def test_fragments_without_any_agreement_are_refused(chain):
    parts = [cut(chain, 0, 200, 1, noise=0.3), cut(chain, 40, 311, 2, noise=0.3)]
    _, rejection = apart(parts, FragmentConfig(near=1e-9))
    assert rejection.reason == "fragments_disagree" and "their RMSD is inf Å" in rejection.detail


def test_a_mirror_image_is_no_agreement(chain):
    first, second = cut(chain, 0, 200, 1), cut(chain, 40, 311, 2)
    ids, rejection = apart([first, replace(second, coordinates=-second.coordinates)])
    assert len(ids) == 2 and rejection.reason == "fragments_disagree"


def test_a_loose_agreement_is_refused_by_its_rmsd(chain):
    parts = fragments(chain, 220, 91, noise=1.0)
    ids, rejection = apart(parts, FragmentConfig(max_rmsd=0.5))
    assert len(ids) == 2
    assert rejection.reason == "fragments_disagree" and "max_rmsd is 0.5" in rejection.detail


@pytest.mark.parametrize(
    ("end", "begin", "reason", "seen"),
    [
        (150, 121, "fragments_do_not_overlap", "29 residues in common; 29 with CA, min_overlap is 30"),
        (150, 150, "fragments_do_not_overlap", "0 residues in common"),
    ],
)
def test_too_short_an_overlap_is_refused(chain, end, begin, reason, seen):
    ids, rejection = apart([cut(chain, 0, end, 1), cut(chain, begin, 311, 2)])
    assert ids == ["AF-P12345-F1", "AF-P12345-F2"]
    assert rejection.reason == reason and seen in rejection.detail


def test_without_confident_residues_in_common_they_do_not_meet(chain):
    first, second = cut(chain, 0, 200, 1), cut(chain, 40, 311, 2)
    plddt(second)[20:160] = 69.9
    _, rejection = apart([first, second])
    assert rejection.reason == "fragments_do_not_meet"
    assert "20 with pLDDT of 70 in both, min_confident is 30" in rejection.detail


def test_other_letters_in_the_overlap_are_refused(chain):
    first, second = cut(chain, 0, 200, 1), cut(chain, 40, 311, 2)
    second = replace(second, letters=second.letters[:9] + "XX" + second.letters[11:])
    _, rejection = apart([first, second])
    assert rejection.reason == "fragment_letters_differ"
    assert "2 of them differ, the first is residue 50" in rejection.detail


def test_a_fragment_that_runs_through_the_others_is_refused(chain):
    first, second = cut(chain, 0, 200, 1), cut(chain, 40, 311, 2)
    fit = SVDSuperimposer()
    fit.set(second.coordinates[:160, 1].astype(float), first.coordinates[40:, 1].astype(float))
    fit.run()
    turn, shift = fit.get_rotran()
    second.coordinates[170:210] = first.coordinates[:40] @ np.asarray(turn) + np.asarray(shift) + 0.5
    _, rejection = apart([first, second])
    assert rejection.reason == "fragments_clash"
    assert "max_clashing is 0.02" in rejection.detail


def test_a_fragment_that_is_missing_but_not_needed_is_named(chain):
    parts = fragments(chain)
    kept, (rejection,) = assemble([parts[0], *parts[2:]], CONFIG)
    same(kept[0], chain)
    assert kept[0].id == "AF-P12345"
    assert rejection.reason == "missing_fragment"
    assert rejection.detail == ("AF-P12345-F3: F2 missing of F1 to F6; F1 and F3 overlap enough to be joined without")


def test_runs_on_either_side_of_a_gap_are_joined(chain):
    parts = fragments(chain, 90, 30)
    missing = {4, 5, 6}
    kept, (rejection,) = assemble([p for p in parts if p.fragment not in missing], FragmentConfig(step=30))
    assert [structure.id for structure in kept] == ["AF-P12345-F1-F3", "AF-P12345-F7-F9"]
    assert [(structure.begin, structure.end) for structure in kept] == [(1, 150), (181, 311)]
    assert kept[1].number.tolist() == list(range(180, 311)) and kept[1].shift == 0
    assert distance(chain.coordinates[180:], kept[1].coordinates).max() < 1e-3
    assert "F4 to F6 missing of F1 to F9; F3 and F7 stay apart" in rejection.detail


def test_the_first_fragments_may_be_missing(chain):
    kept, (rejection,) = assemble(fragments(chain)[2:], CONFIG)
    assert [structure.id for structure in kept] == ["AF-P12345-F3-F6"]
    assert "F1 to F2 missing of F1 to F6; the model begins at residue 81" in rejection.detail
    lone = fragments(chain)[2]
    ids, rejection = apart([lone])
    assert ids == ["AF-P12345-F3"] and rejection.reason == "missing_fragment"


def test_of_one_fragment_twice_the_newest_version_is_taken(chain):
    parts = fragments(chain)
    old = replace(parts[1], source="AF-P12345-F2-model_v3.cif.gz", coordinates=parts[1].coordinates * 3)
    kept, (rejection,) = assemble([*parts, old], CONFIG)
    same(kept[0], chain)
    assert (rejection.reason, rejection.source) == ("duplicate_fragment", old.source)


def test_a_fragment_that_adds_nothing_is_named(chain):
    parts = [cut(chain, 0, 200, 1), cut(chain, 40, 180, 2), cut(chain, 80, 311, 3)]
    kept, (rejection,) = assemble(parts, CONFIG)
    same(kept[0], chain)
    assert rejection.reason == "redundant_fragment" and "ends at residue 180" in rejection.detail


def test_isoforms_and_other_models_are_not_mixed(chain):
    parts = fragments(chain)
    isoform = [replace(part, id=part.id.replace("P12345", "P12345-2")) for part in parts]
    kept, rejected = assemble([*parts, *isoform], CONFIG)
    assert [structure.id for structure in kept] == ["AF-P12345", "AF-P12345-2"] and rejected == []


def test_a_chain_of_alpha_carbons_can_be_joined_and_one_without_cannot(chain):
    def only(name: str) -> list[StructureRecord]:
        slot = ATOMS.index(name)
        return [
            replace(part, atoms=(name,), coordinates=part.coordinates[:, [slot]], mask=part.mask[:, [slot]])
            for part in fragments(chain)
        ]

    assert join(only("CA")).coordinates.shape == (311, 1, 3)
    kept, rejected = assemble(only("C"), CONFIG)
    assert len(kept) == 6 and {rejection.reason for rejection in rejected} == {"fragments_do_not_overlap"}
