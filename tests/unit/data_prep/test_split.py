"""What is related is in one split, nothing is lost, and nothing but keys, facts and configuration decides."""

import json
import random
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from data_prep import components, proteins
from data_prep.assign import Summary, assign
from data_prep.clusters import Sequences
from data_prep.spill import partition
from data_prep.split import SPLITS, Assignment, Facts, SplitConfig, check, needs_all, parent, read, split, write
from pretrain.places import Place

SAMPLE = Path(__file__).resolve().parents[3] / "data_prep" / "sample"
needs_mmseqs = pytest.mark.skipif(not shutil.which("mmseqs"), reason="mmseqs (package mmseqs2) is not in PATH")
AMINO = "ACDEFGHIKLMNPQRSTVWY"


def config(**settings) -> SplitConfig:
    return SplitConfig.model_validate({"method": "hash", **settings})


def assigned(
    folder: Path, facts: list[Facts], config: SplitConfig, partitions: int = 3, threads: int = 1
) -> tuple[dict[str, str | None], Summary]:
    """Every protein's split, as the tasks would do it."""
    place, names = Place(str(folder)), []
    folder.mkdir(parents=True)
    for number in range(partitions):
        mine = sorted((f for f in facts if partition(f.key, partitions) == number), key=lambda f: f.key)
        names.append(f"{number}.facts")
        assert write(folder / names[-1], mine) == len(mine)
        assert list(read(place, names[-1], ahead=100)) == mine
    summary = assign(place, names, config, folder / "out", threads)
    assert not (folder / "out" / "scratch").exists()
    tables = [Assignment.read(place / "out", number) for number in range(partitions)]
    assert sum(len(table.keys) for table in tables) == len(facts)
    return {f.key: tables[partition(f.key, partitions)].of(f.key) for f in facts}, summary


def crowd(count: int = 400) -> list[Facts]:
    """Proteins with genes, antibodies and species, and isoforms of some; no sequences."""
    draw = random.Random(0)
    facts = []
    for n in range(count):
        links = tuple(f"gene:G{draw.randrange(2 * count)}" for _ in range(draw.randrange(3)))
        links += (f"antibody:HPA{draw.randrange(count)}",) if draw.random() < 0.2 else ()
        key = f"P{n:05d}"
        facts.append(Facts(key, None, draw.choice((0, 9606, 4932)), links))
        facts += [Facts(f"{key}-{i}") for i in range(2, draw.choice((2, 2, 2, 4)))]
    return facts


def sets(facts: list[Facts], kinds: tuple[str, ...]) -> list[list[str]]:
    """What belongs together, found by going from each to each."""
    of: dict[str, set[str]] = {f.key: {link for link in f.links if link.split(":")[0] in kinds} for f in facts}
    for f in facts:
        of[f.key].add(f"protein:{f.key.split('-')[0]}")
    left, found = sorted(of), []
    while left:
        keys, links = {left[0]}, of[left[0]]
        while more := {key for key in left if key not in keys and of[key] & links}:
            keys |= more
            links = links.union(*(of[key] for key in more))
        found.append(sorted(keys))
        left = [key for key in left if key not in keys]
    return found


@pytest.mark.parametrize("kinds", [(), ("gene",), ("gene", "antibody")])
def test_links_and_isoforms_stay_together_and_the_rest_is_drawn_by_its_key(tmp_path, kinds):
    facts = crowd()
    how = config(valid=0.2, test=0.2, largest=1.0, together=kinds, seed=3)
    of, summary = assigned(tmp_path / "a", facts, how)
    together = sets(facts, kinds)
    assert max(map(len, together)) >= 3
    for keys in together:
        assert {of[key] for key in keys} == {split(keys[0], how)}
    assert summary.components == len(together)
    assert summary.largest["size"] == max(map(len, together)) and summary.largest["key"] in map(min, together)
    assert summary.sizes["1"] == sum(len(keys) == 1 for keys in together)
    assert sum(summary.sizes.values()) == summary.components
    assert summary.splits == Counter(of.values())
    assert summary.shares["valid"] == {"asked": 0.2, "reached": round(summary.splits["valid"] / len(facts), 6)}
    assert summary.proteins == len(facts) and summary.with_sequence == 0 and summary.mmseqs == {}


