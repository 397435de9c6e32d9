"""The README's tree is the tree, names are nouns, files stay readable, and nothing points outside the clone.

The rule for the tree: below the heading "The tree" stands one fenced block, two spaces of indentation a level, a
path and what it is for. Every tracked file has a line, but for these:
- an `__init__.py` that holds nothing but its docstring;
- what lies below a folder that says so by being listed without children: `tests/…` folders, `data_prep/sample/`
  and `benchmarks/results/`.
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHOLE = ("benchmarks/results/", "data_prep/sample/", "pretrain/encoders/trained/")  # told of in one line
LONGEST, LONGEST_TEST = 350, 450  # lines
VAGUE = re.compile(r"(^|_)(utils?|common|helpers?|manager|factory|misc|stuff)(_|\.|$)")
ELSEWHERE = re.compile(r"(?<![\w.~/-])/(work|farm|root|home|tmp/[a-z])/")

needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    return [name for name in listed if name and (ROOT / name).is_file()]


def fenced(heading: str) -> list[str]:
    """The lines of the first fenced block below a heading of the README."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^##+ {re.escape(heading)}\n.*?^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no block below {heading!r}"
    return found[1].splitlines()


def described() -> dict[str, str]:
    """Path → what the README says of it; a folder's path ends in a slash."""
    entries: dict[str, str] = {}
    above: list[str] = []
    for line in filter(str.strip, fenced("The tree")):
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, about = line.strip().partition(" ")
        assert depth <= len(above), f"indented too far: {line!r}"
        path = "".join(above[:depth]) + name
        assert path not in entries, f"listed twice: {path}"
        entries[path] = about.strip()
        above = [*above[:depth], name]
    return entries


def expected() -> set[str]:
    paths = set()
    for name in tracked():
        path = Path(name)
        if path.name == "__init__.py" and _only_a_docstring(ROOT / path):
            continue
        if path.parts[0] == "tests" and len(path.parts) > 1:
            paths |= {"tests/"} | ({"/".join(path.parts[:2]) + "/"} if len(path.parts) > 2 else {name})
            continue
        whole = next((folder for folder in WHOLE if name.startswith(folder)), None)
        path = Path(whole or name)
        paths |= {whole or name} | {parent.as_posix() + "/" for parent in path.parents if parent != Path(".")}
    return paths


@needs_git
def test_the_readmes_tree_is_the_tree() -> None:
    listed = described()
    wanted = expected()
    assert not (missing := sorted(wanted - set(listed))), f"without a line in the README: {missing}"
    assert not (gone := sorted(set(listed) - wanted)), f"in the README only: {gone}"
    assert not [path for path, about in listed.items() if not about], "a line says what its file is for"


@needs_git
def test_names_say_what_a_file_is() -> None:
    parts = {part for name in tracked() for part in Path(name).parts}
    assert not [part for part in parts if VAGUE.search(part)]


@needs_git
def test_files_stay_readable() -> None:
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in tracked() if name.endswith(".py")}
    limits = {name: LONGEST_TEST if name.startswith("tests/") else LONGEST for name in lengths}
    assert not {name: length for name, length in lengths.items() if length > limits[name]}


@needs_git
def test_nothing_points_outside_the_clone() -> None:
    found = {}
    for name in tracked():
        try:
            text = (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue
        if match := ELSEWHERE.search(text):
            found[name] = text[match.start() : match.end() + 30]
    assert not found


def test_ci_runs_what_the_readme_tells_people_to_run() -> None:
    commands = [line.split("#")[0].strip() for line in fenced("Tests") if line.startswith("make ")]
    script = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert {"make test", "make lint"} <= set(commands) and {"make test", "make lint"} <= set(script)


def test_make_has_the_targets_that_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text())) <= targets
    assert {"demo", "test", "test-all", "lint", "bench", "clean", "help"} <= targets


def _only_a_docstring(path: Path) -> bool:
    body = ast.parse(path.read_text()).body
    return len(body) <= 1 and all(isinstance(node, ast.Expr) for node in body)
