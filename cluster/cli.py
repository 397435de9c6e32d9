"""The `fourfold` command: a verb for each thing one does. A verb imports what it needs when it runs: help is quick."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster import checkpoints

if TYPE_CHECKING:
    from data_prep.prepare import PrepareConfig
    from pretrain.embeddings import Embeddings, Hit
    from pretrain.inference import Exported

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pretrain multimodal protein models: sequence, structure, function and image, any of them absent.",
)

app.add_typer(checkpoints.app, name="checkpoint")

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="A TOML file, or a shipped one: amma/tiny.toml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[A.B=VALUE]…", help="Settings that replace the file's.")
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An exported model's folder.")]

TASKS = "Ray tasks at a time; 0 does without Ray. With --address, the most of the cluster's; 0 is no limit."
ACTORS = "Ray actors, 2 by default; 0 does without Ray. With --address, the most of the cluster's; by default no limit."
ADDRESS = "An existing Ray cluster that sees the data: auto, or its address. It is used whatever --workers says."


@app.command()
def prepare(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="The data set's folder or URL; runs/NAME by default.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help=TASKS)] = None,
    address: Annotated[str | None, typer.Option(help=ADDRESS)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be read.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it would cost, by reading a part.")] = False,
    expect: Annotated[
        list[str] | None, typer.Option(metavar="KIND=N", help="With --plan: records of a source when it is whole.")
    ] = None,
    residues: Annotated[float, typer.Option(min=0, help="With --plan: their mean length, if the part differs.")] = 0,
) -> None:
    """Turn raw public files into shards."""
    from data_prep.prepare import PrepareConfig
    from data_prep.prepare import prepare as write
    from pretrain.config import load

    given = {"workers": workers, "address": address}
    more = [f"{name}={value}" for name, value in given.items() if value is not None]
    loaded = load(PrepareConfig, config, [*(overrides or []), *more])
    if loaded.address and "workers" not in loaded.model_fields_set:
        loaded = loaded.model_copy(update={"workers": 0})  # the default is for one machine: it would be a limit there
    if (expect or residues) and not plan:
        raise ValueError("--expect and --residues belong to --plan, which only estimates: add it, or leave them out")
    if dry_run or plan:
        _foresee(loaded, plan, expect or [], residues)
        return
    folder = out or f"runs/{loaded.name}"
    manifest = write(loaded, folder)
    for split, groups in manifest.splits.items():
        for name, group in groups.items():
            print(f"{group['samples']:>10,}  {split:5}  {name.replace('_', ' + ')}")
    for reason, count in manifest.rejected.items():
        print(f"{count:>10,}  rejected: {reason.replace('_', ' ')}")
    print(folder)


@app.command()
def fetch(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="The folder to fetch to; also s3://…, with --parts.")] = "raw",
    only: Annotated[list[str] | None, typer.Option(help="This item of the configuration; may be repeated.")] = None,
    parts: Annotated[Path | None, typer.Option(help="Where unfinished files grow; OUT by default.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash of what is there already.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask whether the source has changed.")] = False,
) -> None:
    """Download releases or lists of accessions from the public sources; go on where an earlier run was stopped."""
    from data_prep.fetch import fetch as bring
    from data_prep.fetch import load

    report = bring(load(config, overrides or []), out, tuple(only or ()), parts, verify, refresh)
    for line in report.lines():
        print(line)
    raise typer.Exit(0 if report.complete else 1)


@app.command()
def validate(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data set: a folder, or s3://….")],
    workers: Annotated[int, typer.Option(min=0, help=TASKS)] = 0,
    address: Annotated[str | None, typer.Option(help=ADDRESS)] = None,
) -> None:
    """Read a data set whole: every hash, every sample, every count. Exit code 1 if anything is damaged."""
    from data_prep.validate import validate as read

    found = read(data, workers, address)
    for line in found.lines():
        print(line)
    raise typer.Exit(1 if found.damage else 0)


@app.command()
def encode(
    config: ConfigFile,
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option(help="The data set; the configuration's data.path by default.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help=ACTORS)] = None,
    address: Annotated[str | None, typer.Option(help=ADDRESS)] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Residues, word pieces or patches of a batch.")] = None,
) -> None:
    """Store what a training configuration's frozen encoders make of its data set; training then reads it."""
    from data_prep.encode import EncodeConfig, check
    from data_prep.encode import run as store
    from pretrain.places import Place

    asked = EncodeConfig(run=config, overrides=tuple(overrides or ()), **({"tokens": tokens} if tokens else {}))
    place = Place(data or str(check(asked).data.path))
    for each in store(place, asked, (0 if address else 2) if workers is None else workers, address):
        print(f"{each.rows:>12,} rows, {each.bytes / 1e6:,.1f} MB  {each.modality:9}  {place}/{each.folder}")
        print(f"{'':12} {each.files - each.fresh:,} of {each.files:,} files were there and hold")
        for name in each.unread:
            print(f"{'':12} could not be read: {name}")


