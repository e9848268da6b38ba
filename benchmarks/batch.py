"""Many small clouds: `ops.icp_batch` in one call beside small_gicp and Open3D (legacy), which register one by one.

    python benchmarks/batch.py [--pairs 256] [--points 1024] [--data SHAPES.npz]

Whole shapes of the unit sphere, two clouds that share no point, noise 0.01, rotations of 0 to 30 degrees; all start
with the means on each other. A time covers everything from the arrays to the poses: clouds, search structures, normals
or covariances of 20 neighbours, iterations. Each library has its own rule of convergence and at most 30 iterations, so
the share of pairs that end within 5 degrees stands beside it: no speed is bought with wrong answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import clouds
import harness
import numpy as np
import roofline
import torch
from clouds import Array
from harness import OURS, Call, Cases, Checked, Work, gather

from dlc_reg import ops
from dlc_reg.metrics import rotation_error
from dlc_reg.protocols import PairBatch, PairDataset, Shapes, collate, protocol

NEIGHBOURS, ITERATIONS, SUCCESS_DEG, LEAST = 20, 30, 5.0, 0.25
SMALL_GICP = {"point_to_point": "ICP", "point_to_plane": "PLANE_ICP", "generalized": "GICP"}


def synthetic_shapes(count: int, points: int, seed: int) -> Shapes:
    rng = np.random.default_rng(seed)
    heaps = np.stack([clouds.heap(points, rng) for _ in range(count)]).astype(np.float32)
    names = np.array([f"heap{i}" for i in range(count)])
    return Shapes(heaps, None, np.full(count, "heap"), names, np.full(count, "test"))


def make_pairs(options: argparse.Namespace) -> PairBatch:
    if options.data:
        shapes = Shapes.load(options.data)
    else:
        shapes = synthetic_shapes(options.pairs, 2 * options.points, options.seed)
    kind = replace(protocol("full-0-30-noise"), points=options.points)
    dataset = PairDataset(shapes, kind, seed=options.seed, length=options.pairs)
    return collate([dataset[i] for i in range(options.pairs)])


def work(kind: str, options: argparse.Namespace) -> Work:
    pairs = make_pairs(options)
    start = np.tile(np.eye(4), (len(pairs), 1, 1))
    start[:, :3, 3] = (pairs.target.double().mean(1) - pairs.source.double().mean(1)).numpy()
    given = (pairs, start, options.max_distance, kind)
    makers: dict[str, Callable[[], Call]] = {
        OURS: lambda: _ours(*given, options.threads),
        "small_gicp": lambda: _small_gicp(*given, options.threads),
        "Open3D legacy": lambda: _open3d(*given),
    }
    if kind == "point_to_plane":
        makers["small_gicp GICP"] = lambda: _small_gicp(pairs, start, options.max_distance, "generalized", 1)

    def check(name: str, answer: tuple[Array, float]) -> Checked:
        poses, iterations = answer
        degrees = np.degrees(rotation_error(torch.from_numpy(poses), pairs.truth.double()).numpy())
        share = float(np.mean(degrees < SUCCESS_DEG))
        steps = "" if np.isnan(iterations) else f", {iterations:.1f} iterations"
        return Checked(share > LEAST, f"{share:.1%} right, median {np.median(degrees):.2f} deg{steps}")

    found = gather(makers)
    iterations = float(found[OURS]()[1]) if OURS in found else ITERATIONS  # as many as the work takes, to count it
    neighbours = NEIGHBOURS if kind == "point_to_plane" else 0
    cost = roofline.small_icps(kind, len(pairs), options.points, iterations, neighbours)
    return Work(options.points, found, check, cost)


def _ours(pairs: PairBatch, start: Array, distance: float, kind: str, threads: int) -> Call:
    init = torch.from_numpy(start)

    def run() -> tuple[Array, float]:
        found = ops.icp_batch(
            pairs.source,
            pairs.target,
            init,
            kind=kind,
            max_distance=distance,
            max_iterations=ITERATIONS,
            neighbours=NEIGHBOURS,
            num_threads=threads,
        )
        return found.transformations.numpy(), float(found.iterations.double().mean())

    return run


def _small_gicp(pairs: PairBatch, start: Array, distance: float, kind: str, threads: int) -> Call:
    import small_gicp

    sources, targets = pairs.source.double().numpy(), pairs.target.double().numpy()

    def prepared(points: Array) -> tuple[Any, Any]:
        cloud = small_gicp.PointCloud(points)
        return cloud, small_gicp.KdTree(cloud, num_threads=threads)

    def register(source_points: Array, target_points: Array, init: Array) -> tuple[Array, int]:
        target, tree = prepared(target_points)
        if kind == "generalized":
            source, source_tree = prepared(source_points)
            small_gicp.estimate_covariances(source, source_tree, num_neighbors=NEIGHBOURS, num_threads=threads)
            small_gicp.estimate_covariances(target, tree, num_neighbors=NEIGHBOURS, num_threads=threads)
        else:
            source = small_gicp.PointCloud(source_points)
        if kind == "point_to_plane":
            small_gicp.estimate_normals(target, tree, num_neighbors=NEIGHBOURS, num_threads=threads)
        r = small_gicp.align(
            target,
            source,
            tree,
            init,
            registration_type=SMALL_GICP[kind],
            max_correspondence_distance=distance,
            num_threads=threads,
            max_iterations=ITERATIONS,
        )
        return np.asarray(r.T_target_source), int(r.iterations) + 1

    return lambda: _one_by_one(register, sources, targets, start)


def _open3d(pairs: PairBatch, start: Array, distance: float, kind: str) -> Call:
    import open3d as o3d

    o3 = o3d.pipelines.registration
    sources, targets = pairs.source.double().numpy(), pairs.target.double().numpy()
    rule = o3.ICPConvergenceCriteria(max_iteration=ITERATIONS)

    def register(source_points: Array, target_points: Array, init: Array) -> tuple[Array, float]:
        source = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(source_points))
        target = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(target_points))
        if kind == "point_to_plane":
            target.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(NEIGHBOURS))
            estimation = o3.TransformationEstimationPointToPlane()
        else:
            estimation = o3.TransformationEstimationPointToPoint()
        return np.asarray(o3.registration_icp(source, target, distance, init, estimation, rule).transformation), np.nan

    return lambda: _one_by_one(register, sources, targets, start)


def _one_by_one(register: Callable[..., tuple[Array, float]], *pairs: Array) -> tuple[Array, float]:
    poses, iterations = zip(*(register(*pair) for pair in zip(*pairs, strict=True)), strict=True)
    return np.stack(poses), float(np.mean(iterations))


def case(kind: str, pairs: int, points: int) -> str:
    return f"{kind}, {pairs:,} pairs of {points:,} points"


def cases(options: argparse.Namespace) -> Cases:
    kinds = ("point_to_plane", "point_to_point")
    return {
        case(kind, options.pairs, options.points): lambda kind=kind: work(kind, options)  # type: ignore[misc]
        for kind in kinds
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--data", type=Path, help="shapes that datasets/*.py prepared")
    parser.add_argument(
        "--max-distance", type=float, default=0.5, help="of correspondences, in the unit sphere's radius"
    )


if __name__ == "__main__":
    harness.main(__file__, __doc__, cases, arguments)
