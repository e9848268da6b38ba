"""Outside truth for searches: SciPy's tree in float64 on the points as float32 has them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from harness import Checked
from numpy.typing import NDArray
from scipy.spatial import cKDTree

SAMPLE = 20_000
ROUNDING = 1e-6
"""Relative, of a distance: a neighbour that float32 cannot tell from the nearest is as good."""


@dataclass(frozen=True)
class Found:
    """What a library returned, as it was: indices, or where there are none distances."""

    indices: Any = None
    distances: Any = None


class Oracle:
    """True distances of a sample of the queries to their k nearest; inf where there is none within `limit`."""

    def __init__(
        self, points: NDArray[np.float32], queries: NDArray[np.float32], k: int = 1, limit: float = np.inf
    ) -> None:
        self.given, self.k, self.limit = points, k, limit
        self.rows = np.random.default_rng(0).permutation(len(queries))[:SAMPLE]
        self.queries = queries[self.rows].astype(np.float64)

    @cached_property
    def points(self) -> NDArray[np.float64]:
        return self.given.astype(np.float64)

    @cached_property
    def true(self) -> NDArray[np.float64]:
        tree = cKDTree(self.points, balanced_tree=False, compact_nodes=False)
        return np.reshape(tree.query(self.queries, self.k, distance_upper_bound=self.limit)[0], (-1, self.k))

    def __call__(self, name: str, found: Found) -> Checked:
        given = self._distances(found)
        rounding = ROUNDING if found.indices is not None else 10 * ROUNDING
        missing = np.isinf(given) | np.isinf(self.true)
        with np.errstate(invalid="ignore"):
            same = np.where(missing, given == self.true, np.abs(given - self.true) <= rounding * self.true + 1e-12)
        if np.isfinite(self.limit):  # whether a neighbour at the limit itself is within it, rounding decides
            same |= missing & (np.abs(np.minimum(given, self.true) - self.limit) <= rounding * self.limit)
        wrong = ~same
        count = int(wrong.any(axis=1).sum())
        exact = "exact" if found.indices is not None else "exact distances, no indices"
        return Checked(count == 0, exact if count == 0 else f"{count} of {len(given)} queries wrong")

    def _distances(self, found: Found) -> NDArray[np.float64]:
        if found.indices is None:
            return np.asarray(found.distances, dtype=np.float64).reshape(-1, self.k)[self.rows]
        indices = np.asarray(found.indices).reshape(-1, self.k).astype(np.int64)[self.rows]
        missing = (indices < 0) | (indices >= len(self.points))
        at = self.points[np.where(missing, 0, indices)]
        distances = np.linalg.norm(self.queries[:, None] - at, axis=2)
        return np.where(missing, np.inf, distances)
