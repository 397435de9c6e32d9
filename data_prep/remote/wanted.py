"""What is to be fetched: a configuration's items and its lists of accessions, as one address and one path a file.

Names from lists and from servers become parts of addresses (quoted) and of paths (letters, digits and `._-` alone), so
that no list can write outside the folder.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

import pydantic

from data_prep.remote.replies import Kind
from data_prep.remote.web import Refused, WebConfig
from pretrain.config import Config

FIELD = re.compile(r"\{(\w*)\}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
OURS = re.compile(r"(\.part|\.part\.json)$|^fetched\.json$", re.IGNORECASE)
LATEST = "latest"


def _text(value: Any) -> Any:
    """`version = 6` and `release = 2026-08-05` mean text. 2025_03 without quotes is the number 202503 to TOML."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool):
        if value > 9999:
            raise ValueError("a number; put it in quotes, as in '2025_03'")
        return str(value)
    return value


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Text = Annotated[str, pydantic.BeforeValidator(_text)]
Names = Annotated[tuple[str, ...], pydantic.BeforeValidator(_names)]


class ResolveConfig(Config):
    """A question to an archive whose JSON answer holds the address of a file.

    url: the question, a template. field: the answer's key that holds the address; of a list of answers, each one's.
    where: keys that an answer must have, with these values (templates): AlphaFold DB answers with isoforms too.
    """

    url: str
    field: str
    where: dict[str, str] = pydantic.Field(default_factory=dict)


class ItemConfig(Config):
    """Files of one kind from one source.

    url: a template with {base}, {release}, {version}, {file}, {accession}, and the columns of `table`.
    base: in the place of the configuration's. file: one or several, templates themselves. accessions: a list, or a file
    with one a line. table: a file with a header, tabs or (`.csv`) commas between columns; a file for each row.
    into: the folder, below the one that is fetched to. save: the file's name, a template; the address's last part by
    default. sha256, md5: of a single file. checksums: address (a template) of a listing that has the file.
    kind: what it holds, once decompressed; by its name where `auto`. optional: 404 and 410 are counted, not a failure.
    resolve: ask for the address; with a `url` that has {version}, only for version = "latest".
    licence: for the record.
    """

    url: str = ""
    base: str = ""
    file: Names = ()
    accessions: str | tuple[str, ...] = ()
    table: str = ""
    into: str = "."
    save: str = ""
    sha256: str = pydantic.Field(default="", pattern=r"^([0-9a-fA-F]{64})?$")
    md5: str = pydantic.Field(default="", pattern=r"^([0-9a-fA-F]{32})?$")
    checksums: str = ""
    kind: Kind = "auto"
    optional: bool = False
    resolve: ResolveConfig | None = None
    licence: str = ""


class FetchConfig(Config):
    """What to fetch, from where, and how politely.

    base: the address that items' templates begin with. release, version: as the source names them; there is no default
    that could grow old. give_up: this many failures of servers in a row, and nothing between them, end the run.
    """

    name: str
    base: str = ""
    release: Text = ""
    version: Text = ""
    items: dict[str, ItemConfig] = pydantic.Field(min_length=1)
    web: WebConfig = WebConfig()
    give_up: int = pydantic.Field(default=20, ge=1)


@dataclass(frozen=True)
class Wanted:
    """One file. url: where it is, or "" where `ask` must be asked first. path: below the folder, or "" until then.

    where: what an answer must hold. listing: the address of its checksums. digests: those that are configured.
    """

    item: str
    url: str
    path: str
    into: str
    ask: str = ""
    where: tuple[tuple[str, str], ...] = ()
    accession: str = ""
    listing: str = ""
    digests: dict[str, str] = field(default_factory=dict)


def plan(config: FetchConfig, only: tuple[str, ...] = ()) -> list[Wanted]:
    """Every file of the items (those named `only`). Raises ValueError for settings that are missing or unsafe."""
    if unknown := sorted(set(only) - set(config.items)):
        raise ValueError(f"no items {unknown}; the configuration has {sorted(config.items)}")
    found: list[Wanted] = []
    for name, item in config.items.items():
        if not only or name in only:
            _settled(name, item)
            found += [_wanted(config, name, item, values) for values in _rows(config, name, item)]
    taken: dict[str, Wanted] = {}
    for each in found:
        if each.path and (other := taken.setdefault(each.path, each)) is not each:
            raise ValueError(
                f"items.{each.item}: {each.url} and {other.url} would both be {each.path}; name them apart with "
                "`into` or `save`, or list each one once"
            )
    return found


def landing(into: str, url: str, save: str = "") -> str:
    """The path of the file at `url`. Raises Refused for a name that is none."""
    name = save or unquote(PurePosixPath(urlsplit(url).path).name)
    if not NAME.fullmatch(name) or OURS.search(name):
        raise Refused("unsafe_name", f"{url}: {name!r} is no name for a file here; give another with `save`")
    return (PurePosixPath(into) / name).as_posix()


