"""The list of pairs that `register_many` is given: an iterable, or a CSV file, which is checked as a whole."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlc_reg._formats import is_number
from dlc_reg.errors import InputError
from dlc_reg.geometry import nearly_rigid

FIELDS = ("source", "target", "init", "name")
TRUTH = "T_target_source"
ROW = "a CSV file whose header is source,target and perhaps init,name, and rows with as many cells"
ITEM = "(source, target), (source, target, init), or a mapping or named tuple of " + ", ".join(FIELDS)


@dataclass(frozen=True)
class Entry:
    """One pair of the list; `init` (4, 4) or None; `truth` (4, 4), where a list was read with its truths, or None."""

    name: str
    source: Any
    target: Any
    init: Any = None
    truth: Any = None


def read_entries(pairs: Any, *, allow_outside: bool = False, truths: bool = False) -> Iterator[Entry]:
    """The pairs of an iterable, one at a time, or of a CSV file, each of whose rows was checked before the first.

    A pair without a name is called "source -> target" where both are paths, and by its number where not. In a file the
    paths are relative to its folder, and may lead out of it only if `allow_outside`; `init` is 16 numbers, row by row,
    separated by blanks. With `truths` a file may have the column T_target_source too: such numbers, or the path of a
    text file of them.

    Raises:
        InputError: A list that is not one; a file that cannot be read, with other columns, a broken row, a path that
            leads out of the folder, or a name used twice. The faults of an iterable's item raise when its turn comes.
    """
    if isinstance(pairs, (str, os.PathLike)):
        path = Path(pairs).expanduser()
        for _ in distinct(_rows(path, allow_outside, truths)):
            pass
        return _rows(path, allow_outside, truths)
    if isinstance(pairs, Iterable) and not isinstance(pairs, Mapping):
        return (_entry(item, number) for number, item in enumerate(pairs))
    raise InputError("pairs", f"a {type(pairs).__name__}", "an iterable of pairs, or the path of a CSV file")


def distinct(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same entries; raises InputError for a name that was there before."""
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise InputError("pairs", f"the name {entry.name!r} twice", "a name of its own for each pair")
        seen.add(entry.name)
        yield entry


def _entry(item: Any, number: int) -> Entry:
    if hasattr(item, "_asdict"):
        item = item._asdict()
    if isinstance(item, Mapping):
        given = dict(item)
    elif isinstance(item, Sequence) and not isinstance(item, (str, bytes)) and len(item) in (2, 3):
        given = dict(zip(FIELDS, item, strict=False))
    else:
        raise InputError("pairs", f"item {number}, a {type(item).__name__}", ITEM)
    if not {"source", "target"} <= given.keys() <= set(FIELDS):
        raise InputError("pairs", f"item {number} with {', '.join(map(str, given))}", ITEM)
    name = given.pop("name", None)
    if name is None:
        paths = all(isinstance(given[key], (str, os.PathLike)) for key in ("source", "target"))
        name = _named(given["source"], given["target"]) if paths else str(number)
    return Entry(_checked_name(name, f"item {number}"), **given)


def _named(source: Any, target: Any) -> str:
    return f"{os.fspath(source)} -> {os.fspath(target)}"


def _checked_name(name: Any, where: str) -> str:
    """A row of the output is a line, which a name must not break."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InputError("pairs", f"{where} with the name {name!r}", "a name of printable characters, on one line")
    return name


def _rows(path: Path, allow_outside: bool, truths: bool) -> Iterator[Entry]:
    folder = path.parent.resolve()
    fields = {*FIELDS, TRUTH} if truths else set(FIELDS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            if not {"source", "target"} <= set(header) <= fields or len(set(header)) < len(header):
                raise InputError("pairs", f"'{path}' with the header {','.join(header)!r}", ROW)
            for row in reader:
                if row:
                    where = f"'{path}', line {reader.line_num},"
                    if len(row) != len(header):
                        raise InputError("pairs", f"{where} with {len(row)} cells for {len(header)} columns", ROW)
                    yield _row(dict(zip(header, row, strict=True)), folder, where, allow_outside)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("pairs", f"'{path}', which cannot be read: {error}", ROW) from None


def _row(cells: dict[str, str], folder: Path, where: str, allow_outside: bool) -> Entry:
    source, target = (_path(cells[key], folder, f"{where} {key}", allow_outside) for key in ("source", "target"))
    name = cells.get("name") or _named(cells["source"], cells["target"])
    init, truth = (cells.get(key, "").strip() for key in ("init", TRUTH))
    return Entry(
        _checked_name(name, where),
        source,
        target,
        _matrix(init, f"{where} init") if init else None,
        _truth(truth, folder, f"{where} {TRUTH}", allow_outside) if truth else None,
    )


def _truth(text: str, folder: Path, where: str, allow_outside: bool) -> Any:
    if is_number(text.split()[0]):
        matrix = _matrix(text, where)
    else:
        path = _path(text, folder, where, allow_outside)
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("pairs", f"{where} {text!r} ({error})", "16 numbers, or a text file of them") from None
        matrix = _matrix(content, f"{where} {text!r}:")
    if not nearly_rigid(matrix):
        raise InputError("pairs", f"{where} {text!r}", "a rotation and a translation")
    return matrix


def _path(text: str, folder: Path, where: str, allow_outside: bool) -> Path:
    """Absolute, for a `~` at its beginning would lead home."""
    try:
        path = (folder / text).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name with a zero byte
        raise InputError("pairs", f"{where} {text!r} ({error})", "a path") from None
    if not allow_outside and not path.is_relative_to(folder):
        expected = f"a path inside the list's folder '{folder}', or allow_outside=True"
        raise InputError("pairs", f"{where} {text!r}, which leads out of it", expected)
    return path


def _matrix(text: str, where: str) -> Any:
    try:
        matrix = np.array([float(word) for word in text.split()]).reshape(4, 4)
    except ValueError:
        matrix = np.full((4, 4), np.nan)
    if not np.isfinite(matrix).all():
        raise InputError("pairs", f"{where} {text[:200]!r}", "16 numbers separated by blanks, the matrix row by row")
    return matrix
