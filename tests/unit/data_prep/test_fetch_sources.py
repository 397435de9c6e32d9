"""Fetching as the sources are laid out: checksum listings, accession lists, questions to an API, kinds of file."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data_prep.fetch import fetch, load
from data_prep.remote import checksums, replies
from data_prep.remote.wanted import FetchConfig, landing, plan
from data_prep.remote.web import Refused, moved
from tests.unit.data_prep.archive import Archive, Fault
from tests.unit.data_prep.test_fetch import BODY, METALINK, archive, config, direct, get, reasons, record

__all__ = ["archive", "direct"]
CIF = b"data_AF-P12345-F1\n#\n_entry.id AF-P12345-F1\n#\n"


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def metalink(data: bytes, name: str = "x.dat.gz") -> bytes:
    return METALINK.format(name=name, size=len(data), md5=md5(data)).encode()


LISTINGS = {
    "md5sum": lambda data: f"{md5(data)}  complete/x.dat.gz\n{md5(b'')}  other\n".encode(),
    "binary": lambda data: f"{md5(data)} *x.dat.gz\r\n".encode(),
    "sha256": lambda data: f"{hashlib.sha256(data).hexdigest().upper()}  ./x.dat.gz\n".encode(),
    "bsd": lambda data: f"MD5 (x.dat.gz) = {md5(data)}\n".encode(),
    "metalink": metalink,
}


@pytest.mark.parametrize("kind", LISTINGS)
def test_files_are_held_against_published_checksums(archive: Archive, tmp_path: Path, kind: str) -> None:
    data = gzip.compress(b"ID   X\n" + BODY.hex().encode())
    archive.put("/complete/x.dat.gz", data)
    archive.put("/complete/sums", LISTINGS[kind](data))
    assert get(archive, tmp_path, "complete/x.dat.gz", checksums="{base}/complete/sums").complete
    entry = record(tmp_path)["files"]["x.dat.gz"]
    assert entry["checked"] == f"{'sha256' if kind == 'sha256' else 'md5'} of {archive.url}/complete/sums"
    assert entry["release"] == ("2026_04" if kind == "metalink" else "")
    archive.put("/complete/sums", LISTINGS[kind](data + b"!"))
    report = get(archive, tmp_path / "other", "complete/x.dat.gz", checksums="{base}/complete/sums")
    assert reasons(report) == ["wrong_size" if kind == "metalink" else "wrong_checksum"]
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [".fetched.lock", "fetched.json"]


@pytest.mark.parametrize(
    ("listing", "name", "says"),
    [
        (b"", "no_listing", "empty"),
        (b"<html><body>gone", "no_listing", "cannot be read"),
        (b"<!DOCTYPE html><html><body>gone</body></html>", "no_listing", "document type, or a page"),
        (b"nothing of the kind\n", "no_listing", "no line of a checksum"),
        (b"<other/>", "no_listing", "<metalink> was expected"),
        (b'<metalink xmlns="http://www.metalinker.org/"/>', "no_listing", "no file with a checksum"),
        (b"d41d8cd98f00b204e9800998ecf8427e  y.bin\n", "unlisted", "but of y.bin"),
        (b"d41d8cd98f00b204e9800998ecf8427e  deeper/x.bin\n", "unlisted", "deeper/x.bin"),
        (
            b'<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
            b'<metalink><file name="x.bin"><hash type="md5">&b;</hash></file></metalink>',
            "no_listing",
            "document type",
        ),
        (
            b'<!DOCTYPE m [<!ENTITY x SYSTEM "file:///etc/passwd">]><metalink><file name="&x;"/></metalink>',
            "no_listing",
            "",
        ),
    ],
)
def test_a_bad_listing_is_named(archive: Archive, tmp_path: Path, listing: bytes, name: str, says: str) -> None:
    archive.put("/x.bin", BODY)
    archive.put("/sums", listing)
    report = get(archive, tmp_path, "x.bin", checksums="{base}/sums")
    assert reasons(report) == [name] and says in report.failed[0].message and "root:" not in report.failed[0].message
    assert not (tmp_path / "x.bin").exists()


def test_one_listing_serves_many_files(archive: Archive, tmp_path: Path) -> None:
    names = [f"{n}.bin" for n in range(6)]
    for name in names:
        archive.put(f"/{name}", BODY + name.encode())
    archive.put("/sums", "".join(f"{md5(BODY + name.encode())}  {name}\n" for name in names).encode(), Fault(503))
    assert get(archive, tmp_path, *names, checksums="{base}/sums").counts == {"fetched": 6}
    assert len(archive.requests("/sums")) == 2
    assert get(archive, tmp_path, *names, checksums="{base}/sums").counts == {"kept": 6}
    assert len(archive.requests("/sums")) == 2


def test_the_longest_name_in_a_listing_counts() -> None:
    one, two = md5(b"1"), md5(b"2")
    listing = checksums.parse(f"{one}  x.gz\n{two}  b/x.gz\n".encode(), "here")
    assert listing.find("http://s/a/x.gz").digests == {"md5": one}
    assert listing.find("http://s/b/x.gz?q=1").digests == {"md5": two}


def models(archive: Archive, **more: Any) -> FetchConfig:
    item = {
        "url": "{base}/files/AF-{accession}-F1-model_v{version}.cif",
        "into": "models",
        "optional": True,
        "resolve": {
            "url": "{base}/api/prediction/{accession}",
            "field": "cifUrl",
            "where": {"uniprotAccession": "{accession}"},
        },
    }
    return config(archive, **{**item, **more})


def test_accessions_of_a_version(archive: Archive, tmp_path: Path) -> None:
    for accession in ("P12345", "Q9NQ94"):
        archive.put(f"/files/AF-{accession}-F1-model_v6.cif", CIF)
    (tmp_path / "list.txt").write_text("# human\nP12345 a remark\n\nQ9NQ94\nP12345\nP00000\n")
    settings = models(archive, accessions=str(tmp_path / "list.txt")).model_copy(update={"version": "6"})
    report = fetch(settings, tmp_path / "out", quiet=True)
    assert report.complete and report.counts == {"fetched": 2, "absent": 1}
    assert (tmp_path / "out/models/AF-Q9NQ94-F1-model_v6.cif").read_bytes() == CIF
    tree = record(tmp_path / "out")
    assert tree["files"]["models/AF-P12345-F1-model_v6.cif"]["release"] == "6"
    (absent,) = tree["absent"].values()
    assert absent["accession"] == "P00000" and absent["reason"] == "not_found"
    asked = len(archive.asked)
    assert fetch(settings, tmp_path / "out", quiet=True).counts == {"kept": 2, "absent": 1}
    assert len(archive.asked) == asked, "what is not there is not asked for again"
    archive.put("/files/AF-P00000-F1-model_v6.cif", CIF)
    assert fetch(settings, tmp_path / "out", refresh=True, quiet=True).counts == {"kept": 2, "fetched": 1}
    assert not record(tmp_path / "out")["absent"]


def test_what_is_not_optional_fails(archive: Archive, tmp_path: Path) -> None:
    settings = models(archive, accessions=["P00000"], optional=False).model_copy(update={"version": "6"})
    assert reasons(fetch(settings, tmp_path, quiet=True)) == ["not_found"]


def test_the_latest_version_is_asked_for(archive: Archive, tmp_path: Path) -> None:
    def answer(accession: str, version: int) -> dict[str, str]:
        url = f"{archive.url}/files/AF-{accession}-F1-model_v{version}.cif"
        return {"uniprotAccession": accession, "cifUrl": url}

    answers = [answer("P12345", 6), answer("P12345-2", 6)]
    archive.put("/api/prediction/P12345", json.dumps(answers).encode(), Fault(503))
    archive.put("/api/prediction/P00001", b"[]")
    archive.put("/api/prediction/P00002", b'{"error": "internal"}')
    archive.put("/api/prediction/P00003", b"<html>")
    archive.put("/api/prediction/P00004", b'[{"uniprotAccession": "P00004", "cifUrl": "file:///etc/passwd"}]')
    archive.put("/api/prediction/P00005", b'[{"uniprotAccession": "P00005", "cifUrl": "/files/%2e%2e%2fx"}]')
    archive.put("/files/AF-P12345-F1-model_v6.cif", CIF)
    archive.put("/files/AF-P12345-2-F1-model_v6.cif", CIF)
    accessions = ["P12345", "P00000", "P00001", "P00002", "P00003", "P00004", "P00005"]
    settings = models(archive, accessions=accessions).model_copy(update={"version": "latest"})
    report = fetch(settings, tmp_path, quiet=True)
    assert report.counts == {"fetched": 1, "absent": 3, "failed": 3}  # an answer about others is an absence
    assert sorted(reasons(report)) == ["error_reply", "redirects", "unsafe_name"]
    (entry,) = record(tmp_path)["files"].values()
    assert entry["url"].endswith("AF-P12345-F1-model_v6.cif") and entry["ask"].endswith("/api/prediction/P12345")
    asked = len(archive.asked)
    one = models(archive, accessions=["P12345"]).model_copy(update={"version": "latest"})
    assert fetch(one, tmp_path, quiet=True).counts == {"kept": 1} and len(archive.asked) == asked
    archive.put("/api/prediction/P12345", json.dumps([answer("P12345", 7)]).encode())
    archive.put("/files/AF-P12345-F1-model_v7.cif", CIF + b"#\n")
    assert fetch(one, tmp_path, refresh=True, quiet=True).counts == {"fetched": 1}
    assert (tmp_path / "models/AF-P12345-F1-model_v7.cif").exists()
    asked = len(archive.asked)
    assert fetch(one, tmp_path, quiet=True).counts == {"kept": 1} and len(archive.asked) == asked


def test_an_answer_that_names_several_files(archive: Archive, tmp_path: Path) -> None:
    answers = [{"cifUrl": f"{archive.url}/files/AF-Q8WZ42-F{n}-model_v6.cif"} for n in (1, 2)]
    archive.put("/api/prediction/Q8WZ42", json.dumps(answers).encode())
    archive.put("/files/AF-Q8WZ42-F1-model_v6.cif", CIF)
    archive.put("/files/AF-Q8WZ42-F2-model_v6.cif", CIF, Fault(500))
    resolve = {"url": "{base}/api/prediction/{accession}", "field": "cifUrl"}
    settings = config(archive, url="", accessions=["Q8WZ42"], resolve=resolve, web={"retries": 0})
    assert fetch(settings, tmp_path, quiet=True).counts == {"fetched": 1, "failed": 1}
    assert fetch(settings, tmp_path, quiet=True).counts == {"fetched": 1, "kept": 1}
    assert fetch(settings, tmp_path, quiet=True).counts == {"kept": 2}


def test_rows_of_a_table(archive: Archive, tmp_path: Path) -> None:
    jpeg = b"\xff\xd8\xff\xe0" + BODY
    archive.put("/5910/7_C5_1_blue.jpg", jpeg)
    (tmp_path / "images.tsv").write_text("antibody\tplate\twell\tfield\tcolor\n5910\t7\tC5\t1\tblue\n")
    url = "{base}/{antibody}/{plate}_{well}_{field}_{color}.jpg"
    assert fetch(config(archive, url=url, table=str(tmp_path / "images.tsv")), tmp_path / "out", quiet=True).complete
    assert (tmp_path / "out/7_C5_1_blue.jpg").read_bytes() == jpeg


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "..", ".hidden", "a/b", "a\\b", "x.part", "fetched.json", "é", ""]
)
def test_a_name_cannot_leave_the_folder(archive: Archive, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"is no name|no accessions"):
        plan(config(archive, url="{base}/{accession}", accessions=[name] if name else []))
    with pytest.raises(Refused, match="is no name for a file here"):
        landing("in", "http://s/" + "".join(f"%{byte:02x}" for byte in name.encode()))
    with pytest.raises(ValueError, match="is no name"):
        plan(config(archive, url="{base}/{accession}", accessions=["P12345"], save=name or "{accession}/x"))


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"url": "{base}/x", "into": "../up"}, "must be a folder below"),
        ({"url": "{base}/x", "into": "/up"}, "must be a folder below"),
        ({"url": ""}, "needs a url"),
        ({"url": "{base}/{release}/x"}, "give release=… "),
        ({"url": "{base}/{version}/x"}, "give version=… "),
        ({"url": "{base}/{accession}"}, "give items.it.accessions=…"),
        ({"url": "{base}/{file}"}, "give items.it.file=…"),
        ({"url": "{base}/{acession}", "accessions": ["P1"]}, "no {acession} here, but ['accession', 'base']"),
        ({"url": "{base}/{accession}", "accessions": "nowhere.txt"}, "nowhere.txt: not a readable list"),
        ({"url": "{base}/{a}", "table": "nowhere.tsv"}, "nowhere.tsv: not a readable table"),
        ({"file": ["a/x", "b/x"]}, "would both be x"),
        ({"file": ["a", "b"], "md5": "0" * 32}, "cannot be that of many files"),
    ],
)
def test_settings_that_cannot_work_are_named(archive: Archive, item: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as error:
        plan(config(archive, **item))
    assert says in str(error.value)


def test_releases_and_versions_are_texts(tmp_path: Path) -> None:
    settings = load("fetch/uniprot.toml", ["release=2025_03"])
    assert settings.release == "2025_03"
    assert load("fetch/gene_ontology.toml", ["release=2026-08-05"]).release == "2026-08-05"
    assert load("fetch/alphafold.toml", ["version=6"]).version == "6"
    (tmp_path / "f.toml").write_text('name = "f"\nrelease = 2025_03\nitems.a.url = "http://x/y"\n')
    with pytest.raises(ValueError, match="put it in quotes"):
        load(str(tmp_path / "f.toml"))
    with pytest.raises(ValueError, match=r"no items \['sprt'\]; the configuration has \['entries'"):
        plan(settings, ("sprt",))


SHIPPED = {
    "uniprot.toml": (["release=2025_03", "items.entries.accessions=['P12345']"], 6, "uniprot_sprot-only2025_03.tar.gz"),
    "alphafold.toml": (
        ["version=6", "items.models.accessions=['P12345']", "items.errors.accessions=['P12345']"],
        6,
        "/pub/databases/alphafold/v6/UP000005640_9606_HUMAN_v6.tar",
    ),
    "gene_ontology.toml": (
        ["release=2026-08-05"],
        4,
        "https://release.geneontology.org/2026-08-05/ontology/go-basic.obo",
    ),
    "hpa.toml": (["items.images.table=TABLE"], 2, "https://images.proteinatlas.org/5910/7_C5_1_blue.jpg"),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_name_whole_addresses(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.tsv").write_text("antibody\tplate\twell\tfield\tcolor\n5910\t7\tC5\t1\tblue\n")
    overrides, count, part = SHIPPED[name]
    wanted = plan(load(f"fetch/{name}", [each.replace("TABLE", str(tmp_path / "t.tsv")) for each in overrides]))
    assert len(wanted) == count and any(part in each.url for each in wanted)
    assert all(each.url.startswith("https://") and "{" not in each.url + each.listing for each in wanted)


def test_a_place_elsewhere_takes_files_from_a_folder_here(archive: Archive, tmp_path: Path) -> None:
    archive.put("/x.bin", BODY, Fault(cut=100))
    out = f"memory://fetched{os.getpid()}"
    with pytest.raises(ValueError, match="give --parts FOLDER"):
        fetch(config(archive, file=["x.bin"]), out, quiet=True)
    assert fetch(config(archive, file=["x.bin"]), out, parts=tmp_path, quiet=True).complete
    assert fetch(config(archive, file=["x.bin"]), out, parts=tmp_path, verify=True, quiet=True).counts == {"kept": 1}
    from pretrain.places import Place

    assert Place(out).read("x.bin") == BODY and Place(out).exists("fetched.json")
    assert not list(tmp_path.glob("*.part*"))


def test_from_https_there_is_no_way_down() -> None:
    assert moved("https://a/b/c", "../d") == "https://a/d"
    assert moved("http://a/b", "https://a/b") == "https://a/b"
    with pytest.raises(Refused, match="from https to 'http://a/b'"):
        moved("https://a/b", "http://a/b")


def tar(gz: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if gz else "w") as archive:
        for name in ("a.cif.gz", "b.cif.gz"):
            info = tarfile.TarInfo(name)
            info.size = 3000
            archive.addfile(info, io.BytesIO(os.urandom(3000)))
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.tsv", BODY.hex())
    return out.getvalue()


GAF = "\t".join(["UniProtKB", "P12345", *"abcdefghijklmno"]).encode()
GOOD = {
    "a.cif": CIF,
    "a.cif.gz": gzip.compress(b"# remark\n" + CIF),
    "a.pdb": b"HEADER    HYDROLASE\n",
    "a.json": b'{"x": 1}',
    "pae.json": b'[{"predicted_aligned_error": []}]',
    "a.fasta.gz": gzip.compress(b">a\nMK\n"),
    "go.obo": b"\xef\xbb\xbfformat-version: 1.2\n",
    "a.gaf": GAF,
    "b.gaf": b"!gaf-version: 2.2\n",
    "a.tsv": b"a\tb\n",
    "a.tar": tar(),
    "a.tar.gz": tar(True),
    "a.zip": zipped(),
    "a.png": b"\x89PNG\r\n\x1a\n",
    "a.jpg": b"\xff\xd8\xff\xe0",
    "a.tif": b"II*\0",
    "noname": BODY,
}
BAD = {
    "a.cif": b"HEADER\n",
    "b.cif": b'{"detail": "Not Found"}',
    "a.json": b'{"messages": ["The accession is not valid"]}',
    "b.json": b'{"x": ',
    "a.xml": b"x",
    "a.fasta": b"MKT",
    "a.obo": b"[Term]\n",
    "a.tsv": b"a\0b",
    "b.tsv": b"<Error><Code>NoSuchKey</Code></Error>",
    "a.tar": tar()[:5000],
    "b.tar": tar()[: 2 * (512 + 3072)],
    "a.tar.gz": gzip.compress(tar()[:5000]),
    "b.tar.gz": tar(True)[:-1],
    "a.zip": zipped()[:-30],
    "b.zip": zipped()[:5000] + b"!" + zipped()[5001:],
    "a.png": b"\xff\xd8\xff\xe0",
    "a.gz": gzip.compress(b"<html>"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_files_are_is_seen(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(GOOD[name])
    replies.check(tmp_path / "file", name, "auto", thorough=True)


@pytest.mark.parametrize("name", BAD)
def test_what_files_are_not_is_seen(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(BAD[name])
    with pytest.raises(Refused) as error:
        replies.check(tmp_path / "file", name, "auto", thorough=True)
    assert error.value.reason in ("truncated", "wrong_kind", "error_reply", "html") and name in str(error.value)
