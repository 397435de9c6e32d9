"""`fourfold checkpoint`: what a run has saved, whether it is whole, and what else it can be turned into."""

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List, verify and convert a run's checkpoints.", rich_markup_mode=None)
Place = Annotated[
    str, typer.Argument(metavar="PLACE", help="A run, a folder of checkpoints, or one of them; also s3://….")
]


@app.command("ls")
def list_(place: Place) -> None:
    """List checkpoints: step, size, ranks, validation's best (of a bucket, steps only). `verify` reads them."""
    from pretrain.checkpoint import Checkpoint, Disk

    folder, steps = _find(place)
    if not isinstance(folder, Disk):  # what is in them would have to be fetched
        print("\n".join([f"{'step':>10}", *(f"{step:>10,}" for step in steps)]))
        return
    print(f"{'step':>10}  {'MB':>9}  {'ranks':>5}  best validation")
    for step in steps:
        path = folder.local(step)
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        try:
            found = Checkpoint.read(path)
        except ValueError as error:
            print(f"{step:>10,}  {size:>9,.1f}  {'?':>5}  broken: {error}")
            continue
        best = found.state.get("best") or {}
        told = f"{best['loss']:.4f} at step {best['step']:,}" if best.get("step") is not None else "-"
        print(f"{step:>10,}  {size:>9,.1f}  {found.world:>5}  {told}")


@app.command()
def verify(place: Place) -> None:
    """Read every file and compare it with what was committed. Exit code 1 if anything differs."""
    from pretrain.checkpoint import verify as check

    folder, steps = _find(place)
    broken = 0
    for step in steps:
        try:
            folder.fetch(step)
            problems = check(folder.local(step))
        except (FileNotFoundError, ValueError, KeyError) as error:
            problems = [str(error)]
        broken += bool(problems)
        print(f"{step:>10,}  {'; '.join(problems) if problems else 'whole'}")
    raise typer.Exit(1 if broken else 0)


@app.command()
def convert(
    place: Place,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A folder for checkpoints; with --weights, a file.")],
    ranks: Annotated[int | None, typer.Option(min=1, help="Write as many files as so many ranks would.")] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Write the weights alone, whole (safetensors).")] = False,
    dtype: Annotated[str | None, typer.Option(help="Of --weights: fp32 (the default), bf16 or fp16.")] = None,
    step: Annotated[int | None, typer.Option(help="This checkpoint; the newest whole one by default.")] = None,
) -> None:
    """Write a checkpoint for another number of ranks, or its weights as one file."""
    from pretrain.checkpoint import convert as to
    from pretrain.checkpoint import folder_of, whole

    if (ranks is None) == (not weights):
        raise ValueError("say what to write: --ranks N, or --weights")
    if dtype and not weights:
        raise ValueError("--dtype is of --weights; a checkpoint for --ranks stays in fp32, to be trained on")
    folder, steps = _find(place)
    if step is not None and step not in steps:
        raise ValueError(f"{folder} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    chosen = [step] if step is not None else reversed(steps)
    found = next((each for each in (whole(folder, s) for s in chosen) if each), None)
    if found is None:
        raise ValueError(f"{folder} has no checkpoint that is whole; `fourfold checkpoint verify` says what is wrong")
    if weights:
        to.consolidate(found, Path(out), dtype or "fp32")
    else:
        to.reshard(found, folder_of(out, _scratch()), ranks or 1)
    print(out)


def _find(place: str):
    """(the folder, its steps). Raises ValueError where there is no checkpoint, and for one whose name is of another."""
    from pretrain.checkpoint import Checkpoint, Disk, folder_of, folder_of_run

    path = Path(place)
    if "://" in place:
        folder = folder_of(place, _scratch())
    elif (path / "checkpoint.json").is_file():
        one, step = path.resolve(), Checkpoint.read(path).step
        folder = Disk(one.parent)
        if folder.local(step) != one:
            raise ValueError(f"{place} holds the checkpoint of step {step}: rename it to {folder.local(step).name}")
        return folder, [step]
    elif (path / "config.json").is_file() or (path / "checkpoints").is_dir():
        folder = folder_of_run(path)
    else:
        folder = Disk(path)
    steps = folder.steps()
    if not steps:
        raise ValueError(f"no checkpoint in {folder}; give a run, its folder of checkpoints, or one of them")
    return folder, steps


def _scratch() -> Path:
    """A folder of this command's own, for files on their way to a bucket or from it."""
    scratch = tempfile.mkdtemp(prefix="fourfold-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return Path(scratch)
