"""k nearest neighbours, and the normals and covariances that come of them.

    python benchmarks/neighbours.py [--sizes 10000 100000 1000000] [--k 16]

Points of a surface, in random order, look among themselves; at the first size so do those of a street that a LiDAR
sees, whose density falls off. "knn": from the arrays to the neighbours, checked against SciPy's tree in float64.
"normals": from the arrays to unit normals, checked against the eigenvectors of the true neighbours' covariances in
float64 where these are clear (the middle eigenvalue three times the least).
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
from peers import searchers
from scipy.spatial import cKDTree

from dlc_reg import ops

SAMPLE, CLEAR, TOLERANCE_DEG = 2_000, 3.0, 0.5


class Normals:
    """True normals of a sample of the points."""

    def __init__(self, points: clouds.Array, k: int) -> None:
        self.points, self.k = points.astype(np.float32).astype(np.float64), k
        self.rows = np.random.default_rng(0).permutation(len(points))[:SAMPLE]

    @cached_property
    def true(self) -> tuple[clouds.Array, Any]:
        tree = cKDTree(self.points, balanced_tree=False, compact_nodes=False)
        near = self.points[tree.query(self.points[self.rows], self.k)[1]]
        offsets = near - near.mean(1, keepdims=True)
        values, vectors = np.linalg.eigh(offsets.transpose(0, 2, 1) @ offsets)
        return vectors[:, :, 0], values[:, 1] > CLEAR * values[:, 0]

    def __call__(self, name: str, normals: Any) -> Checked:
        vectors, clear = self.true
        given = np.asarray(normals, dtype=np.float64)[self.rows, :3]
        angles = np.degrees(np.arccos(np.minimum(1, np.abs((given * vectors).sum(1)))))
        wrong = int((~(angles < TOLERANCE_DEG) & clear).sum())
        remark = "right" if wrong == 0 else f"{wrong} of {int(clear.sum())} off by more than {TOLERANCE_DEG} degrees"
        return Checked(wrong == 0, remark)


def knn(points: int, options: argparse.Namespace, kind: str = "surface") -> Work:
    p = clouds.cloud(kind, points, options.seed).astype(np.float32)
    cost = roofline.both(roofline.build(points), roofline.search(points, points, options.k))
    return Work(points, searchers(p, p, options.threads, options.k), Oracle(p, p, options.k), cost)


def normals(
    points: int, options: argparse.Namespace, names: tuple[str, ...] | None = None, kind: str = "surface"
) -> Work:
    p = clouds.cloud(kind, points, options.seed)
    makers: dict[str, Callable[[], Call]] = {
        OURS: lambda: _ours(p, options.k, options.threads),
        "small_gicp": lambda: _small_gicp(p, options.k, options.threads),
        "Open3D legacy": lambda: _legacy(p, options.k),
        "Open3D tensor": lambda: _tensor(p, options.k),
    }
    cost = roofline.both(
        roofline.build(points), roofline.search(points, points, options.k), roofline.geometry(points, options.k)
    )
    contenders = gather({name: make for name, make in makers.items() if names is None or name in names})
    return Work(points, contenders, Normals(p, options.k), cost)


def _ours(points: clouds.Array, k: int, threads: int) -> Call:
    p = torch.from_numpy(points.astype(np.float32))
    return lambda: ops.estimate_normals(p, k, num_threads=threads)


def _small_gicp(points: clouds.Array, k: int, threads: int) -> Call:
    import small_gicp

    def run() -> Any:
        cloud = small_gicp.PointCloud(points)
        tree = small_gicp.KdTree(cloud, num_threads=threads)
        small_gicp.estimate_normals(cloud, tree, num_neighbors=k, num_threads=threads)
        return cloud.normals()

    return run


def _legacy(points: clouds.Array, k: int) -> Call:
    import open3d as o3d

    def run() -> Any:
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
        cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(k))
        return cloud.normals

    return run


def _tensor(points: clouds.Array, k: int) -> Call:
    import open3d as o3d

    p = o3d.core.Tensor.from_numpy(points.astype(np.float32))

    def run() -> Any:
        cloud = o3d.t.geometry.PointCloud(p)
        cloud.estimate_normals(max_nn=k)
        return cloud.point.normals.numpy()

    return run


def cases(options: argparse.Namespace) -> Cases:
    found: Cases = {}
    for n in options.sizes:
        found[f"knn, k = {options.k}, {n:,} points"] = lambda n=n: knn(n, options)  # type: ignore[misc]
        found[f"normals, k = {options.k}, {n:,} points"] = lambda n=n: normals(n, options)  # type: ignore[misc]
    n, street = options.sizes[0], f"k = {options.k}, street, {options.sizes[0]:,} points"
    found[f"knn, {street}"] = lambda: knn(n, options, "lidar")
    found[f"normals, {street}"] = lambda: normals(n, options, kind="lidar")
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--k", type=int, default=16)


if __name__ == "__main__":
    harness.main(__file__, __doc__, cases, arguments)
