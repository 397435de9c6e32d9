"""Looking at one protein: found by its key, told as text, drawn as a ribbon, shown on a page that fetches nothing."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from data_prep import shards
from data_prep.ontology import Ontology, OntologyTerm
from data_prep.proteins import read
from data_prep.shards import Manifest
from data_prep.spill import partition
from data_prep.views import portrait, ribbon
from data_prep.views.lookup import Found, find
from data_prep.views.poster import landing, poster, snapshot
from data_prep.views.sheet import coverage, sheet
from pretrain.places import Place
from pretrain.sample import About, CorruptSample, Function, Image, Sample, Structure, Term, Text
from tests.pack import PACK

ROOT = Path(__file__).resolve().parents[3]
CHAIN = ROOT / "data_prep" / "sample" / "structures" / "1fm0_A.cif.gz"
TERMS = Ontology("r", {"GO:0000001": OntologyTerm("<b>zinc</b> ion binding", "molecular_function")})


def png(channels: int = 3, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], channels), dtype=np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


@pytest.fixture(scope="module")
def chain() -> Structure:
    return read(CHAIN)[0].structures[0]


@pytest.fixture(scope="module")
def sample(chain: Structure) -> Sample:
    sequence = "MA" + chain.letters + "GG"
    moved = replace(chain, residue=chain.residue - chain.residue[0] + 2, identity=0.9)
    letters = ("W" if moved.letters[0] != "W" else "A") + moved.letters[1:]
    model = replace(
        moved,
        id="AF-P1-F1",
        letters=letters,
        confidence=np.linspace(20, 99, len(chain), dtype=np.float32),
        pae=np.full((len(chain), len(chain)), 7, dtype=np.uint8),
        states="D" * len(chain),
    )
    function = Function(
        (Term("GO:0000001", "IDA"), Term("GO:0000001", "IEA"), Term("GO:0000002", "IEA")),
        (Text("Binds <zinc> & more.\nSecond line.", "uniprot:function"),),
    )
    image = Image("<i>", png(), ("protein", "nucleus", "microtubules"), antibody="HPA1", cell_line="U-2 OS")
    about = About(name='Molybdopterin "synthase"', organism="Homo sapiens", taxon=9606, ec=("2.8.1.12",), fragment=True)
    return Sample("P1", sequence, (model, replace(moved, resolution=1.9)), function, (image,), about)


def found(sample: Sample) -> Found:
    return Found(sample, "mine", "train", "sequence_structure_function_image", "train/x/00000.tar", 512, 1024)


def test_helices_and_strands_are_found(chain: Structure) -> None:
    """MoaD (1fm0, chain D's partner fold): two long helices packed on a sheet of five strands."""
    trace = chain.coordinates[:, 1].astype(float)
    kinds = ribbon.secondary(trace, np.ones(len(trace) - 1, dtype=bool))
    runs = [(int(run[0]), len(run)) for run in np.split(kinds, np.flatnonzero(np.diff(kinds)) + 1)]
    assert sum(kind == ribbon.HELIX and length >= 8 for kind, length in runs) == 2
    assert 4 <= sum(kind == ribbon.STRAND for kind, _ in runs) <= 6
    assert (kinds == ribbon.COIL).mean() < 0.5


def test_an_ideal_helix_is_one_and_its_mirror_image_is_not() -> None:
    turn = np.radians(100 * np.arange(20))
    helix: ribbon.Floats = np.stack(
        [2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(20)], axis=1, dtype=np.float64
    )
    bonded = np.ones(19, dtype=bool)
    assert (ribbon.secondary(helix, bonded) == ribbon.HELIX).all()
    assert not (ribbon.secondary(helix * [1, 1, -1], bonded) == ribbon.HELIX).any()
    bonded[10] = False
    assert (ribbon.secondary(helix, bonded) == ribbon.HELIX).all()


def test_an_extended_chain_alone_is_no_strand() -> None:
    at = np.arange(30.0)
    alone = np.stack([3.3 * at, 0.9 * (-1) ** at, np.zeros(30)], axis=1)
    bonded = np.ones(29, dtype=bool)
    assert not ribbon.secondary(alone, bonded).any()
    beside = np.concatenate([alone, alone[::-1] + np.array([0, 4.8, 0])])
    bonded = np.ones(59, dtype=bool)
    bonded[29] = False
    assert (ribbon.secondary(beside, bonded) == ribbon.STRAND).mean() > 0.8


def test_the_view_is_along_the_axes_and_never_mirrored(chain: Structure) -> None:
    trace = chain.coordinates[:, 1].astype(float)
    view = ribbon.turned(trace)
    spread = view.std(axis=0)
    assert spread[0] >= spread[1] >= spread[2] and np.allclose(view.mean(axis=0), 0, atol=1e-6)
    volume = [np.linalg.det(points[[10, 20, 30]] - points[0]) for points in (trace, view)]
    assert np.isclose(*volume)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    assert np.allclose(ribbon.turned(trace @ turn.T + 5), view, atol=1e-6), "however the file has it"


def test_gaps_are_not_bridged(chain: Structure) -> None:
    mask = chain.mask.copy()
    mask[30:35, 1] = False
    drawn = ribbon.ribbon(replace(chain, mask=mask))
    assert len(drawn.gaps) == 1 and not set(range(30, 35)) & set(drawn.residue.tolist())
    length = np.linalg.norm(drawn.corners[:, 1] - drawn.corners[:, 0], axis=1)
    assert length.max() < 4.5, "no face reaches across"
    assert len(ribbon.ribbon(chain).gaps) == 0


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_short_chains_can_be_drawn(chain: Structure, count: int) -> None:
    part = replace(
        chain,
        coordinates=chain.coordinates[:count],
        mask=chain.mask[:count],
        residue=chain.residue[:count] * [1, 2, 2, 1, 1, 1][:count] if count == 2 else chain.residue[:count],
        letters=chain.letters[:count],
    )
    assert size_of(portrait.structure(part)) == (1040, 840)
    alone = np.zeros_like(part.mask)
    alone[0] = True
    with pytest.raises(ValueError, match="1 CA atoms; nothing to draw"):
        portrait.structure(replace(part, mask=alone))


def test_a_long_chain_has_no_more_faces_than_a_picture_needs(chain: Structure) -> None:
    at = np.arange(6000)
    coil = np.stack([30 * np.cos(at / 9), 30 * np.sin(at / 9), at * 0.5], axis=1)[:, None].repeat(3, axis=1)
    residue, mask = at.astype(np.int32), np.ones((6000, 3), dtype=bool)
    drawn = ribbon.ribbon(Structure("long", coil.astype(np.float32), mask, residue, "A" * 6000))
    assert len(drawn.corners) < 6000 * 2 * ribbon.FACES and np.isfinite(drawn.corners).all()


def size_of(data: bytes) -> tuple[int, int]:
    with PIL.Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return image.size


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_a_picture_shows_the_chain_in_its_colours(sample: Sample) -> None:
    model, experiment = sample.structures
    first, second = portrait.structure(model), portrait.structure(experiment)
    assert first == portrait.structure(model) and size_of(first) == size_of(second) == (1040, 840)
    drawn = pixels(first)[:740]
    inked = (drawn.min(axis=2) < 250).mean()
    assert 0.08 < inked < 0.6, "there is something, and ground around it"
    edge = np.concatenate([drawn[:3].reshape(-1, 3), drawn[:, :3].reshape(-1, 3), drawn[:, -3:].reshape(-1, 3)])
    assert (edge > 250).all(), "nothing is cut off"
    blue, orange = ((drawn[..., 2] - drawn[..., 0] > 120).mean(), (drawn[..., 0] - drawn[..., 2] > 90).mean())
    assert blue > 0.001 and orange > 0.01, "very high and very low confidence"
    rainbow = portrait.colors(experiment)
    assert rainbow[0, 2] > rainbow[0, 0] and rainbow[-1, 0] > rainbow[-1, 2]
    assert np.allclose(portrait.colors(model)[-1], np.array([0x00, 0x53, 0xD6]) / 255)


def test_what_is_near_is_bolder_than_what_is_far() -> None:
    """Four equal rods, two near, two far. A frame of single residues fixes the view."""
    at = np.arange(12)
    places = ((12, -10), (-12, -10), (4, 10), (-4, 10))
    rods = [np.stack([3.8 * at - 21, np.full(12, y), np.full(12, z)], axis=1) for y, z in places]
    trace = np.concatenate([*rods, [[-75, 0, 0], [75, 0, 0], [0, 40, 0], [0, -40, 0]]])
    residue = np.array([*(n + 20 * rod for rod in range(4) for n in range(12)), 80, 90, 100, 110], dtype=np.int32)
    atoms, mask = trace[:, None].repeat(3, axis=1).astype(np.float32), np.ones((52, 3), dtype=bool)
    chain = Structure("rods", atoms, mask, residue, "A" * 52, confidence=np.full(52, 99, dtype=np.float32))
    drawn = ribbon.ribbon(chain)
    outer = drawn.corners[drawn.residue < 24][..., 2].mean()
    inner = drawn.corners[(drawn.residue >= 24) & (drawn.residue < 48)][..., 2].mean()
    assert abs(outer - inner) > 15
    shown = pixels(portrait.structure(chain))[100:640, 400:640]
    rows = np.flatnonzero((shown.min(axis=2) < 235).mean(axis=1) > 0.9)
    rods_seen = np.split(rows, np.flatnonzero(np.diff(rows) > 3) + 1)
    assert len(rods_seen) == 4
    tone = [shown[rod].mean() for rod in rods_seen]
    outside, inside = (tone[0] + tone[3]) / 2, (tone[1] + tone[2]) / 2
    assert (outside - inside) * (inner - outer) > 0 and abs(outside - inside) > 30


def test_channels_are_stretched_and_put_together() -> None:
    image = Image("i", png(3, (400, 100)), ("protein", "nucleus", "microtubules"))
    planes = portrait.channels(image)
    assert [name for name, _ in planes] == ["together", "protein", "nucleus", "microtubules"]
    assert {size_of(data) for _, data in planes} == {(256, 64)}
    protein = pixels(planes[1][1])
    assert protein[..., 1].max() == 255 and protein[..., 0].mean() < protein[..., 1].mean() / 1.5
    alone = portrait.channels(Image("i", grey(), ("protein",)))
    assert [name for name, _ in alone] == ["protein"]
    with pytest.raises(OSError, match="cannot identify"):
        portrait.channels(Image("i", b"nothing", ("protein",)))


def grey() -> bytes:
    out = io.BytesIO()
    PIL.Image.new("L", (10, 10), 7).save(out, "png")
    return out.getvalue()


def test_the_sheet_tells_everything(sample: Sample) -> None:
    lines = list(sheet(found(sample), TERMS, 80))
    text = "\n".join(lines)
    assert lines[0] == "P1  sequence + structure + function + image" and max(map(len, lines)) <= 80
    for part in (
        "train split of mine; train/x/00000.tar, bytes 512–1,536",
        'name           Molybdopterin "synthase"',
        "organism       Homo sapiens (9606)",
        "sequence of a  fragment",
        "EC             2.8.1.12",
        "sequence  85 residues",
        "AF-P1-F1: 81 of 85 residues (3–83, 95%); identity 90.0%; pLDDT 59.5",
        "expected error 7.0 Å",
        "3Di DDDD",
        "1.90 Å",
        "GO:0000001  <b>zinc</b> ion binding  [IDA, IEA]",
        "  not in ontology.json\n    GO:0000002    [IEA]",
        "  uniprot:function\n    Binds <zinc> & more.\n    Second line.",
        "<i>: protein, nucleus, microtubules; without ER; antibody HPA1; cells U-2 OS",
    ):
        assert part in text, part
    track = coverage(sample.structures[0], sample.sequence or "")
    assert track[:3] == "··×" and track[3] == "▂" and track[-3:] == "█··" and len(track) == 85
    rows = [line.split(None, 1)[1].replace(" ", "") for line in lines if re.match(r"  +\d+ [A-Z]{10}", line)]
    assert "".join(rows) == sample.sequence


def test_a_bare_protein_has_a_bare_sheet() -> None:
    bare = Sample("x", "MKT")
    assert list(sheet(found(bare), Ontology(), 60))[2:] == ["", "sequence  3 residues", "  1 MKT"]
    with pytest.raises(ValueError, match="x has neither structure nor image"):
        snapshot(bare)
    assert "<h2>Structure" not in poster(found(bare), Ontology())


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_the_page_stands_alone_and_escapes_what_it_is_told(sample: Sample) -> None:
    text = poster(found(sample), TERMS)
    page = Page()
    page.feed(text)
    assert all(link.startswith("data:image/png;base64,") for link in page.links) and "script" not in page.tags
    assert not re.findall(r"url\(|@import|https?://", re.sub(r"base64,[^\"]+", "", text))
    assert page.tags.count("img") == 2 + 1 + 4
    assert (
        "Binds &lt;zinc&gt; &amp; more." in text and "&lt;b&gt;zinc&lt;/b&gt;" in text and "&lt;i&gt;: protein" in text
    )
    assert "Molybdopterin &quot;synthase&quot;" in text and text == poster(found(sample), TERMS)
    letters = re.sub(r"<[^>]+>|\s|\d", "", re.findall(r'<pre class="letters">(.*?)</pre>', text, re.DOTALL)[-1])
    assert letters == sample.sequence and text.count("<u>") == 1


def test_an_image_that_cannot_be_read_does_not_hide_the_rest(sample: Sample) -> None:
    broken = replace(sample, images=(replace(sample.images[0], data=b"no"), sample.images[0]))
    text = poster(found(broken), TERMS)
    assert "It cannot be read" in text and text.count("<img") == 2 + 1 + 4


@pytest.fixture
def data(tmp_path: Path, sample: Sample) -> Place:
    keys = ["P12345", "P12346", "Q9NQ94", "pdb_1fm0_A"]
    by: dict[int, list[str]] = {}
    for key in sorted(keys):
        by.setdefault(partition(key, 3), []).append(key)
    written = [
        shards.write(tmp_path, "train", number, [replace(sample, key=key) for key in some])
        for number, some in by.items()
    ]
    manifest = Manifest("mine", 3, shards.tree(written), shards.totals(written), {}, {}, {}, [], {}, {}, "", {}, {})
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    (tmp_path / "ontology.json").write_bytes(TERMS.to_bytes())
    return Place(str(tmp_path))


def test_a_protein_is_found_by_its_key(data: Place) -> None:
    for key in ("P12345", "P12346", "Q9NQ94", "pdb_1fm0_A"):
        there = find(data, key)
        assert there.sample.key == key and there.name == "mine"
        assert data.read(there.shard, there.offset, 512).startswith(f"{key}.safetensors".encode())


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("p12345", "did you mean P12345"),
        ("P1234", "did you mean P12345, P12346"),
        ("1FM0", "did you mean pdb_1fm0_A"),
        ("QQNQ94", "did you mean Q9NQ94"),
        ("xyz", "no key in it is like that"),
        ("", "no key in it is like that"),
    ],
)
def test_a_key_that_is_not_there_names_those_like_it(data: Place, key: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"no protein .* among 4; ") as error:
        find(data, key)
    assert says in str(error.value)


def test_damage_is_named_with_the_way_on(data: Place) -> None:
    there = find(data, "P12345")
    assert data.local
    path = data.local / there.shard
    broken = bytearray(path.read_bytes())
    broken[there.offset + 600] ^= 1
    path.write_bytes(broken)
    with pytest.raises(CorruptSample, match="P12345: its bytes fail their checksum; `fourfold validate` tells more"):
        find(data, "P12345")


def test_pictures_of_the_packs_models() -> None:
    folder = PACK / "afdb"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    for name in ("AF-A5A605-F1-model_v6.pdb.gz", "AF-O14746-F1-model_v4.pdb.gz"):
        (model,) = read(folder / name)[0].structures
        assert model.confidence is not None and size_of(portrait.structure(model)) == (1040, 840)


def test_where_a_page_goes(tmp_path: Path) -> None:
    assert landing(tmp_path, "P1", ".html") == tmp_path / "P1.html"
    assert landing(tmp_path / "x.html", "P1", ".html") == tmp_path / "x.html"
