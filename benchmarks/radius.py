"""All neighbours within a radius, and the k nearest within it (hybrid).

    python benchmarks/radius.py [--sizes 10000 100000 1000000] [--neighbours 20]

Points of a surface, in random order, look among themselves; the radius is such that a point has that many neighbours
on average. From the arrays to the neighbours. "radius" is checked by who the neighbours of a sample of the points are,
"hybrid" (k = 16) by distances, both against SciPy's tree in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import clouds
import harness
import numpy as np
import roofline
import torch
from harness import OURS, Call, Cases, Checked, Work, gather
from oracle import Oracle
from peers import Points, searchers
from scipy.spatial import cKDTree

from dlc_reg import ops

K, SAMPLE, ROUNDING = 16, 5_000, 1e-6


@dataclass(frozen=True)
class Balls:
    """Neighbours of every point, one after another: those of point i are the entries splits[i]:splits[i + 1]."""

    indices: Any
    splits: Any
    distances: Any = None

    def of(self, row: int) -> tuple[Any, Any]:
        part = slice(int(self.splits[row]), int(self.splits[row + 1]))
        return np.asarray(self.indices[part]), None if self.distances is None else np.asarray(self.distances[part])


class Lists:
    """The same as lists of indices."""

    def __init__(self, lists: Any) -> None:
        self.lists = lists

    def of(self, row: int) -> tuple[Any, Any]:
        return np.asarray(self.lists[row]), None


class Neighbours:
    """Who the neighbours of a sample of the points are, but for those that rounding decides; and how far, if said."""

    def __init__(self, points: Points, radius: float) -> None:
        self.points, self.radius = points.astype(np.float64), radius
        self.rows = np.random.default_rng(0).permutation(len(points))[:SAMPLE]

    @cached_property
    def true(self) -> list[Any]:
        tree = cKDTree(self.points)
        limits = [self.radius * (1 + sign * ROUNDING) for sign in (-1, 1)]
        return [tree.query_ball_point(self.points[self.rows], limit) for limit in limits]

    def __call__(self, name: str, answer: Balls | Lists) -> Checked:
        wrong = sum(
            not self._right(row, least, most, *answer.of(row))
            for row, least, most in zip(self.rows, *self.true, strict=True)
        )
        return Checked(wrong == 0, "exact" if wrong == 0 else f"{wrong} of {len(self.rows)} points' neighbours wrong")

    def _right(self, row: int, least: list[int], most: list[int], indices: Any, distances: Any) -> bool:
        found = set(indices.tolist())
        if len(found) != len(indices) or not set(least) <= found <= set(most):
            return False
        if distances is None:
            return True
        true = np.linalg.norm(self.points[indices] - self.points[row], axis=1)
        return bool(np.all(np.abs(distances - true) <= ROUNDING * self.radius) and np.all(np.diff(distances) >= 0))


def radius_for(points: clouds.Array, neighbours: int) -> float:
    """The median distance of a sample's k-th neighbour."""
    tree = cKDTree(points, balanced_tree=False, compact_nodes=False)
    return float(np.median(tree.query(points[:2_000], neighbours)[0][:, -1]))


def radius(points: int, options: argparse.Namespace) -> Work:
    p, limit = _points(points, options)
    makers: dict[str, Callable[[], Call]] = {
        OURS: lambda: _ours(p, limit, options.threads),
        "Open3D tensor": lambda: _tensor(p, limit),
        "scipy cKDTree": lambda: _scipy(p, limit, options.threads),
    }
    cost = roofline.both(roofline.build(points), roofline.search(points, points, options.neighbours))
    return Work(points, gather(makers), Neighbours(p, limit), cost)


def hybrid(points: int, options: argparse.Namespace) -> Work:
    p, limit = _points(points, options)
    cost = roofline.both(roofline.build(points), roofline.search(points, points, K))
    return Work(points, searchers(p, p, options.threads, K, limit), Oracle(p, p, K, limit), cost)


def _points(points: int, options: argparse.Namespace) -> tuple[Points, float]:
    given = clouds.cloud("surface", points, options.seed)
    return given.astype(np.float32), radius_for(given, options.neighbours)


def _ours(points: Points, limit: float, threads: int) -> Call:
    p = torch.from_numpy(points)

    def run() -> Balls:
        distances, indices, splits = ops.radius_search(p, p, limit, num_threads=threads)
        return Balls(indices, splits, distances)

    return run


def _tensor(points: Points, limit: float) -> Call:
    import open3d as o3d

    p = o3d.core.Tensor.from_numpy(points)

    def run() -> Balls:
        search = o3d.core.nns.NearestNeighborSearch(p)
        search.fixed_radius_index(limit)
        indices, _, splits = search.fixed_radius_search(p, limit)
        return Balls(indices.numpy(), splits.numpy())

    return run


def _scipy(points: Points, limit: float, threads: int) -> Call:
    p = points.astype(np.float64)
    return lambda: Lists(cKDTree(p).query_ball_point(p, limit, workers=threads))


def cases(options: argparse.Namespace) -> Cases:
    found: Cases = {}
    for n in options.sizes:
        name = f"about {options.neighbours} neighbours, {n:,} points"
        found[f"radius, {name}"] = lambda n=n: radius(n, options)  # type: ignore[misc]
        found[f"hybrid, k = {K}, {name}"] = lambda n=n: hybrid(n, options)  # type: ignore[misc]
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--neighbours", type=int, default=20)


if __name__ == "__main__":
    harness.main(__file__, __doc__, cases, arguments)
