"""What an entry of UniProt gives: names as one says them, sentences, and isoforms that are what their notes say."""

import re
from dataclasses import replace

import pytest

from data_prep.records import EntryRecord, Rejection, SequenceRecord
from data_prep.sources.files import Stream
from data_prep.sources.uniprotkb import flat
from data_prep.sources.uniprotkb.entry import Entry, Feature, outer, scientific
from data_prep.sources.uniprotkb.records import about, clean, isoforms, location, reaction, splice
from pretrain.places import Place
from pretrain.sample import About
from tests import pack

PACK = pack.PACK / "uniprot"
SEQUENCE = "MKTAYIAKQRQISFVKSHFS"
ENTRY = Entry(
    "TEST_ECOLI",
    "Reviewed",
    ("P12345", "Q99999"),
    SEQUENCE,
    (20, 2300, "0" * 16),
    description="RecName: Full=Test protein; EC=2.7.11.1; Flags: Precursor;",
    organism="Escherichia coli (strain K12).",
    taxonomy_id=("83333",),
    comments=(
        "ALTERNATIVE PRODUCTS: Event=Alternative splicing; Named isoforms=3; Name=1; IsoId=P12345-1;"
        " Sequence=Displayed; Name=2; Synonyms=b; IsoId=P12345-2, Q99999-1; Sequence=VSP_000001, VSP_000002;"
        " Name=3; IsoId=Q11111-1; Sequence=External;",
    ),
    cross_references=(("Ensembl", "ENST00000000001.1", "ENSP00000000001.1", "ENSG00000157764.14. [P12345-1]"),),
    features=(
        Feature("VAR_SEQ", 2, 4, None, "VSP_000001", {"note": "KTA -> WW (in isoform 2)"}),
        Feature("VAR_SEQ", 15, 20, None, "VSP_000002", {"note": "Missing (in isoform 2)"}),
    ),
)


@pytest.mark.skipif(not PACK.is_dir(), reason="no pack beside the checkout")
def test_isoforms_of_the_pack() -> None:
    """Each is made of the variants whose own notes name it; lengths that are published are met."""
    lengths: dict[str, int] = {}
    for _, piece in flat.pieces(Stream.open(Place(str(PACK)), "uniprot_entries.dat")):
        entry = flat.parse(piece)
        found = list(isoforms(entry, "x", "byte 0"))
        lengths |= {item.key: len(item.sequence) for item in found if isinstance(item, SequenceRecord)}
        refused = [(item.key, item.reason) for item in found if isinstance(item, Rejection)]
        assert refused in ([], [("P26367-3", "isoform_without_sequence")])
        products = " ".join(comment for comment in entry.comments if comment.startswith("ALTERNATIVE PRODUCTS"))
        for name, key in re.findall(r" Name=([^;{]+?)(?: \{[^}]*\})?;.*?IsoId=([^;, ]+)", products):
            noted = [
                feature
                for feature in entry.features
                if feature.type == "VAR_SEQ"
                and re.search(rf"isoform {re.escape(name)}(?=[,) ])", str(feature.qualifiers).replace("5- HT", "5-HT"))
            ]
            change = sum(grown(feature) for feature in noted)
            assert lengths.get(key, len(entry.sequence)) == len(entry.sequence) + change, key
    assert len(lengths) == 122
    assert (lengths["P00533-2"], lengths["P00533-3"], lengths["P00533-4"]) == (405, 705, 628)  # EGFR
    assert lengths["P26367-2"] == 436  # PAX6(5a)


def grown(feature: Feature) -> int:
    """By how many residues a splice variant lengthens the sequence."""
    note = feature.qualifiers.get("note") or feature.qualifiers["description"]
    new = re.match(r"[A-Z]+ -> ([A-Z]+)", note)
    assert isinstance(feature.begin, int) and isinstance(feature.end, int)
    return (len(new[1]) if new else 0) - (feature.end - feature.begin + 1)


@pytest.mark.parametrize(
    ("lines", "genes", "others"),
    [
        (
            [("Ensembl", "ENST00000269305.9", "ENSP00000269305.4", "ENSG00000141510.18. [P04637-1]")],
            ("ENSG00000141510",),
            ("ENST00000269305.9", "ENSP00000269305.4"),
        ),
        (
            [("EnsemblMetazoa", f"FBtr{n}", "FBpp0310518", "FBgn0260987") for n in (1, 2)],
            ("FBgn0260987",),
            ("FBtr1", "FBpp0310518", "FBtr2"),
        ),
        (
            [("EnsemblPlants", "Solyc01g005000.3.1", "-", "Solyc01g005000.3. [Q1-2]")],
            ("Solyc01g005000.3",),
            ("Solyc01g005000.3.1",),
        ),
        ([("Ensembl", "ENSG00000012048", "Homo sapiens")], ("ENSG00000012048",), ()),
        (
            [("EnsemblPlants", "AT1G01010.1", "AT1G01010.1", "AT1G01010", "Arabidopsis thaliana")],
            ("AT1G01010",),
            ("AT1G01010.1",),
        ),
        ([("GeneTree", "ENSGT00940000153")], (), ()),
    ],
)
def test_references_to_ensembl_and_its_divisions_are_kept(lines: list, genes: tuple, others: tuple) -> None:
    known = about(replace(ENTRY, cross_references=tuple(lines)))
    assert (known.genes, known.ensembl) == (genes, others)