def test_splits_do_not_depend_on_partitions(tmp_path):
    facts = crowd()
    one, of_one = assigned(tmp_path / "1", facts, config(), 1)
    for partitions in (2, 9):
        other, of_other = assigned(tmp_path / str(partitions), facts, config(), partitions)
        assert (other, of_other) == (one, of_one)


def test_a_component_that_would_fill_a_split_goes_to_train(tmp_path):
    crowded = [Facts(f"P{n:05d}", links=("gene:G",)) for n in range(50)] + [Facts(f"Q{n:05d}") for n in range(950)]
    seeds = [seed for seed in range(40) if split("P00000", config(valid=0.2, test=0.2, seed=seed)) == "test"]
    of, summary = assigned(tmp_path / "a", crowded, config(valid=0.2, test=0.2, seed=seeds[0], largest=0.2))
    assert {of[f.key] for f in crowded[:50]} == {"train"}
    assert summary.to_train == {"components": 1, "proteins": 50}
    of, summary = assigned(tmp_path / "b", crowded, config(valid=0.2, test=0.2, seed=seeds[0], largest=0.25))
    assert {of[f.key] for f in crowded[:50]} == {"test"}
    assert summary.to_train == {"components": 0, "proteins": 0}


@pytest.mark.parametrize("homologs", ["test", "drop"])
def test_held_out_species(tmp_path, homologs):
    facts = crowd()
    how = config(valid=0.1, test=0.0, held_out_taxa=(4932,), homologs=homologs, largest=0.01)
    of, summary = assigned(tmp_path / "a", facts, how)
    held = {f.key for f in facts if f.taxon == 4932}
    related = {key for keys in sets(facts, ("gene", "antibody")) if held & {*keys} for key in keys} - held
    assert len(held) > 100 and len(related) > 50
    assert {of[key] for key in held} == {"test"}
    assert {of[key] for key in related} == {"test" if homologs == "test" else None}
    assert {of[f.key] for f in facts if f.key not in held | related} == {"train", "valid"}
    assert summary.held_out == {"4932": len(held), "homologs": len(related)}
    assert summary.splits["test"] == len(held) + (len(related) if homologs == "test" else 0)


def test_a_held_out_species_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no protein here is of NCBI taxon 49320; correct the number"):
        assigned(tmp_path / "a", crowd(), config(held_out_taxa=(4932, 49320)))


def test_proteins_held_out_by_key_take_their_relatives_along(tmp_path, caplog):
    facts = crowd()
    keys = tuple(f.key for f in facts[::40])
    of, summary = assigned(
        tmp_path / "a", facts, config(valid=0.1, test=0.0, held_out_keys=(*keys, "Q0"), largest=0.01)
    )
    related = {key for group in sets(facts, ("gene", "antibody")) if {*keys} & {*group} for key in group} - {*keys}
    assert {of[key] for key in keys} == {of[key] for key in related} == {"test"} and len(related) > 5
    assert {of[f.key] for f in facts if f.key not in related | {*keys}} == {"train", "valid"}
    assert summary.held_out == {"keys": len(keys), "absent": 1, "homologs": len(related)}
    assert f"no protein here has 1 of the {len(keys) + 1} keys: Q0" in caplog.text
    for taxa in ((), (4932,)):
        with pytest.raises(
            ValueError, match=r"no protein here has one of the 7 keys, Q0, Q1, Q2, Q3, Q4, …; give keys as"
        ):
            assigned(
                tmp_path / f"b{len(taxa)}", facts, config(held_out_keys=[f"Q{i}" for i in range(7)], held_out_taxa=taxa)
            )


def test_settings_of_clusters_are_refused_where_nothing_is_compared():
    with pytest.raises(ValueError, match=r"identity, search would do nothing with method = 'hash'"):
        SplitConfig.model_validate({"method": "hash", "identity": 0.5, "search": False})
    assert SplitConfig.model_validate({}).method == "cluster"


