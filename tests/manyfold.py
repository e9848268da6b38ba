"""Tiny pairs and hostile stand-ins for the tests of `register_many`; processes import them by this module's name."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import numpy as np
from commanding import TURN, surface

from dlc_reg.geometry import apply_transform


class Killer:
    """A cloud that kills the process that reads it, and no other."""

    def __init__(self) -> None:
        self.parent = os.getpid()

    def __array__(self, *args, **kwargs):
        if os.getpid() == self.parent:
            raise RuntimeError("not in the test's own process")
        os._exit(1)


class KillsOnce:
    """A cloud that kills the first process that reads it; after that it is the cloud of the file."""

    def __init__(self, path: Path, mark: Path) -> None:
        self.path, self.mark, self.parent = path, mark, os.getpid()

    def __array__(self, *args, **kwargs):
        if not self.mark.exists():
            assert os.getpid() != self.parent
            self.mark.write_text("killed")
            os._exit(1)
        return np.load(self.path)


class Raises:
    def __array__(self, *args, **kwargs):
        raise ZeroDivisionError("of the cloud's own\nmaking")


def exit_at_once() -> None:
    os._exit(1)


def clouds(folder: Path, count: int) -> list[tuple[str, str]]:
    """Writes `count` pairs of 300 points, each of another surface; returns their names in the folder."""
    names = []
    for i in range(count):
        points = surface(300, seed=i)
        np.save(folder / f"source{i}.npy", points)
        np.save(folder / f"target{i}.npy", apply_transform(TURN, points))
        names.append((f"source{i}.npy", f"target{i}.npy"))
    return names


def write_list(path: Path, rows, header=("source", "target")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Hangs:
    """A cloud whose reading has no end; it leaves the number of the process at `mark`, if given."""

    def __init__(self, mark: Path | None = None) -> None:
        self.mark = mark

    def __array__(self, *args, **kwargs):
        if self.mark is not None:
            self.mark.write_text(str(os.getpid()))
        while True:
            time.sleep(1)


class Talks:
    """The cloud of a file, which prints on being read, from Python and from below it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __array__(self, *args, **kwargs):
        print("a word of the cloud's own", flush=True)
        os.write(1, b"and one of a library's\n")
        return np.load(self.path)
