"""Fast point feature histograms (FPFH) of every point.

    python benchmarks/features.py [--sizes 10000 100000]

A surface with its own normals, turned outwards; the radius is such that a point has about 60 neighbours, and all of
them count. From arrays to features: search structure and histograms. Ours are compared with Open3D's (legacy, 33
numbers a point) on a sample: these are the same histograms but for borders of bins, and for weights by which Open3D
counts a point itself.
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
from radius import radius_for

from dlc_reg import ops

NEIGHBOURS, ALIKE = 60, 0.95


class Alike:
    """Correlation with Open3D's features, where Open3D is installed."""

    def __init__(self, points: clouds.Array, normals: clouds.Array, radius: float) -> None:
        self.given = points, normals, radius

    @cached_property
    def true(self) -> Any:
        try:
            return _legacy(*self.given)()
        except ImportError:
            return None

    def __call__(self, name: str, features: Any) -> Checked:
        if self.true is None:
            return Checked(True, "not compared: Open3D is not installed")
        given, true = np.asarray(features), np.asarray(self.true)
        alike = float(np.corrcoef(given.ravel(), true.ravel())[0, 1])
        return Checked(alike > ALIKE, f"correlation {alike:.4f} with Open3D")


def work(points: int, options: argparse.Namespace) -> Work:
    p, normals = clouds.surface(points, options.seed)
    given = (p, normals, radius_for(p, NEIGHBOURS))
    makers: dict[str, Callable[[], Call]] = {
        OURS: lambda: _ours(*given, options.threads),
        "Open3D legacy": lambda: _legacy(*given),
        "Open3D tensor": lambda: _tensor(*given),
    }
    cost = roofline.both(roofline.build(points), roofline.fpfh(points, NEIGHBOURS))
    return Work(points, gather(makers), Alike(*given), cost)


def _ours(points: clouds.Array, normals: clouds.Array, radius: float, threads: int) -> Call:
    p, n = torch.from_numpy(points).float(), torch.from_numpy(normals).float()

    def run() -> Any:
        return ops.fpfh(ops.SearchIndex(p, num_threads=threads), n, radius, oriented=True, num_threads=threads)

    return run


def _legacy(points: clouds.Array, normals: clouds.Array, radius: float) -> Call:
    import open3d as o3d

    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
    cloud.normals = o3d.utility.Vector3dVector(normals)
    search = o3d.geometry.KDTreeSearchParamRadius(radius)
    return lambda: o3d.pipelines.registration.compute_fpfh_feature(cloud, search).data.T


def _tensor(points: clouds.Array, normals: clouds.Array, radius: float) -> Call:
    import open3d as o3d

    cloud = o3d.t.geometry.PointCloud(o3d.core.Tensor.from_numpy(points.astype(np.float32)))
    cloud.point.normals = o3d.core.Tensor.from_numpy(normals.astype(np.float32))
    compute = o3d.t.pipelines.registration.compute_fpfh_feature
    return lambda: compute(cloud, max_nn=None, radius=radius).numpy()


def cases(options: argparse.Namespace) -> Cases:
    return {f"FPFH, {n:,} points": lambda n=n: work(n, options) for n in options.sizes}  # type: ignore[misc]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])


if __name__ == "__main__":
    harness.main(__file__, __doc__, cases, arguments)