def test_isoforms_have_accessions_of_their_own() -> None:
    sequence, known, external = isoforms(ENTRY, "x", "byte 7")
    assert sequence == SequenceRecord("P12345-2", "x", "MWW" + SEQUENCE[4:14], "byte 7")
    of = About("Test protein", "Escherichia coli (strain K12)", 83333, genes=("ENSG00000157764",))
    assert known == EntryRecord("P12345-2", "x", of, (), "byte 7")
    assert external == Rejection("isoform_without_sequence", "Q11111-1", "x", "Sequence=External", "byte 7")


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("KTT -> WW (in isoform 2)", "not what stands at 2"),
        ("KTA to WW (in isoform 2)", "says 'KTA to WW"),
    ],
)
def test_a_variant_that_does_not_fit_makes_no_isoform(note: str, said: str) -> None:
    damaged = replace(ENTRY, features=(ENTRY.features[0]._replace(qualifiers={"note": note}), ENTRY.features[1]))
    refused, _ = isoforms(damaged, "x", "byte 7")
    assert isinstance(refused, Rejection) and (refused.reason, refused.key) == ("isoform_mismatch", "P12345-2")
    assert said in refused.detail
    refused, _ = isoforms(replace(ENTRY, features=ENTRY.features[:1]), "x", "byte 7")
    assert isinstance(refused, Rejection) and "VSP_000002" in refused.detail
    with pytest.raises(ValueError, match="overlaps"):
        splice("MKTAY", [Feature("VAR_SEQ", b, 4, None, f"V{b}", {"note": "Missing"}) for b in (2, 3)])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("Cleaves X (By similarity). {ECO:0000250}.", "Cleaves X."),
        ("Binds Y (PubMed:1, PubMed:2, Ref.3).", "Binds Y."),
        ("Thr- 123, pro- and anti-apoptotic, 5- to 10-fold", "Thr-123, pro- and anti-apoptotic, 5- to 10-fold"),
        (
            "[Isoform 2]: Inhibits Z (in vitro) {ECO:0000269|PubMed:9, ECO:0000305}.",
            "[Isoform 2]: Inhibits Z (in vitro).",
        ),
    ],
)
def test_comments_lose_evidence_citations_and_line_ends(raw: str, said: str) -> None:
    assert clean(raw) == said


def test_sentences_of_structured_comments() -> None:
    assert location("Cytoplasm, cytosol. Nucleus {ECO:0000269}.") == (
        "Subcellular location: Cytoplasm, cytosol; Nucleus."
    )
    assert location("Note=Everywhere.") == "Everywhere."
    assert reaction("ATP + a protein = ADP + a phosphoprotein. {ECO:0000250}.") == (
        "ATP + a protein = ADP + a phosphoprotein."
    )
    assert reaction("[Isoform 2]: Reaction=A = B; Evidence={ECO:0000269|PubMed:1};") == (
        "Catalyzes, as isoform 2, the reaction A = B."
    )


@pytest.mark.parametrize(
    ("organism", "name"),
    [
        ("Homo sapiens (Human).", "Homo sapiens"),
        ("Escherichia coli (strain K12).", "Escherichia coli (strain K12)"),
        ("Saccharomyces cerevisiae (strain S288c) (Baker's yeast).", "Saccharomyces cerevisiae (strain S288c)"),
        ("Vaccinia virus (strain WR) (VACV) (Vaccinia (strain WR)).", "Vaccinia virus (strain WR)"),
        ("uncultured archaeon.", "uncultured archaeon"),
        ("", ""),
    ],
)
def test_scientific_names(organism: str, name: str) -> None:
    assert scientific(organism) == name


def test_bracketed_groups() -> None:
    assert outer("A(b) c (d (e)) [f]") == ("A(b) c", ("d (e)", "f"))
    assert outer("NAD(P)H oxidase") == ("NAD(P)H oxidase", ())
    assert outer("A (b))") == ("A (b))", ())
    assert outer("A" + " (b)" * 100_000)[1] == ()


@pytest.mark.parametrize(
    ("description", "known"),
    [
        (ENTRY.description, ("Test protein", False, True, ("2.7.11.1",))),
        ("SubName: Full=Some {ECO:0000313|EMBL:1}; Flags: Fragment;", ("Some", True, False, ())),
        ("RecName: Full=A; Contains: EC=1.1.1.-; EC=2.3.1.n4;", ("A", False, False, ("1.1.1.-", "2.3.1.n4"))),
        ("Thing precursor (EC 3.4.21.68) (TP) (Fragment).", ("Thing", True, True, ("3.4.21.68",))),
        ("RecName: Full=Fragment-binding precursor;", ("Fragment-binding precursor", False, False, ())),
        ("", ("", False, False, ())),
    ],
)  # fmt: skip
def test_what_a_description_says(description: str, known: tuple) -> None:
    found = about(Entry("X", "Reviewed", ("P1",), "M", (1, 1, ""), description=description))
    assert (found.name, found.fragment, found.precursor, found.ec) == known


@pytest.mark.parametrize(
    "text",
    [
        "{ECO:" * 200_000,
        "(PubMed:1, " * 100_000,
        " " * 1_000_000 + "x",
        "RecName: Full=" * 100_000,
        "IsoId=" + "a" * 1_000_000,
        "Reaction=" * 100_000,
        " (a" * 300_000 + ")" * 300_000,
    ],
    ids=lambda text: text[:9],
)
def test_long_nonsense_takes_no_long_time(text: str) -> None:
    entry = Entry("X", "Reviewed", ("P1",), "M", (1, 1, ""), description=text, organism=text)
    assert about(entry).taxon == 0 and clean(text) is not None and location(text) and reaction(text)
    comments = (f"ALTERNATIVE PRODUCTS: {text}",)
    assert not list(isoforms(Entry("X", "Reviewed", ("P1",), "M", (1, 1, ""), comments=comments), "x", ""))
