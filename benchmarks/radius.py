"""All neighbours within a radius, and the k nearest within it (hybrid).

    python benchmarks/radius.py [--sizes 10000 100000 1000000] [--neighbours 20]

Points of a surface, in random order, look among themselves; the radius is such that a point has that many neighbours
on average. From the arrays to the neighbours. "radius" is checked by the number of neighbours of a sample of the
points, "hybrid" (k = 16) by distances, both against SciPy's tree in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
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


class Counts:
    """How many neighbours a sample of the points has, but for those that rounding decides."""

    def __init__(self, points: Points, radius: float) -> None:
        self.points, self.radius = points, radius
        self.rows = np.random.default_rng(0).permutation(len(points))[:SAMPLE]

    @cached_property
    def true(self) -> list[Any]:
        p = self.points.astype(np.float64)
        tree = cKDTree(p)
        limits = [self.radius * (1 + sign * ROUNDING) for sign in (-1, 1)]
        return [tree.query_ball_point(p[self.rows], limit, return_length=True) for limit in limits]

    def __call__(self, name: str, counts: Any) -> Checked:
        least, most = self.true
        given = np.asarray(counts() if callable(counts) else counts)[self.rows]
        wrong = int(((given < least) | (given > most)).sum())
        return Checked(wrong == 0, "exact" if wrong == 0 else f"{wrong} of {len(given)} counts wrong")


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
    return Work(points, gather(makers), Counts(p, limit), cost)


def hybrid(points: int, options: argparse.Namespace) -> Work:
    p, limit = _points(points, options)
    cost = roofline.both(roofline.build(points), roofline.search(points, points, K))
    return Work(points, searchers(p, p, options.threads, K, limit), Oracle(p, p, K, limit), cost)


def _points(points: int, options: argparse.Namespace) -> tuple[Points, float]:
    given = clouds.cloud("surface", points, options.seed)
    return given.astype(np.float32), radius_for(given, options.neighbours)


def _ours(points: Points, limit: float, threads: int) -> Call:
    p = torch.from_numpy(points)
    return lambda: ops.radius_search(p, p, limit, num_threads=threads)[2].diff()


def _tensor(points: Points, limit: float) -> Call:
    import open3d as o3d

    p = o3d.core.Tensor.from_numpy(points)

    def run() -> Any:
        search = o3d.core.nns.NearestNeighborSearch(p)
        search.fixed_radius_index(limit)
        return np.diff(search.fixed_radius_search(p, limit)[2].numpy())

    return run


def _scipy(points: Points, limit: float, threads: int) -> Call:
    """Lists of neighbours; their lengths are taken where the answer is checked."""
    p = points.astype(np.float64)

    def run() -> Any:
        lists = cKDTree(p).query_ball_point(p, limit, workers=threads)
        return lambda: [len(x) for x in lists]

    return run


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
