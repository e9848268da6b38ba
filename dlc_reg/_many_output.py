"""What the results of `register_many` stream into, so that a run can be taken up again: a CSV file, or Parquet."""

from __future__ import annotations

import csv
import io
import os
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dlc_reg.errors import InputError
from dlc_reg.io import replacing

ENTRIES = [f"t{row}{column}" for row in range(4) for column in range(4)]  # of the transformation
COLUMNS = [
    *("name", "source", "target", "verdict", "reasons", "fitness", "inlier_rmse"),
    *ENTRIES,
    *("seconds", "error"),
]
LONGEST = 10_000  # letters of a cell: what reads it again has a limit
ERROR = "error"  # counted in place of a verdict
PART_ROWS = 10_000
PART_SECONDS = 10.0  # of work are lost, at most, when a run that writes Parquet is killed


class Output(ABC):
    """Results that are there already, and a place for more; open it with `with`.

    `done`: the names of the pairs in it. `counts`: how many rows it has of each verdict, and of `ERROR` without one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self.counts: Counter[str] = Counter()
        self._read()

    @abstractmethod
    def _read(self) -> int:
        """Takes in what is there; returns where more goes."""

    @abstractmethod
    def __enter__(self) -> Output: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def add(self, row: Sequence[object]) -> None:
        """One row by the order of `COLUMNS`; None for what is missing."""

    def _count(self, name: str, verdict: str | None) -> None:
        self.done.add(name)
        self.counts[verdict or ERROR] += 1


def open_output(path: str | os.PathLike[str]) -> Output:
    """The results at `path`, new or to be continued: a .csv file, or a .parquet folder.

    Raises:
        InputError: Another suffix, a path that cannot be written, one that holds anything but such results, or
            .parquet without pyarrow.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError("output", f"a {type(path).__name__}", "the path of a .csv file or a .parquet folder")
    place = Path(path).expanduser()
    kinds = {".csv": CsvOutput, ".parquet": ParquetOutput}
    shown, suffix = f"'{place}'", place.suffix.lower()
    if suffix not in kinds:
        raise InputError("output", shown, "a name that ends in .csv or .parquet, which results can be added to")
    if not place.parent.is_dir():
        raise InputError("output", shown, f"a folder that exists; make '{place.parent}' first")
    exists, is_right = place.exists(), place.is_file() if suffix == ".csv" else place.is_dir()
    if (exists and not is_right) or not os.access(place if exists else place.parent, os.W_OK):
        raise InputError("output", shown, f"a {'file' if suffix == '.csv' else 'folder'} that may be written")
    return kinds[suffix](place)


class CsvOutput(Output):
    """A CSV file, to which each row is written as it is added. A last line that was cut off is dropped."""

    _file: BinaryIO | None = None

    def _read(self) -> int:
        """Takes in the rows; returns where the last complete one ends."""
        end = 0
        self.done.clear()
        self.counts.clear()
        if not self.path.exists():
            return end
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
                    self._count(row[0], row[COLUMNS.index("verdict")])
                end += len(line)
        return end

    def __enter__(self) -> CsvOutput:
        end = self._read()  # again: it may have been written to since
        self._file = self.path.open("ab")
        self._file.truncate(end)
        if not end:
            self._write(COLUMNS)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, row: Sequence[object]) -> None:
        """Writes it whole; line breaks and what cannot be printed become blanks."""
        cells = ["" if cell is None else str(cell)[:LONGEST] for cell in row]
        cells = ["".join(letter if letter.isprintable() else " " for letter in cell) for cell in cells]
        self._write(cells)
        self._count(cells[0], cells[COLUMNS.index("verdict")])

    def _write(self, row: Sequence[str]) -> None:
        assert self._file is not None
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        self._file.write(text.getvalue().encode())
        self._file.flush()


class ParquetOutput(Output):
    """A Parquet data set: a folder of files part-000000.parquet, each complete.

    A Parquet file can be read only when its end is written, so rows are kept until there are `PART_ROWS` of them, until
    they took `PART_SECONDS`, or one comes when the last part is that old; then they become a part, written beside and
    renamed. A run that is killed loses the rows kept, which a rerun does again; one that ends, or is interrupted,
    writes them.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            remedy = 'the extra: pip install "dlc_reg[parquet]", or a .csv file'
            raise InputError("output", f"'{path}', and {error.name} is not installed", remedy) from error
        super().__init__(path)
        self._rows: list[list[object]] = []
        self._next = 0
        self._since = self._worked = 0.0

    def _read(self) -> int:
        """Takes in the parts; returns the number of the next."""
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table

        self.done.clear()
        self.counts.clear()
        last = -1
        for part in sorted(self.path.iterdir()) if self.path.exists() else []:
            if part.name.startswith("."):
                continue  # what a run that was killed was writing, which readers of data sets pass over too
            number = re.fullmatch(r"part-(\d{6,})\.parquet", part.name)
            if number is None:
                raise InputError("output", f"'{self.path}', which holds something else: {part.name}", "a new name")
            try:
                table = read_table(part)
            except (ArrowException, OSError) as error:
                reason = str(error).split("\n")[0]
                given = f"'{part}', which is damaged: {reason}"
                raise InputError("output", given, "a new name, or the folder without that file") from None
            if not table.schema.equals(_schema()):
                raise InputError("output", f"'{part}', which holds something else", "a new name")
            for name, verdict in zip(table["name"].to_pylist(), table["verdict"].to_pylist(), strict=True):
                self._count(name, verdict)
            last = max(last, int(number[1]))
        return last + 1

    def __enter__(self) -> ParquetOutput:
        self._next = self._read()  # again: it may have been written to since
        self.path.mkdir(exist_ok=True)
        self._since = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def add(self, row: Sequence[object]) -> None:
        self._rows.append([_sayable(cell) for cell in row])
        self._count(str(row[0]), str(row[COLUMNS.index("verdict")] or ""))
        self._worked += float(str(row[COLUMNS.index("seconds")] or 0))
        if len(self._rows) >= PART_ROWS or max(time.monotonic() - self._since, self._worked) >= PART_SECONDS:
            self._flush()

    def _flush(self) -> None:
        from pyarrow import table
        from pyarrow.parquet import write_table

        if self._rows:
            columns = dict(zip(COLUMNS, map(list, zip(*self._rows, strict=True)), strict=True))
            while (self.path / f"part-{self._next:06}.parquet").exists():  # of another run into the same folder
                self._next += 1
            with replacing(self.path / f"part-{self._next:06}.parquet", overwrite=False) as draft:
                write_table(table(columns, schema=_schema()), draft)
            self._rows, self._next = [], self._next + 1
        self._since, self._worked = time.monotonic(), 0.0


def _schema() -> Any:
    import pyarrow as pa

    text = {"name", "source", "target", "verdict", "reasons", "error"}
    return pa.schema([(column, pa.string() if column in text else pa.float64()) for column in COLUMNS])


def _sayable(cell: object) -> object:
    """Numbers as they are; text, an enum's too, with what UTF-8 cannot say replaced."""
    return cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell


def _cells(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return []