@app.command()
def inspect(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data set: a folder, or s3://….")],
    key: Annotated[str, typer.Argument(help="A protein's key: its accession.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures: a file, or a folder for it.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture of its structure or image.")] = None,
) -> None:
    """Show one protein of a data set."""
    import shutil

    from data_prep import ontology
    from data_prep.views.lookup import find
    from data_prep.views.sheet import sheet
    from pretrain.places import Place

    place = Place(data)
    found, terms, written = find(place, key), ontology.read(place), list[Path]()
    if html or png:  # before anything is printed: whoever reads that may stop, as `head` does
        from data_prep.views.poster import landing, poster, snapshot

        if html:
            written.append(landing(html, key, ".html"))
            written[-1].write_text(poster(found, terms), encoding="utf-8")
        if png:
            written.append(landing(png, key, ".png"))
            written[-1].write_bytes(snapshot(found.sample))
    for line in sheet(found, terms, max(min(shutil.get_terminal_size((100, 24)).columns, 120), 40)):
        print(line)
    for path in written:
        print(path)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Processes on this machine; one a GPU by default.")] = None,
    hostfile: Annotated[Path | None, typer.Option(help="Train on these hosts (`name slots=N` a line).")] = None,
) -> None:
    """Train a model, or go on with a run that was stopped."""
    from cluster.launch import Local, Ssh, command, ending, run
    from pretrain.config import load
    from pretrain.run import RunConfig

    if ranks and hostfile:
        raise ValueError("--ranks counts processes on this machine and --hostfile names others: give one of them")
    load(RunConfig, config, overrides or [])  # a mistake is told once and here, not by every rank
    place = Ssh(hostfile=hostfile) if hostfile else Local(ranks=ranks)
    code = run(command(place, config, overrides or []))
    if code not in (0, 2):  # 2: a rank has said what was wrong
        print(f"error: training ended with {ending(code)}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, or a folder with runs below it.")] = Path(
        "runs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, with everything, instead of a table.")] = False,
) -> None:
    """List runs: what became of each, how far it is, what it is worth so far."""
    import json

    from cluster import runs as listing

    found = listing.find(folder)
    if as_json:
        print(json.dumps([run.json() for run in found], indent=1))
        return
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=240)
    if found:
        console.print(listing.table(found, console.width))
    else:
        print(f"no runs below {folder}")
    for line in listing.details(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    checkpoint: Annotated[
        str, typer.Option(metavar="last|best|STEP", help="Which one; `best`: at validation.")
    ] = "last",
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the stored weights; bfloat16 halves the file.")
    ] = "float32",
) -> None:
    """Write a run's checkpoint as a compact model."""
    from pretrain.export import export as write

    print(write(run, out, dtype=dtype, checkpoint=checkpoint))


