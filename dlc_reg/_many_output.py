"""The file that the results of `register_many` stream into, a line each, so that a run can be taken up again."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from dlc_reg.errors import InputError

ENTRIES = [f"t{row}{column}" for row in range(4) for column in range(4)]  # of the transformation
COLUMNS = [
    *("name", "source", "target", "verdict", "reasons", "fitness", "inlier_rmse"),
    *ENTRIES,
    *("seconds", "error"),
]
LONGEST = 10_000  # letters of a cell: what reads it again has a limit
ERROR = "error"  # counted in place of a verdict


class Output:
    """A CSV file of results, new or to be continued; open it with `with`.

    `done`: the names of the pairs in it. `counts`: how many rows it has of each verdict, and of `ERROR` without one.

    Raises:
        InputError: A path that cannot be written, or a file that holds anything but such results. A last line that was
            cut off by an interruption is dropped.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise InputError("output", f"a {type(path).__name__}", "the path of a CSV file")
        self.path = Path(path).expanduser()
        self.done: set[str] = set()
        self.counts: Counter[str] = Counter()
        shown = f"'{self.path}'"
        if self.path.suffix.lower() != ".csv":
            raise InputError("output", shown, "a name that ends in .csv, the one form that rows can be added to")
        if not self.path.parent.is_dir():
            raise InputError("output", shown, f"a folder that exists; make '{self.path.parent}' first")
        exists = self.path.exists()
        if (exists and not self.path.is_file()) or not os.access(self.path if exists else self.path.parent, os.W_OK):
            raise InputError("output", shown, "a file that may be written")
        if exists:
            self._read()
        self._file: BinaryIO | None = None

    def _read(self) -> int:
        """Takes in the rows; returns where the last complete one ends."""
        end = 0
        self.done.clear()
        self.counts.clear()
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                row = _cells(line)
                if number == 1 and (row != COLUMNS or not line.endswith(b"\n")):
                    raise InputError("output", f"'{self.path}', which holds something else", "a new name")
                if not line.endswith(b"\n"):
                    break
                if len(row) != len(COLUMNS):
                    given = f"'{self.path}', whose line {number} is damaged"
                    raise InputError("output", given, "a new name, or the file without that line")
                if number > 1:
                    self._count(row)
                end += len(line)
        return end

    def __enter__(self) -> Output:
        end = self._read() if self.path.exists() else 0  # again: it may have been written to since
        self._file = self.path.open("ab")
        self._file.truncate(end)
        if not end:
            self._write(COLUMNS)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, row: Sequence[object]) -> None:
        """Writes one row, whole, by the order of `COLUMNS`; line breaks and what cannot be printed become blanks."""
        cells = ["" if cell is None else str(cell)[:LONGEST] for cell in row]
        cells = ["".join(letter if letter.isprintable() else " " for letter in cell) for cell in cells]
        self._write(cells)
        self._count(cells)

    def _count(self, row: list[str]) -> None:
        self.done.add(row[0])
        self.counts[row[COLUMNS.index("verdict")] or ERROR] += 1

    def _write(self, row: Sequence[str]) -> None:
        assert self._file is not None
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        self._file.write(text.getvalue().encode())
        self._file.flush()


def _cells(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return []
