"""Fast point feature histograms (FPFH) of every point.

    python benchmarks/features.py [--sizes 10000 100000]

A surface with its own normals, turned outwards; the radius is such that a point has about 60 neighbours, and all of
them count. From arrays to features: search structure and histograms, 33 numbers a point. They are compared with the
readable twin's in float64 in one place, and where it is installed with Open3D's (legacy) everywhere: these are the same
histograms but for borders of bins, and for weights by which Open3D counts a point itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
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
from dlc_reg.ops import _hypotheses_reference

NEIGHBOURS, ALIKE = 60, 0.95


class Alike:
    """Correlations with the readable twin's features in one place, and with Open3D's everywhere where it is installed.

    A point's features depend on what is within two radii: of a ball of four, those within two have theirs complete.
    """

    def __init__(self, points: clouds.Array, normals: clouds.Array, radius: float) -> None:
        self.given = points, normals, radius

    @cached_property
    def true(self) -> list[tuple[str, Any, Any]]:
        """Of whom, which rows, their features."""
        points, normals, radius = self.given
        reach = np.linalg.norm(points - points[0], axis=1)
        ball, whole = (np.flatnonzero(reach < times * radius) for times in (4, 2))
        p, n = (torch.from_numpy(x[ball]) for x in (points, normals))
        twin = _hypotheses_reference.fpfh(p, n, radius, oriented=True)
        found = [("the twin", whole, twin.numpy()[np.isin(ball, whole)])]
        with suppress(ImportError):
            found.append(("Open3D", slice(None), np.asarray(_legacy(*self.given)())))
        return found

    def __call__(self, name: str, features: Any) -> Checked:
        given = np.asarray(features)
        alike = {of: float(np.corrcoef(given[rows].ravel(), x.ravel())[0, 1]) for of, rows, x in self.true}
        remark = ", ".join(f"{value:.4f} with {of}" for of, value in alike.items())
        return Checked(min(alike.values()) > ALIKE, f"correlation {remark}")


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
