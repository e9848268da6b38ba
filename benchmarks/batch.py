"""Many small clouds: `ops.icp_batch` in one call beside small_gicp and Open3D (legacy), which register one by one.

    python benchmarks/batch.py [--pairs 256] [--points 1024] [--data SHAPES.npz] [--repeats 5]

Whole shapes of the unit sphere, two clouds that share no point, noise 0.01, rotations of 0 to 30 degrees; all start
with the means on each other. A time covers everything from the arrays to the poses: clouds, search structures, normals
or covariances of 20 neighbours, iterations. Each library has its own rule of convergence and at most 30 iterations.
Competitors alternate in one process; a time is the median of the repeats after one warm-up. Beside it stands the share
of pairs that end within 5 degrees, so that no speed is bought with wrong answers.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before Open3D is loaded, which has no argument for it

import numpy as np
import torch
from numpy.typing import NDArray

from dlc_reg import ops
from dlc_reg.metrics import rotation_error
from dlc_reg.protocols import PairBatch, PairDataset, Shapes, collate, protocol

Array = NDArray[np.float64]
Method = Callable[[], tuple[Array, float]]  # -> T_target_source (B, 4, 4), mean iterations

NEIGHBOURS, ITERATIONS, SUCCESS_DEG = 20, 30, 5.0


def synthetic_shapes(count: int, points: int, seed: int = 0) -> Shapes:
    """Each a heap of three to five boxes and tori of random sizes and poses, which has no symmetry."""
    rng = np.random.default_rng(seed)
    clouds = np.stack([_heap(points, rng) for _ in range(count)]).astype(np.float32)
    names = np.array([f"heap{i}" for i in range(count)])
    return Shapes(clouds, None, np.full(count, "heap"), names, np.full(count, "test"))


def _heap(points: int, rng: np.random.Generator) -> Array:
    parts = []
    for share in rng.multinomial(points, rng.dirichlet(np.full(rng.integers(3, 6), 5.0))):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        part = (_box if rng.random() < 0.5 else _torus)(int(share), rng)
        parts.append(part @ turn + rng.uniform(-0.5, 0.5, 3))
    heap = rng.permutation(np.concatenate(parts))
    heap -= heap.mean(0)
    return heap / np.linalg.norm(heap, axis=1).max()


def _box(points: int, rng: np.random.Generator) -> Array:
    size = rng.uniform(0.1, 0.6, 3)
    areas = np.prod(size) / size
    at, face = rng.uniform(-1, 1, (points, 3)), rng.choice(3, points, p=areas / areas.sum())
    at[range(points), face] = rng.choice((-1.0, 1.0), points)
    return at * size


def _torus(points: int, rng: np.random.Generator) -> Array:
    ring, tube = rng.uniform(0.25, 0.6), rng.uniform(0.05, 0.2)
    u, v = rng.uniform(0, 2 * np.pi, (2, points))
    radius = ring + tube * np.cos(v)
    return np.stack([radius * np.cos(u), radius * np.sin(u), tube * np.sin(v)], 1)


def make_pairs(shapes: Shapes, count: int, points: int) -> PairBatch:
    kind = replace(protocol("full-0-30-noise"), points=points)
    dataset = PairDataset(shapes, kind, seed=0, length=count)
    return collate([dataset[i] for i in range(count)])


def ours(pairs: PairBatch, start: Array, distance: float, kind: str, threads: int) -> Method:
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


def small_gicp_method(pairs: PairBatch, start: Array, distance: float, kind: str) -> Method:
    import small_gicp

    sources, targets = pairs.source.double().numpy(), pairs.target.double().numpy()

    def prepared(points: Array) -> tuple[small_gicp.PointCloud, small_gicp.KdTree]:
        cloud = small_gicp.PointCloud(points)
        return cloud, small_gicp.KdTree(cloud, num_threads=1)

    def register(source_points: Array, target_points: Array, init: Array) -> tuple[Array, int]:
        target, tree = prepared(target_points)
        if kind == "GICP":
            source, source_tree = prepared(source_points)
            small_gicp.estimate_covariances(source, source_tree, num_neighbors=NEIGHBOURS, num_threads=1)
            small_gicp.estimate_covariances(target, tree, num_neighbors=NEIGHBOURS, num_threads=1)
        else:
            source = small_gicp.PointCloud(source_points)
        if kind == "PLANE_ICP":
            small_gicp.estimate_normals(target, tree, num_neighbors=NEIGHBOURS, num_threads=1)
        r = small_gicp.align(
            target,
            source,
            tree,
            init,
            registration_type=kind,
            max_correspondence_distance=distance,
            num_threads=1,
            max_iterations=ITERATIONS,
        )
        return np.asarray(r.T_target_source), int(r.iterations)

    return lambda: one_by_one(register, sources, targets, start)


def open3d_method(pairs: PairBatch, start: Array, distance: float, kind: str) -> Method:
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

    return lambda: one_by_one(register, sources, targets, start)


def one_by_one(register: Callable[..., tuple[Array, float]], *pairs: Array) -> tuple[Array, float]:
    poses, iterations = zip(*(register(*pair) for pair in zip(*pairs, strict=True)), strict=True)
    return np.stack(poses), float(np.mean(iterations))


def competitors(pairs: PairBatch, distance: float) -> dict[str, Method]:
    start = np.tile(np.eye(4), (len(pairs), 1, 1))
    start[:, :3, 3] = (pairs.target.double().mean(1) - pairs.source.double().mean(1)).numpy()
    methods = {
        f"icp_batch {kind}, {threads} thread{'s' * (threads > 1)}": ours(pairs, start, distance, kind, threads)
        for kind in ("point_to_plane", "point_to_point")
        for threads in (1, 2)
    }
    for kind in ("PLANE_ICP", "ICP", "GICP"):
        methods[f"small_gicp {kind}"] = small_gicp_method(pairs, start, distance, kind)
    try:
        for kind in ("point_to_plane", "point_to_point"):
            methods[f"Open3D {kind}"] = open3d_method(pairs, start, distance, kind)
    except ImportError:
        print("without Open3D, which is not installed")
    return methods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--data", type=Path, help="shapes that datasets/*.py prepared")
    parser.add_argument(
        "--max-distance", type=float, default=0.5, help="of correspondences, in the unit sphere's radius"
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    torch.set_num_threads(1)
    shapes = Shapes.load(options.data) if options.data else synthetic_shapes(options.pairs, 2 * options.points)
    pairs = make_pairs(shapes, options.pairs, options.points)
    methods = competitors(pairs, options.max_distance)
    answers = {name: call() for name, call in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(options.repeats):
        for name, call in methods.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)

    print(
        f"{len(pairs)} pairs of {pairs.source.shape[1]} points, {options.data or 'synthetic shapes'}; "
        f"{processor()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {ops.simd_level()}, "
        f"Python {platform.python_version()}, torch {version('torch')}, small_gicp {version('small_gicp')}"
        + (f", open3d {version('open3d')}" if any("Open3D" in name for name in methods) else "")
    )
    print(
        f"{'':36s} {'median':>8s} {'spread':>13s} {'a pair':>8s} {'ratio':>6s} {'success':>8s} {'error':>9s} iterations"
    )
    first = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        poses, iterations = answers[name]
        degrees = np.degrees(rotation_error(torch.from_numpy(poses), pairs.truth.double()).numpy())
        median = statistics.median(times)
        print(
            f"{name:36s} {median:7.3f}s {min(times):6.3f}-{max(times):.3f} {1e3 * median / len(pairs):6.2f}ms "
            f"{median / first:5.2f}x {100 * np.mean(degrees < SUCCESS_DEG):7.1f}% {np.median(degrees):6.2f}deg "
            f"{iterations:10.1f}"
        )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


if __name__ == "__main__":
    main()
