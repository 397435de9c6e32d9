"""How the sample was drawn: the packages' own files in, this folder's files out. Run once; what it wrote is committed.

    python -m data_prep.sample.draw --biopython DIR --proteome FASTA.gz --chains DIR \\
        --go GO.sqlite --human org.Hs.eg.sqlite

biopython: the unpacked source distribution. proteome: promb's human proteome. chains: promod3-data's chains as mmCIF,
`<pdb>_<chain>.cif.gz`. go, human: the SQLite files of r-bioc-go.db and r-bioc-org.hs.eg.db. `proteins.tsv` says which
protein takes what from where; README.md says what came of it. The same input gives the same bytes.
"""

import argparse
import gzip
from collections.abc import Iterator
from pathlib import Path

import gemmi

from data_prep.sample import draw_function, draw_images

HERE = Path(__file__).parent
DBREF = "DBREF  {pdb:4} {chain:1} {first:4}  {last:4}  UNP    {accession:<8} {accession:<12} {begin:5}  {end:5}"
TITLE = "_struct.title '"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("biopython", "proteome", "chains", "go", "human"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    proteins = table(HERE / "proteins.tsv")
    for folder in ("uniprot", "structures", "go", "images"):
        (HERE / folder).mkdir(exist_ok=True)
    sequences(proteins, args.biopython / "Tests" / "SwissProt", args.proteome, args.chains)
    for protein in proteins:
        for name in protein["structures"].split():
            structure(name, args.biopython / "Tests" / "PDB", args.chains)
    rejected_structures(args.chains)
    draw_function.main(proteins, args.go, args.human, args.biopython / "Tests" / "UniProt", HERE)
    draw_images.main(proteins, args.human, HERE / "images")


def table(path: Path) -> list[dict[str, str]]:
    header, *lines = [line.split("\t") for line in path.read_text().splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def sequences(proteins: list[dict[str, str]], entries: Path, proteome: Path, chains: Path) -> None:
    """UniProt entries and FASTA records verbatim, sequences of PDB chains, and the records to be rejected."""
    known = dict(fasta(gzip.decompress(proteome.read_bytes()).decode()))
    dat, records = "", ""
    for protein in proteins:
        key, origin = protein["key"], protein["sequence"]
        if origin == "entry":
            dat += (entries / f"{key}.txt").read_text()
        elif origin == "proteome":
            records += known[key]
        elif origin:
            name = origin.removeprefix("chain:")
            text = chain(chains, name)
            letters = value(text, "_entity_poly.pdbx_seq_one_letter_code_can")
            header = f">{key} residues 1-{len(letters)} as observed in PDB {name[:4].upper()} chain {name[5:]}"
            records += f"{header}\n{fold(letters)}"
    (HERE / "uniprot" / "entries.dat").write_text(dat)
    (HERE / "uniprot" / "more.fasta").write_text(records)
    dyr, body = known["P00374"].split("\n", 1)
    header = "exercise of a reader, made from P00374: "
    (HERE / "uniprot" / "rejects.fasta").write_text(
        known["P0DPI4"]
        + f">EXERCISE_LETTERS {header}two letters replaced by signs\n{body[:20]}?{body[21:40]}1{body[41:]}"
        + f">EXERCISE_EMPTY {header}no sequence\n"
        + f"{dyr} ({header}the sequence of P00918 under this accession)\n{known['P00918'].split(chr(10), 1)[1]}"
    )


def fasta(text: str) -> Iterator[tuple[str, str]]:
    """(accession, record verbatim) of each UniProt FASTA record."""
    for record in text.lstrip(">").split("\n>"):
        yield record.split("|", 2)[1], f">{record.rstrip()}\n"


def fold(letters: str) -> str:
    return "".join(letters[i : i + 60] + "\n" for i in range(0, len(letters), 60))


def structure(name: str, biopython: Path, chains: Path) -> None:
    """One file under `structures/`: `biopython:` files verbatim, chains as mmCIF or as PDB; `.gz` as the name says."""
    name = name.removeprefix("biopython:")
    stem, plain = name.split(".", 1)[0], name.removesuffix(".gz")
    if (biopython / plain).exists():
        data = (biopython / plain).read_bytes()
    else:
        text = chain(chains, stem)
        data = (pdb(text, stem) if plain.endswith(".pdb") else text).encode()
    (HERE / "structures" / name).write_bytes(gzip.compress(data, 9, mtime=0) if name.endswith(".gz") else data)


def chain(chains: Path, name: str) -> str:
    """The chain's mmCIF, its title in the words of this sample."""
    text = gzip.decompress((chains / f"{name}.cif.gz").read_bytes()).decode()
    start = text.index(TITLE) + len(TITLE)
    return text[:start] + f"PDB entry {name[:4].upper()}, chain {name[5:]}, backbone" + text[text.index("'\n", start) :]


def value(text: str, tag: str) -> str:
    found = gemmi.cif.read_string(text)[0].find_value(tag)
    if found is None:
        raise ValueError(f"no {tag} in this mmCIF: {text[:60]!r}")
    return gemmi.cif.as_string(found)


def pdb(text: str, name: str) -> str:
    """The same chain in PDB format, with the DBREF line that `_struct_ref_seq` amounts to."""
    block = gemmi.cif.read_string(text)[0]
    model = gemmi.make_structure_from_block(block)
    numbers = [residue.seqid.num for residue in model[0][0]]
    for atom in model[0].all():
        atom.atom.b_iso = 0  # the source has none, and the format has a column for it
    line = DBREF.format(
        pdb=name[:4].upper(),
        chain=name[5:],
        first=numbers[0],
        last=numbers[-1],
        accession=value(text, "_struct_ref.pdbx_db_accession"),
        begin=int(value(text, "_struct_ref_seq.db_align_beg")),
        end=int(value(text, "_struct_ref_seq.db_align_end")),
    )
    header, atoms = model.make_pdb_string().split("ATOM  ", 1)
    rows = [row for row in header.splitlines() if not row.startswith("CRYST1")]  # the source has no unit cell
    return "\n".join([*rows, f"{line:<80}", f"ATOM  {atoms}"])


def rejected_structures(chains: Path) -> None:
    """One file for each way in which a structure file can be useless."""
    wrong = chain(chains, "3ml5_A").replace("P43166", "P00918")
    wrong = wrong.replace("backbone'", "backbone, under a wrong accession'")
    start, end = wrong.index("_struct_ref_seq.align_id"), wrong.index("_entity.id")
    files = {
        "reject_identity.cif.gz": gzip.compress((wrong[:start] + wrong[end:]).encode(), 9, mtime=0),
        "reject_no_atoms.cif": wrong[: wrong.index("loop_\n")].encode(),
        "reject_truncated.cif.gz": gzip.compress(chain(chains, "2cb8_A").encode(), 9, mtime=0)[:2000],
        "reject_empty.pdb": b"",
    }
    for name, data in files.items():
        (HERE / "structures" / name).write_bytes(data)


if __name__ == "__main__":
    main()