def test_facts_survive_strange_links_and_a_missing_key_is_an_error(tmp_path):
    facts = [Facts("A", "MKT", 9606, ("gene:tab\there", "gene:line\nend", 'antibody:é, "x"')), Facts("B_-c", None, 0)]
    of, _ = assigned(tmp_path / "a", facts, config())
    assert of == {f.key: split(f.key, config()) for f in facts}
    with pytest.raises(KeyError, match="AA was not among"):
        Assignment.read(Place(str(tmp_path / "a" / "out")), partition("A", 3)).of("AA")
    with pytest.raises(AssertionError, match="A after B"):
        write(tmp_path / "b", [Facts("B"), Facts("A")])


def test_no_proteins_at_all(tmp_path):
    of, summary = assigned(tmp_path / "a", [], config())
    assert of == {} and summary.components == 0 and summary.largest == {}


@pytest.mark.parametrize(
    ("key", "of"),
    [("P12345-2", "P12345"), ("A0A023GRW4-10", "A0A023GRW4"), ("P12345", "P12345"), ("cell_1-2", "cell_1-2")],
)
def test_isoforms_are_drawn_with_their_protein(key, of):
    assert parent(key) == of
    assert all(split(key, config(seed=s, test=0.4)) == split(of, config(seed=s, test=0.4)) for s in range(50))


def test_when_all_proteins_are_needed():
    assert not needs_all(config(), links=False)
    assert needs_all(config(), links=True) and not needs_all(config(together=()), links=True)
    assert needs_all(config(method="cluster"), links=False)
    assert needs_all(config(held_out_taxa=(9606,)), links=False) and needs_all(
        config(held_out_keys=("P",)), links=False
    )


def test_shares_that_are_more_than_all():
    with pytest.raises(ValueError, match=r"valid = 0\.6 and test = 0\.5 are more than all"):
        config(valid=0.6, test=0.5)


def test_mmseqs_missing_is_said_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    check(config(method="hash"))
    with pytest.raises(ValueError, match=r"apt-get install mmseqs2.*bioconda mmseqs2.*split\.method=hash"):
        check(config(method="cluster"))
    with pytest.raises(ValueError, match="MMseqs2"):
        assigned(tmp_path / "a", crowd(3), config(method="cluster"))
    assert not (tmp_path / "a" / "out").exists()


@pytest.mark.parametrize("count", [1, 10, 5000])
@pytest.mark.parametrize("share", [0, 0.3, 1, 3])
def test_components_are_what_scipy_finds(count, share):
    generator = np.random.default_rng(count)
    a, b = generator.integers(0, count, (2, int(count * share)))
    root = components.alone(count)
    for begin in range(0, len(a), 700):
        components.join(root, a[begin : begin + 700], b[begin : begin + 700])
    components.settle(root, block=300)
    _, label = connected_components(coo_matrix((np.ones(len(a)), (a, b)), shape=(count, count)), directed=False)
    smallest = {which: int(np.flatnonzero(label == which)[0]) for which in set(label.tolist())}
    assert root.tolist() == [smallest[which] for which in label.tolist()]


def test_a_long_chain_is_one_component():
    order = np.random.default_rng(0).permutation(100_000)
    root = components.alone(len(order))
    components.join(root, order[1:], order[:-1])
    components.settle(root)
    assert not root.any()


