"""What may import what, and what must import without what."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pretrain", "data_prep", "cluster")
FILES = sorted([ROOT / "fourfold.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))])
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

EVERYTHING = """
import importlib, importlib.abc, pkgutil, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("deepspeed", "ray"):
            raise ModuleNotFoundError(f"{name} is blocked here")

sys.meta_path.insert(0, Blocked())
import cluster, data_prep, fourfold, pretrain
for package in (pretrain, data_prep, cluster):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
"""


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def top(names: Iterator[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def test_the_ladder_holds() -> None:
    done = python("from importlinter.cli import lint_imports; assert lint_imports(no_cache=True, no_logo=True) == 0")
    assert "0 broken" in done


def test_every_module_imports_where_deepspeed_and_ray_are_absent() -> None:
    found = python(EVERYTHING).split()
    assert {"pretrain.sample", "cluster.cli"} <= set(found) and len(found) > 20


@pytest.mark.parametrize(
    "module", ["pretrain.sample", "pretrain.config", "pretrain.data.dataset", "cluster.cli", "cluster.runs"]
)
def test_what_a_worker_or_a_help_page_imports_never_loads_torch(module: str) -> None:
    loaded = python(f"import sys, {module}; print(*sys.modules)").split()
    assert not {"torch", "transformers", "ray", "deepspeed", "scipy"} & set(loaded)


def test_deepspeed_is_imported_in_the_engine_alone_and_inside_functions() -> None:
    assert [file.relative_to(ROOT).as_posix() for file in FILES if "deepspeed" in top(imports(parse(file)))] == [
        "pretrain/engine.py"
    ]


@pytest.mark.parametrize("library", ["deepspeed", "ray"])
def test_heavy_libraries_are_imported_inside_functions(library: str) -> None:
    for file in FILES:
        for node in parse(file).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert library not in top(imports(node)) or _for_types_only(node), f"{file}:{node.lineno}"


def test_ray_is_imported_in_data_prep_alone() -> None:
    using = {file.relative_to(ROOT).parts[0] for file in FILES if "ray" in top(imports(parse(file)))}
    assert using <= {"data_prep"}


def test_the_front_door_knows_nothing_of_places_to_run() -> None:
    assert top(imports(parse(ROOT / "fourfold.py"))) - set(sys.stdlib_module_names) == {"pretrain", "data_prep"}


def test_third_party_imports_are_declared_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    declared = {_normal(name.split(">=")[0].split("==")[0].split("[")[0]) for name in names}
    owners = metadata.packages_distributions()
    missing = {}
    for file in FILES:
        for name in top(imports(parse(file))) - set(sys.stdlib_module_names) - {*PACKAGES, "fourfold"}:
            if not declared & {_normal(owner) for owner in owners.get(name, [name])}:
                missing[name] = file.relative_to(ROOT).as_posix()
    assert not missing


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_nothing_that_runs_what_it_reads(file: Path) -> None:
    """No pickle by any name, no eval or exec, no loader that may unpickle."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in PICKLES, f"{file.name}:{node.lineno}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in PICKLES:
            assert node.attr == "UnpicklingError", f"{file.name}:{node.lineno}"  # to name what torch.load refuses
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        place = f"{file.name}:{node.lineno}: {called}"
        assert called not in ("eval", "exec", "__import__"), place
        assert called != "torch.load" or keywords.get("weights_only") == "True", place
        assert keywords.get("allow_pickle", "False") == "False", place
        assert keywords.get("trust_remote_code", "False") == "False", place


def _for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")
