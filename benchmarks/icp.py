"""ICP with a fixed number of iterations beside Open3D (legacy, tensor) and small_gicp.

    python benchmarks/icp.py [--sizes 100000] [--iterations N] [--kinds point_to_plane ...]

Two independent samples of one surface (or, "street", of what a LiDAR sees of one, whose density falls off), 5 degrees
and 2% of its size apart, the same start for all. Everything counts, from the arrays to the pose: clouds, search
structures, normals or covariances of 20 neighbours, iterations. "normals given" is point-to-plane on clouds that have
them (small_gicp takes none and estimates them there, too). Before anything is timed every pose is compared with the
truth. All make the same number of iterations, by default as many as all do: small_gicp stops when its error no longer
falls, and where it does so before, its time is divided by the share of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import clouds
import harness
import numpy as np
import roofline
import torch
from harness import OURS, Call, Cases, Checked, Work, gather

from dlc_reg import ops
from dlc_reg.geometry import PointCloud
from dlc_reg.registration.icp import Convergence, icp
from dlc_reg.registration.objectives import Generalized, PointToPlane, PointToPoint

ITERATIONS = {"point_to_point": 20, "point_to_plane": 20, "generalized": 8}
NEIGHBOURS, DISTANCE, SUCCESS = 20, 0.2, 0.01
STREET_UNIT = 130 / 3  # metres of its length
STREET_LEAST = 10_000  # points: of fewer, its sampling moves the best pose by more than SUCCESS
SMALL_GICP = {"point_to_point": "ICP", "point_to_plane": "PLANE_ICP", "generalized": "GICP"}

Pair = tuple[clouds.Array, clouds.Array, clouds.Array | None]  # source, target, the target's normals if given


def work(
    kind: str,
    points: int,
    options: argparse.Namespace,
    given: bool = False,
    names: tuple[str, ...] | None = None,
    street: bool = False,
    early: bool = False,
) -> Work:
    """`early`: the iterations are so few that another library, which steps more carefully, is only on its way."""
    (fixed, normals), (moving, _) = (_cloud(points, options.seed + i, street) for i in (1, 0))
    source, truth = clouds.start(moving)
    iterations = options.iterations or ITERATIONS[kind]
    task = (kind, (source, fixed, normals if given else None), iterations)
    makers: dict[str, Callable[[], Call]] = {
        OURS: lambda: _ours(*task, options.threads),
        "small_gicp": lambda: _small_gicp(*task, options.threads),
        "Open3D legacy": lambda: _legacy(*task),
    }
    if kind != "generalized" and not street:  # it looks at all points within the distance: minutes near the scanner
        makers["Open3D tensor"] = lambda: _tensor(*task)

    def check(name: str, answer: tuple[Any, int]) -> Checked:
        T, made = answer
        error = np.linalg.norm((np.asarray(T) - truth)[:3])
        limit = SUCCESS if kind != "point_to_point" else 10 * SUCCESS  # which creeps along a surface
        if early and name != OURS:
            limit = 0.5 * float(np.linalg.norm((truth - np.eye(4))[:3]))
        remark = f"error {error:.1e}, {made} iterations"
        return Checked(bool(error < limit), remark, steps=made / iterations)

    contenders = gather({name: make for name, make in makers.items() if names is None or name in names})
    return Work(points, contenders, check, _cost(kind, points, iterations, given))


def _cloud(points: int, seed: int, street: bool) -> tuple[clouds.Array, clouds.Array | None]:
    """Points and, of the surface, normals; the street is as wide as the surface."""
    if not street:
        return clouds.surface(points, seed)
    return clouds.lidar(points, seed) / STREET_UNIT, None


def _cost(kind: str, points: int, iterations: int, given: bool) -> harness.Cost:
    clouds_with_geometry = {"point_to_point": 0, "point_to_plane": 0 if given else 1, "generalized": 2}[kind]
    geometry = roofline.both(roofline.search(points, points, NEIGHBOURS), roofline.geometry(points, NEIGHBOURS))
    return roofline.both(roofline.icp(kind, points, points, iterations), *[geometry] * clouds_with_geometry)


def _ours(kind: str, pair: Pair, iterations: int, threads: int) -> Call:
    source, target, given = pair
    objective = {"point_to_point": PointToPoint, "point_to_plane": PointToPlane, "generalized": Generalized}[kind]()
    stop = Convergence(0.0, 0.0, iterations)

    def run() -> tuple[Any, int]:
        a, b = PointCloud.from_any(source, name="source"), PointCloud.from_any(target, name="target")
        index = ops.SearchIndex(b.points, num_threads=threads)
        if given is not None:
            b = replace(b, normals=torch.from_numpy(given).float())
        elif kind != "point_to_point":
            b = replace(b, normals=ops.estimate_normals(index, NEIGHBOURS, num_threads=threads))
        if kind == "generalized":
            a = a.with_normals(NEIGHBOURS, num_threads=threads)
        r = icp(a, b, objective, max_distance=DISTANCE, convergence=stop, index=index, num_threads=threads)
        return r.transformation, r.iterations

    return run


def _small_gicp(kind: str, pair: Pair, iterations: int, threads: int) -> Call:
    import small_gicp

    source, target, _ = pair

    def run() -> tuple[Any, int]:
        b = small_gicp.PointCloud(target)
        tree = small_gicp.KdTree(b, num_threads=threads)
        a = small_gicp.PointCloud(source)
        if kind == "point_to_plane":
            # it takes no normals from outside, so where the others have theirs given it estimates them all the same
            small_gicp.estimate_normals(b, tree, num_neighbors=NEIGHBOURS, num_threads=threads)
        if kind == "generalized":
            small_gicp.estimate_covariances(b, tree, num_neighbors=NEIGHBOURS, num_threads=threads)
            small_gicp.estimate_covariances(a, num_neighbors=NEIGHBOURS, num_threads=threads)
        r = small_gicp.align(
            b,
            a,
            tree,
            np.eye(4),
            registration_type=SMALL_GICP[kind],
            max_correspondence_distance=DISTANCE,
            num_threads=threads,
            max_iterations=iterations,
            rotation_epsilon=0.0,
            translation_epsilon=0.0,
        )
        return r.T_target_source, int(r.iterations) + 1  # it gives the number of the last, from 0

    return run


def _legacy(kind: str, pair: Pair, iterations: int) -> Call:
    import open3d as o3d

    o3 = o3d.pipelines.registration
    source, target, given = pair
    criteria = o3.ICPConvergenceCriteria(0, 0, iterations)
    search = o3d.geometry.KDTreeSearchParamKNN(NEIGHBOURS)

    def run() -> tuple[Any, int]:
        a, b = (o3d.geometry.PointCloud(o3d.utility.Vector3dVector(x)) for x in (source, target))
        if kind == "generalized":
            a.estimate_covariances(search)
            b.estimate_covariances(search)
            r = o3.registration_generalized_icp(
                a, b, DISTANCE, np.eye(4), o3.TransformationEstimationForGeneralizedICP(), criteria
            )
            return r.transformation, iterations
        if kind == "point_to_point":
            estimation = o3.TransformationEstimationPointToPoint()
        else:
            estimation = o3.TransformationEstimationPointToPlane()
            if given is None:
                b.estimate_normals(search)
            else:
                b.normals = o3d.utility.Vector3dVector(given)
        r = o3.registration_icp(a, b, DISTANCE, np.eye(4), estimation, criteria)
        return r.transformation, iterations

    return run


def _tensor(kind: str, pair: Pair, iterations: int) -> Call:
    import open3d as o3d

    o3 = o3d.t.pipelines.registration
    source, target, given = (None if x is None else o3d.core.Tensor.from_numpy(x.astype(np.float32)) for x in pair)
    criteria = o3.ICPConvergenceCriteria(0, 0, iterations)

    def run() -> tuple[Any, int]:
        a, b = o3d.t.geometry.PointCloud(source), o3d.t.geometry.PointCloud(target)
        if kind == "point_to_point":
            estimation = o3.TransformationEstimationPointToPoint()
        else:
            estimation = o3.TransformationEstimationPointToPlane()
            if given is None:
                b.estimate_normals(max_nn=NEIGHBOURS)
            else:
                b.point.normals = given
        r = o3.icp(a, b, DISTANCE, np.eye(4), estimation, criteria)
        return r.transformation.numpy(), iterations

    return run


def case(kind: str, points: int, iterations: int, given: bool = False, street: bool = False) -> str:
    what = f"{kind}{', normals given' if given else ''}{', street' if street else ''}"
    return f"{what}, {points:,} points, {iterations} iterations"


def cases(options: argparse.Namespace) -> Cases:
    variants = [(kind, n, False, False) for n in options.sizes for kind in options.kinds]
    if "point_to_plane" in options.kinds:
        variants += [("point_to_plane", n, True, False) for n in options.sizes]
        variants.append(("point_to_plane", max(options.sizes[0], STREET_LEAST), False, True))
    found: Cases = {}
    for kind, n, given, street in variants:
        task = (kind, n, options, given, None, street)
        name = case(kind, n, options.iterations or ITERATIONS[kind], given, street)
        found[name] = lambda task=task: work(*task)  # type: ignore[misc]
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", "--points", type=int, nargs="+", default=[100_000])
    parser.add_argument("--iterations", type=int, help="default: 20, of generalized ICP 8")
    parser.add_argument("--kinds", nargs="+", choices=ITERATIONS, default=list(ITERATIONS))


if __name__ == "__main__":
    harness.main(__file__, __doc__, cases, arguments)