def relative(of: str, identity: float, draw: random.Random) -> str:
    """With that share of residues kept, and a few left out and put in."""
    letters = [c if draw.random() < identity else draw.choice(AMINO.replace(c, "")) for c in of]
    for _ in range(len(of) // 60):
        del letters[draw.randrange(len(letters))]
        letters.insert(draw.randrange(len(letters)), draw.choice(AMINO))
    return "".join(letters)


@pytest.fixture(scope="module")
def families() -> list[list[Facts]]:
    """Real proteins, each with relatives made of it, of which 60 to 80 % of the residues are kept."""
    draw = random.Random(1)
    real = [sample for sample in proteins.read(SAMPLE / "uniprot" / "more.fasta") if len(sample.sequence or "") >= 120]
    found = []
    for n, sample in enumerate(real):
        # Relatives' keys lie apart, so that neither keys nor partitions bring a family together.
        letters = sample.sequence or ""
        made = [Facts(f"{c}{n}", relative(letters, draw.uniform(0.6, 0.8), draw)) for c in "xyz"]
        found.append([Facts(sample.key, letters), *made])
    assert len(found) > 50
    return found


@needs_mmseqs
@pytest.mark.parametrize("mode", ["linclust", pytest.param("cluster", marks=pytest.mark.slow)])
def test_no_family_crosses_a_split(tmp_path, families, mode):
    facts = [f for family in families for f in family]
    how = {"valid": 0.2, "test": 0.2, "largest": 0.5}
    by_hash, _ = assigned(tmp_path / "hash", facts, config(**how))
    assert sum(len({by_hash[f.key] for f in family}) > 1 for family in families) > len(families) / 2
    of, summary = assigned(tmp_path / "cluster", facts, config(method="cluster", mode=mode, **how))
    assert all(len({of[f.key] for f in family}) == 1 for family in families)
    assert 0.1 < summary.shares["valid"]["reached"] < 0.3 and 0.05 < summary.shares["test"]["reached"] < 0.3
    assert mode == "cluster" or summary.joined["search"] > 3 * len(families) * 0.1  # linclust leaves many apart
    assert summary.splits["valid"] + summary.splits["test"] <= sum(summary.mmseqs["searched"]) <= len(facts)
    assert summary.mmseqs["identity"] == 0.3 and summary.mmseqs["version"]
    assert any("--min-seq-id 0.3 -c 0.8 --cov-mode 0" in command for command in summary.mmseqs["commands"])
    assert str(tmp_path) not in str(summary)


@needs_mmseqs
@pytest.mark.parametrize("homologs", ["test", pytest.param("drop", marks=pytest.mark.slow)])
def test_what_is_related_to_a_held_out_species_moves_and_the_species_does_not(tmp_path, families, homologs):
    """Clusters by shared k-mers miss relatives; the search afterwards finds them."""
    some = [
        [replace(f, taxon=9 if n % 3 == 0 and f is family[0] else 0) for f in family]
        for n, family in enumerate(families)
    ]
    facts = [f for family in some for f in family]
    how = {"method": "cluster", "mode": "linclust", "held_out_taxa": (9,), "homologs": homologs, "largest": 0.5}
    of, summary = assigned(tmp_path / "a", facts, config(valid=0.2, test=0.2, **how))
    for n, family in enumerate(some):
        if n % 3 == 0:
            assert of[family[0].key] == "test"
            assert {of[f.key] for f in family[1:]} == {"test" if homologs == "test" else None}
        else:
            assert len({of[f.key] for f in family} - {None}) <= 1
    assert summary.held_out["9"] == sum(n % 3 == 0 for n in range(len(some)))
    assert summary.held_out["homologs"] >= 3 * summary.held_out["9"]
    assert len(summary.mmseqs["searched"]) >= 2


@needs_mmseqs
@pytest.mark.parametrize("mode", ["linclust", pytest.param("cluster", marks=pytest.mark.slow)])
def test_threads_and_partitions_change_nothing(tmp_path, families, mode):
    facts = [f for family in families[:40] for f in family]
    how = config(method="cluster", mode=mode)
    of, summary = assigned(tmp_path / "first", facts, how, threads=1)
    for name, partitions, threads in (("again", 3, 1), ("more", 5, 2)):
        assert assigned(tmp_path / name, facts, how, partitions, threads) == (of, summary)


@needs_mmseqs
@pytest.mark.parametrize("mode", ["linclust", pytest.param("cluster", marks=pytest.mark.slow)])
def test_no_protein_is_lost_and_identical_ones_are_together(tmp_path, mode):
    draw = random.Random(0)
    long = "".join(draw.choices(AMINO, k=40_000))
    longer = "".join(draw.choices(AMINO, k=70_000))  # than what MMseqs2 takes whole
    whole = "".join(draw.choices(AMINO, k=300))
    families = {
        "one": ["M", "M"],
        "short": [whole[:13], whole[:13], whole[:13].lower()],
        "unknown": ["X" * 100, "X" * 100],
        "poor": ["A" * 300, "A" * 300],
        "acgt": ["ACGT" * 50, "ACGT" * 50],  # by its letters it might be DNA
        "odd": [whole, whole.lower(), whole[:99] + "*" + whole[100:], whole[:99] + "-" + whole[99:], "UOBZJ" + whole],
        "long": [long, long + "M", long[500:]],
        "longer": [longer, longer],
        "none": [None],
    }
    facts = [Facts(f"{name}-{n}", each) for name, some in families.items() for n, each in enumerate(some)]
    how = config(method="cluster", mode=mode, search=mode == "cluster", valid=0.3, test=0.3, largest=1.0)
    of, summary = assigned(tmp_path / "a", facts, how)
    assert set(of) == {f.key for f in facts}
    for name, some in families.items():
        assert len({of[f"{name}-{n}"] for n in range(len(some))}) == 1, name
    assert summary.components == len(families)
    assert summary.with_sequence == len(facts) - 1


@needs_mmseqs
def test_proteins_without_any_sequence(tmp_path):
    of, summary = assigned(tmp_path / "a", [Facts("A"), Facts("B")], config(method="cluster"))
    assert set(of) == {"A", "B"} and summary.with_sequence == 0 and summary.mmseqs == {}


@needs_mmseqs
def test_a_fragment_is_a_relative_where_the_shorter_counts(tmp_path):
    whole = "".join(random.Random(0).choices(AMINO, k=400))
    facts = [
        Facts("whole", whole),
        Facts("part", whole[100:200]),
        Facts("other", "".join(random.Random(1).choices(AMINO, k=400))),
    ]
    for coverage_mode, count in (("both", 3), ("shorter", 2)):
        how = config(method="cluster", mode="linclust", search=False, coverage_mode=coverage_mode)
        assert assigned(tmp_path / coverage_mode, facts, how)[1].components == count


@needs_mmseqs
def test_what_mmseqs_says_when_it_fails(tmp_path):
    (tmp_path / "broken.fasta").write_text("this is no FASTA file\n")
    said = r"`mmseqs createdb \.\./broken.fasta db.*failed with exit code 1 (?s:.)+input files have no entry"
    with pytest.raises(ValueError, match=said):
        Sequences(tmp_path / "broken.fasta", np.arange(1), config(), tmp_path / "work")


def test_a_summary_is_plain(tmp_path):
    told = asdict(assigned(tmp_path / "a", crowd(20), config())[1])
    assert json.loads(json.dumps(told)) == told
    assert set(told["splits"]) == set(SPLITS)


@needs_mmseqs
def test_clusters_are_named_by_their_first_key_and_lie_in_one_split(tmp_path, families):
    facts = [f for family in families[:30] for f in family]
    order = sorted(f.key for f in facts)
    found = []
    for partitions in (3, 5):
        folder = tmp_path / str(partitions)
        of, _ = assigned(folder, facts, config(method="cluster", valid=0.3, test=0.3, largest=0.5), partitions)
        tables = [Assignment.read(Place(str(folder / "out")), number) for number in range(partitions)]
        cluster = {key: tables[partition(key, partitions)].cluster(key) for key in order}
        members = {name: [key for key in order if cluster[key] == name] for name in cluster.values()}
        assert all(order[name] == keys[0] for name, keys in members.items())  # type: ignore[index]
        assert all(len({of[key] for key in keys}) == 1 for keys in members.values())
        assert 1 < len(members) < len(order) and max(map(len, members.values())) >= 3
        found.append(cluster)
    assert found[0] == found[1]
    assigned(tmp_path / "hash", facts, config())
    assert Assignment.read(Place(str(tmp_path / "hash" / "out")), 0).clusters is None
