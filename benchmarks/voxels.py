"""Voxel downsampling: one point a voxel, the mean of what is in it.

    python benchmarks/voxels.py [--sizes 10000 100000 1000000] [--voxel 0.03]

A surface 3 units wide, points in random order, from the arrays to the means. Each library lays its grid where it
likes, so the means, sorted by voxel, are compared with NumPy's in float64 on that library's grid, one by one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import clouds
import harness
import numpy as np
import roofline
import torch
from harness import OURS, Call, Cases, Checked, Work, gather
from numpy.typing import NDArray

from dlc_reg import ops

ROUNDING = 1e-3
"""Share of voxels that may differ: float32 and float64 put points at a border on different sides of it."""
NEAR = 1e-3
"""Of a voxel's edge: how far a mean in float32 may be from the true one."""
SINGLE = (OURS, "Open3D tensor")
FROM_LEAST = (OURS, "Open3D legacy")


class Means:
    """True means in float64, sorted by voxel, on the grid and of the points that a library has."""

    def __init__(self, points: clouds.Array, voxel: float) -> None:
        self.points, self.voxel = points, voxel

    def origin(self, name: str, points: clouds.Array) -> clouds.Array:
        return points.min(0) - self.voxel / 2 if name in FROM_LEAST else np.zeros(3)

    def keys(self, points: clouds.Array, origin: clouds.Array) -> NDArray[np.int64]:
        cells = np.floor((points - origin) / self.voxel).astype(np.int64) + 2**20
        keys: NDArray[np.int64] = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
        return keys

    def true(self, name: str) -> tuple[clouds.Array, NDArray[np.int64], clouds.Array]:
        """The grid's origin, the voxels' keys in order, their means."""
        points = self.points.astype(np.float32).astype(np.float64) if name in SINGLE else self.points
        origin = self.origin(name, points)
        keys, inverse, counts = np.unique(self.keys(points, origin), return_inverse=True, return_counts=True)
        return origin, keys, np.stack([np.bincount(inverse, axis) for axis in points.T], 1) / counts[:, None]

    def __call__(self, name: str, means: Any) -> Checked:
        origin, keys, true = self.true(name)
        given = np.asarray(means, dtype=np.float64)[:, :3]
        own = self.keys(given, origin)  # a mean lies in its voxel
        order = np.argsort(own, kind="stable")
        given, own = given[order], own[order]
        at = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
        same = (keys[at] == own) & (np.abs(given - true[at]).max(1) <= NEAR * self.voxel)
        same[1:] &= own[1:] != own[:-1]
        wrong = max(len(given), len(keys)) - int(same.sum())
        right = wrong <= ROUNDING * len(keys)
        return Checked(right, f"{len(given):,} voxels" + ("" if right else f", {wrong:,} of {len(keys):,} wrong"))


def work(points: int, options: argparse.Namespace, names: tuple[str, ...] | None = None) -> Work:
    p, voxel = clouds.cloud("surface", points, options.seed), options.voxel
    makers: dict[str, Callable[[], Call]] = {
        OURS: lambda: _ours(p, voxel, options.threads),
        "small_gicp": lambda: _small_gicp(p, voxel, options.threads),
        "Open3D legacy": lambda: _legacy(p, voxel),
        "Open3D tensor": lambda: _tensor(p, voxel),
    }
    contenders = gather({name: make for name, make in makers.items() if names is None or name in names})
    groups = min(points, int(33_000 * (0.03 / voxel) ** 2))  # the surface's area over a voxel's
    return Work(points, contenders, Means(p, voxel), roofline.voxels(points, groups))


def _ours(points: clouds.Array, voxel: float, threads: int) -> Call:
    p = torch.from_numpy(points.astype(np.float32))
    return lambda: ops.voxel_downsample(p, voxel, num_threads=threads)


def _small_gicp(points: clouds.Array, voxel: float, threads: int) -> Call:
    import small_gicp

    return lambda: small_gicp.voxelgrid_sampling(small_gicp.PointCloud(points), voxel, num_threads=threads).points()


def _legacy(points: clouds.Array, voxel: float) -> Call:
    import open3d as o3d

    return lambda: o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points)).voxel_down_sample(voxel).points


def _tensor(points: clouds.Array, voxel: float) -> Call:
    import open3d as o3d

    p = o3d.core.Tensor.from_numpy(points.astype(np.float32))
    return lambda: o3d.t.geometry.PointCloud(p).voxel_down_sample(voxel).point.positions.numpy()


def cases(options: argparse.Namespace) -> Cases:
    return {f"{n:,} points, voxels of {options.voxel}": lambda n=n: work(n, options) for n in options.sizes}  # type: ignore[misc]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--voxel", type=float, default=0.03)


if __name__ == "__main__":
    harness.main(__file__, __doc__, cases, arguments)