@app.command()
def embed(
    model: Model,
    proteins: Annotated[Path, typer.Argument(help="A FASTA file, a structure, a folder of them, or a data set.")],
    result: Annotated[Path, typer.Argument(help="The file to write (safetensors).")],
    per_residue: Annotated[bool, typer.Option("--per-residue", help="Keep an embedding of every residue too.")] = False,
) -> None:
    """Embed proteins."""
    from data_prep.proteins import read
    from pretrain.inference import load

    embeddings = load(model).embed(read(proteins), per_residue=per_residue)
    embeddings.save(result)
    print(f"{len(embeddings):,} proteins, {embeddings.fused.shape[1]} numbers each: {result}")


@app.command()
def search(
    model: Model,
    proteins: Annotated[Path, typer.Argument(help="What `embed` wrote, or anything that it reads.")],
    queries: Annotated[list[str], typer.Argument(help="Texts, keys of the proteins, sequences, or files of proteins.")],
    top: Annotated[int, typer.Option(min=1, help="How many to show.")] = 10,
    by: Annotated[list[str] | None, typer.Option(help="Compare with this modality of the proteins only.")] = None,
) -> None:
    """Rank proteins for a text or for a protein."""
    from data_prep.proteins import read
    from pretrain.embeddings import Embeddings
    from pretrain.inference import load

    loaded = load(model)
    embeddings = Embeddings.load(proteins) if proteins.suffix == ".safetensors" else loaded.embed(read(proteins))
    for query in queries:
        for name, hits in _search(loaded, embeddings, query, top, by):
            print(f"# {name}")
            for rank, hit in enumerate(hits, 1):
                print(f"{rank}\t{hit.key}\t{hit.score:.4f}")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Where everything goes; what an earlier demo left there is replaced.")
    ] = Path("runs/demo"),
) -> None:
    """Watch it all work on a small sample of real proteins, in about five minutes on two cores."""
    from cluster.demo import demo as run

    raise typer.Exit(run(out))


@app.command()
def version() -> None:
    """Print the versions of Fourfold and of what it stands on."""
    from importlib import metadata

    for name in ("fourfold", "torch", "deepspeed", "ray", "transformers", "torch-geometric"):
        print(f"{name} {metadata.version(name)}")


def _foresee(config: "PrepareConfig", plan: bool, expect: list[str], residues: float) -> None:
    """What a preparation would read, and with `plan` what it would cost."""
    from rich.console import Console

    from data_prep import estimate

    console = Console()
    console.print(estimate.listed(estimate.dry_run(config)))
    if plan:
        try:
            wanted = {kind: float(number) for kind, _, number in (each.partition("=") for each in expect)}
        except ValueError:
            raise ValueError(
                f"--expect {' '.join(expect)}: give a source's kind and a number, structures=214e6"
            ) from None
        for part in estimate.told(estimate.plan(config, expect=wanted, residues=residues), config):
            console.print(part)


def _search(
    model: "Exported", embeddings: "Embeddings", query: str, top: int, by: list[str] | None
) -> "list[tuple[str, list[Hit]]]":
    """(what was searched for, hits) of one query, or of each protein in the file that it names."""
    from data_prep.proteins import read
    from pretrain.sample import Modality, Sample

    try:
        chosen = [Modality(name) for name in by] if by else None
    except ValueError:
        raise ValueError(f"--by {' '.join(by or [])}: the modalities are {', '.join(Modality)}") from None
    if query in embeddings.keys:
        i = embeddings.keys.index(query)
        vectors = {m: rows[i] for m, rows in embeddings.alone.items() if embeddings.present[m][i]}
        return [(query, embeddings.nearest(vectors, top, chosen))]
    if Path(query).exists():
        return [(sample.key, model.search(sample, embeddings, top, chosen)) for sample in read(query)]
    if len(query) >= 20 and query.isalpha() and query.isupper():
        return [(query, model.search(Sample("query", sequence=query), embeddings, top, chosen))]
    return [(query, model.search(query, embeddings, top, chosen))]


def main() -> None:
    """Run the command. A mistake in what was asked for is one message and exit code 2, not a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        print("interrupted; what is done stays done: the same command goes on", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if os.environ.get("FOURFOLD_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
