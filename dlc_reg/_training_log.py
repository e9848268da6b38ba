"""The log of a training: a CSV file always, TensorBoard where it is asked for and installed."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dlc_reg.io import replacing

NAME = "log.csv"


class Log:
    """Rows of figures, of validation those called `figures`; steps that a resumption takes again replace their rows."""

    def __init__(self, folder: Path, step: int, figures: Sequence[str], writes: bool, tensorboard: bool) -> None:
        self.path, self.figures, self.writes = folder / NAME, figures, writes
        self._file: Any = None
        self._writer: Any = None
        self._board = _board(folder) if writes and tensorboard else None
        self._kept = self._read(step) if writes else []

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for part in (self._file, self._board):
            if part is not None:
                part.close()

    def write(self, row: dict[str, Any]) -> None:
        """One step: "step", its figures, and where validation was looked at "validation_..."."""
        if not self.writes:
            return
        if self._file is None:
            columns = [*(k for k in row if not k.startswith("validation_")), *(f"validation_{v}" for v in self.figures)]
            with replacing(self.path, overwrite=True) as draft, draft.open("w", newline="", encoding="utf-8") as file:
                kept = csv.DictWriter(file, columns, extrasaction="ignore")
                kept.writeheader()
                kept.writerows(self._kept)
            self._file = self.path.open("a", newline="", encoding="utf-8")
            self._writer = csv.DictWriter(self._file, columns, extrasaction="ignore")
        self._writer.writerow({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()})
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name.replace("validation_", "validation/"), value, row["step"])

    def _read(self, step: int) -> list[dict[str, str]]:
        if step == 0 or not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if int(row["step"]) <= step]


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logging.getLogger("dlc_reg").warning("TensorBoard is not installed: the log is %s alone", folder / NAME)
        return None
    return SummaryWriter(str(folder))