def _settled(name: str, item: ItemConfig) -> None:
    """Raise ValueError for settings that contradict each other."""
    folder = PurePosixPath(item.into)
    if folder.is_absolute() or ".." in folder.parts or "\\" in item.into:
        raise ValueError(f"items.{name}.into: {item.into!r} must be a folder below the one that is fetched to")
    if not item.url and not item.resolve:
        raise ValueError(f"items.{name} needs a url, or `resolve` to ask for one")
    if (item.sha256 or item.md5) and (len(item.file) > 1 or item.accessions or item.table):
        raise ValueError(f"items.{name}: one sha256 or md5 cannot be that of many files; use `checksums`")
    for field_, digits in (("accession", item.accessions), ("file", item.file)):
        used = any(field_ in FIELD.findall(text) for text in _templates(item))
        if used and not digits and not item.table:
            plural = "accessions" if field_ == "accession" else "file"
            raise ValueError(
                f"items.{name} has no {plural}: give items.{name}.{plural}=…, or fetch other items with --only"
            )


def _templates(item: ItemConfig) -> list[str]:
    asked = [item.resolve.url, *item.resolve.where.values()] if item.resolve else []
    return [item.url, item.checksums, item.save, *asked]


def _rows(config: FetchConfig, name: str, item: ItemConfig) -> Iterator[dict[str, str]]:
    """The values of {file}, {accession} and a table's columns, for each file of an item."""
    common = {"base": item.base or config.base, "release": config.release, "version": config.version}
    files = [_fill(text, common, f"items.{name}.file") for text in item.file]
    if item.table:
        for row in _table(Path(item.table)):
            yield {key: _safe(value, f"{item.table}: column {key!r}") for key, value in row.items() if key}
    elif item.accessions:
        for accession in dict.fromkeys(_accessions(item.accessions)):
            yield {"accession": _safe(accession, f"items.{name}.accessions")}
    elif files:
        yield from ({"file": file} for file in files)
    else:
        yield {}


def _wanted(config: FetchConfig, name: str, item: ItemConfig, values: dict[str, str]) -> Wanted:
    common = {"base": item.base or config.base, "release": config.release, "version": config.version}
    known = {key: value for key, value in common.items() if value} | values
    quoted = {
        key: value if key in common else quote(value, safe="/" if key == "file" else "") for key, value in known.items()
    }
    where = f"items.{name}"
    asks = item.resolve and (not item.url or (config.version == LATEST and "version" in FIELD.findall(item.url)))
    if config.version == LATEST and not asks and "version" in FIELD.findall(item.url):
        raise ValueError(f"{where} has no `resolve` that could tell the latest version; give its number: version=N")
    url = "" if asks else _fill(item.url, quoted, f"{where}.url")
    save = _fill(item.save, known, f"{where}.save") if item.save else ""
    ask, needed = "", ()
    if asks and item.resolve:
        ask = _fill(item.resolve.url, quoted, f"{where}.resolve.url")
        needed = tuple(
            (key, _fill(value, known, f"{where}.resolve.where")) for key, value in item.resolve.where.items()
        )
    try:
        path = landing(item.into, url or ask, save) if url or save else ""
    except Refused as problem:
        raise ValueError(f"{where}: {problem}") from None
    digests = {kind: digest for kind, digest in (("sha256", item.sha256.lower()), ("md5", item.md5.lower())) if digest}
    listing = _fill(item.checksums, quoted, f"{where}.checksums") if item.checksums else ""
    return Wanted(name, url, path, item.into, ask, needed, values.get("accession", ""), listing, digests)


def _fill(template: str, values: dict[str, str], where: str) -> str:
    """The template with its fields filled in. Raises ValueError for a field without a value."""

    def value(found: re.Match[str]) -> str:
        if found[1] in values:
            return values[found[1]]
        if found[1] in ("release", "version", "base"):
            raise ValueError(f"{where} is {template!r}: give {found[1]}=… (as the source names it)")
        raise ValueError(f"{where} is {template!r}: no {{{found[1]}}} here, but {sorted(values)}")

    return FIELD.sub(value, template)


def _accessions(given: str | tuple[str, ...]) -> Iterator[str]:
    """The list itself, or the first word of each line of a file; `#` begins a remark."""
    if not isinstance(given, str):
        yield from given
        return
    try:
        with open(given, encoding="utf-8-sig") as file:
            for line in file:
                if words := line.partition("#")[0].split():
                    yield words[0]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{given}: not a readable list of accessions ({error})") from error


def _table(path: Path) -> Iterator[dict[str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            between = "," if path.suffix == ".csv" else "\t"
            for row in csv.DictReader(file, delimiter=between, strict=True):
                if None in row or None in row.values():
                    raise ValueError(f"{path}: a row with more or fewer columns than the header: {list(row.values())}")
                yield {key.strip(): value.strip() for key, value in row.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable table ({error})") from error


def _safe(value: str, where: str) -> str:
    if not NAME.fullmatch(value) or OURS.search(value):
        raise ValueError(
            f"{where}: {value!r:.120} is no name; letters, digits and . _ + - are allowed, no / and no leading dot"
        )
    return value
