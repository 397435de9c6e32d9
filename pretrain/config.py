"""Strict configuration: TOML in, frozen pydantic models out, every unknown key an error.

A file may name one parent with `extends = "other.toml"` (relative to itself, or a shipped one; one level deep, so that
a reader opens two files at most). Overrides are dotted: `train.steps=40`. A misspelt key is never a silent default: the
error names the key that was probably meant.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import pydantic

ROOT = Path(__file__).resolve().parent
SHIPPED = (ROOT.parent / "configs", ROOT / "configs")  # a checkout's folder; a wheel carries it inside the package


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable, and closed to keys that it does not know."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


C = TypeVar("C", bound=Config)


def find(path: str | Path) -> Path:
    """The configuration at `path`, or the shipped one of that name (`amma/tiny.toml`, `configs/amma/tiny.toml`)."""
    path = Path(path)
    relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for candidate in (path, *(root / relative for root in SHIPPED)):
        if candidate.is_file():
            return candidate
    shipped = sorted(str(file.relative_to(root)) for root in SHIPPED if root.is_dir() for file in root.rglob("*.toml"))
    raise ValueError(f"no configuration file at {path}; give a path, or one of the shipped ones: {', '.join(shipped)}")


def load(kind: type[C], path: str | Path, overrides: Iterable[str] = ()) -> C:
    """Read, merge with its parent, apply overrides (`a.b=value`, in TOML syntax or a bare string), validate."""
    tree = read(find(path))
    for override in overrides:
        _override(tree, override)
    return validate(kind, tree, str(path))


def read(path: Path) -> dict[str, Any]:
    """The file's tables, its parent's underneath. Raises ValueError for bad TOML and for a parent with a parent."""
    tree = _toml(path)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise ValueError(f"{path}: extends must name one file, got {parent!r}")
    beside = path.parent / parent
    base = _toml(beside if beside.is_file() else find(parent))
    if "extends" in base:
        raise ValueError(f"{path}: extends {parent}, which itself extends {base['extends']}; one level is the limit")
    return _merge(base, tree)


def validate(kind: type[C], tree: dict[str, Any], origin: str) -> C:
    """Build `kind` from plain tables. Every problem is told with its place, what was seen and what is allowed."""
    try:
        return kind.model_validate(tree)
    except pydantic.ValidationError as error:
        lines = [_explain(kind, tree, problem) for problem in error.errors()]
        raise ValueError(f"{origin}: {len(lines)} problem(s) in the configuration:\n  " + "\n  ".join(lines)) from None


def dump(config: Config) -> dict[str, Any]:
    """Plain, JSON-ready tables that `validate` turns back into an equal configuration."""
    return config.model_dump(mode="json")


def refuse_idle(config: Config, why: str, *names: str) -> None:
    """Raises ValueError for one of the fields that is given, though nothing reads it. why: when it is not read."""
    fields = type(config).model_fields
    for name in names:
        if getattr(config, name) != fields[name].get_default(call_default_factory=True):
            raise ValueError(f"{name} does nothing {why}; leave it out")


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"no configuration file at {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merge key by key. A table whose `kind` changes replaces its parent: another kind has other keys."""
    if "kind" in over and over["kind"] != base.get("kind"):
        return over
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        out[key] = _merge(base[key], value) if both else value
    return out


def _override(tree: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"override {text!r} is not of the form a.b=value")
    *path, last = name.split(".")
    table: Any = tree
    for part in path:
        key = _key(table, part, text)
        table = table[key] if isinstance(table, list) else table.setdefault(key, {})
        if not isinstance(table, dict | list):
            raise ValueError(f"override {text!r}: {part} is a value, not a table")
    key = _key(table, last, text)
    try:
        table[key] = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        table[key] = value  # a bare string: paths and names need no quotes on a command line


def _key(table: dict[str, Any] | list[Any], part: str, text: str) -> Any:
    """A table's key, or the number of one that a list (`[[sources]]`) has."""
    if not isinstance(table, list):
        return part
    if not part.isdecimal() or int(part) >= len(table):
        raise ValueError(f"override {text!r}: {part!r} is no item of a list of {len(table)}; they are numbered from 0")
    return int(part)


def _explain(kind: type[Config], tree: dict[str, Any], problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "union_tag_not_found":
        return f"{place}: `kind` is missing, which says what this table is of; got {problem['input']!r:.120}"
    if problem["type"] != "extra_forbidden":
        said = re.sub(r"<\w+\.\w+: ('\w+')>", r"\1", problem["msg"])  # members of enumerations, by their values
        return f"{place or '(top)'}: {said}; got {problem['input']!r:.120}{_meant(problem)}"
    *above, key = map(str, problem["loc"])
    known, here = sorted(_keys(kind)), f"known keys: {', '.join(_table(kind, above))}"
    if key in known:
        return f"{place}: unknown key here; other tables have one of this name; {here}"
    close = difflib.get_close_matches(key, known, n=1)
    return f"{place}: unknown key" + (f"; did you mean {close[0]!r}?" if close else f"; {here}")


def _meant(problem: Any) -> str:
    """The close match of a value that is one of a few."""
    context = problem.get("ctx", {})
    allowed = re.findall(r"'([^']*)'", str(context.get("expected_tags") or context.get("expected") or ""))
    close = difflib.get_close_matches(str(context.get("tag") or problem["input"]), allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _table(kind: type[pydantic.BaseModel], path: Iterable[str]) -> list[str]:
    """The keys of the table at a path, whose parts are keys, `kind`s of a table that may be of several, and places in
    lists (of what they hold the keys are known without them)."""
    tables = [kind]
    for part in path:
        inside = [found for each in tables if part in (f := each.model_fields) for found in _tables(f[part].annotation)]
        chosen = [each for each in tables if "kind" in (f := each.model_fields) and f["kind"].default == part]
        tables = inside or chosen or tables
    return sorted({name for table in tables for name in table.model_fields})


def _tables(annotation: Any) -> list[type[pydantic.BaseModel]]:
    """The configuration types in an annotation, not those nested in them."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in _tables(argument)]


def _keys(kind: type[pydantic.BaseModel]) -> set[str]:
    """Every key of a configuration type and of those nested in it (for close matches; the place is printed beside)."""
    tables = [kind]
    for table in tables:  # which grows meanwhile
        inside = [found for field in table.model_fields.values() for found in _tables(field.annotation)]
        tables += [each for each in dict.fromkeys(inside) if each not in tables]
    return {name for table in tables for name in table.model_fields}
