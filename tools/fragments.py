"""Fragments of scenes with the true poses of pairs of them, from one `.npz` file.

It holds `points_q` (integers; times `scale` they are metres), `offsets` (one range a fragment), `scene`, and for each
of the benchmarks "3dmatch" and "3dlomatch" `*_pairs` (i, j), `*_T` (maps j into i) and `*_info` (Redwood's 6x6).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlc_reg import PointCloud

BENCHMARKS = ("3dmatch", "3dlomatch")


@dataclass(frozen=True)
class Task:
    """Fragments to register, with the answer, or None where they show different scenes."""

    source: int
    target: int
    T_target_source: NDArray[np.float64] | None = None
    information: NDArray[np.float64] | None = None


class Fragments:
    def __init__(self, path: str | Path) -> None:
        self.data = dict(np.load(path))

    def scene(self, i: int) -> str:
        return str(self.data["scene"][i])

    def cloud(self, i: int, *, viewpoint: bool) -> PointCloud:
        """In metres; the sensor stood at the origin, which the cloud knows if `viewpoint`."""
        begin, end = self.data["offsets"][i : i + 2]
        points = self.data["points_q"][begin:end].astype(np.float64) * float(self.data["scale"])
        return PointCloud.from_any(points, viewpoint=(0, 0, 0) if viewpoint else None)

    def pairs(self, benchmark: str, count: int, rng: np.random.Generator) -> Iterator[Task]:
        """`count` pairs that overlap, drawn without repetition."""
        pairs, poses, information = (self.data[f"{benchmark}_{what}"] for what in ("pairs", "T", "info"))
        for row in rng.permutation(len(pairs))[:count]:
            i, j = pairs[row]
            yield Task(int(j), int(i), poses[row], information[row])

    def strangers(self, count: int, rng: np.random.Generator) -> Iterator[Task]:
        """`count` pairs of fragments of different scenes."""
        while count:
            i, j = rng.integers(len(self.data["scene"]), size=2)
            if self.scene(i) != self.scene(j):
                count -= 1
                yield Task(int(i), int(j))
