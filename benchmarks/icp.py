"""Point-to-plane ICP beside Open3D (legacy) and small_gicp: one thread, the same clouds, start and iterations.

    python benchmarks/icp.py [--points 100000] [--iterations 20] [--repeats 7]

Competitors alternate in one process; a time is the median of the repeats after one warm-up, and covers everything but
the target's normals: search structures, iterations and the result. The clouds are two independent samples of one
surface; the start is 5 degrees and 2% of the extent away. Answers are checked before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

os.environ["OMP_NUM_THREADS"] = "1"  # before Open3D is loaded, which has no argument for it

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation


def surface(count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and normals of a bumpy torus about 3 units wide."""
    rng = np.random.default_rng(seed)
    u, v = rng.uniform(0, 2 * np.pi, (2, count))

    def at(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        tube = 0.5 * (1 + 0.2 * np.sin(5 * u) * np.cos(3 * v))
        ring = 1.0 + tube * np.cos(v)
        return np.stack([ring * np.cos(u), ring * np.sin(u), tube * np.sin(v) + 0.1 * np.cos(2 * u)], 1)

    h = 1e-5
    normals = np.cross(at(u + h, v) - at(u - h, v), at(u, v + h) - at(u, v - h))
    return at(u, v), normals / np.linalg.norm(normals, axis=1, keepdims=True)


def competitors(
    source: NDArray[np.float64],
    target: NDArray[np.float64],
    normals: NDArray[np.float64],
    init: NDArray[np.float64],
    distance: float,
    iterations: int,
) -> dict[str, Callable[[], tuple[NDArray[np.float64], int]]]:
    """Name -> a call that registers and returns (T_target_source, iterations)."""
    import open3d as o3d
    import small_gicp
    import torch

    from dlc_reg.pipelines import registration as reg

    torch.set_num_threads(1)
    o3 = o3d.pipelines.registration
    a = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(source))
    b = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(target))
    b.normals = o3d.utility.Vector3dVector(normals)
    small_source, small_target = small_gicp.PointCloud(source), small_gicp.PointCloud(target)
    homogeneous = np.concatenate([normals, np.zeros((len(normals), 1))], 1)
    small_gicp.estimate_normals(small_target, num_neighbors=10, num_threads=1)
    assert small_target.normals().shape == homogeneous.shape

    def run_open3d() -> tuple[NDArray[np.float64], int]:
        r = o3.registration_icp(
            a, b, distance, init, o3.TransformationEstimationPointToPlane(), o3.ICPConvergenceCriteria(0, 0, iterations)
        )
        return np.asarray(r.transformation), iterations

    def run_small_gicp() -> tuple[NDArray[np.float64], int]:
        tree = small_gicp.KdTree(small_target, num_threads=1)
        r = small_gicp.align(
            small_target,
            small_source,
            tree,
            init,
            registration_type="PLANE_ICP",
            max_correspondence_distance=distance,
            num_threads=1,
            max_iterations=iterations,
            rotation_epsilon=0.0,
            translation_epsilon=0.0,
        )
        return np.asarray(r.T_target_source), max(1, int(r.iterations))

    def run_ours() -> tuple[NDArray[np.float64], int]:
        r = reg.registration_icp(
            a,
            b,
            distance,
            init,
            reg.TransformationEstimationPointToPlane(),
            reg.ICPConvergenceCriteria(0, 0, iterations),
            num_threads=1,
        )
        return np.asarray(r.transformation), iterations

    return {"dlc_reg": run_ours, "Open3D legacy": run_open3d, "small_gicp": run_small_gicp}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    points, _ = surface(options.points, seed=0)
    target, normals = surface(options.points, seed=1)
    T_target_source = np.eye(4)
    T_target_source[:3, :3] = Rotation.from_rotvec(np.radians([3.0, -2.0, 3.4])).as_matrix()
    T_target_source[:3, 3] = [0.05, -0.03, 0.02]
    source = (points - T_target_source[:3, 3]) @ T_target_source[:3, :3]
    methods = competitors(source, target, normals, np.eye(4), 0.2, options.iterations)

    for name, call in methods.items():
        T, _ = call()
        error = np.linalg.norm((T - T_target_source)[:3])
        print(f"{name:14s} error {error:.2e}")
        assert error < 0.01, f"{name} did not converge: nothing to compare"
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    steps: dict[str, int] = {}
    for _ in range(options.repeats):
        for name, call in methods.items():
            start = time.perf_counter()
            _, steps[name] = call()
            seconds[name].append(time.perf_counter() - start)

    print(
        f"\n{options.points} points a side, 1 thread, {platform.machine()}, Python {platform.python_version()}, "
        f"open3d {version('open3d')}, small_gicp {version('small_gicp')}, torch {version('torch')}"
    )
    print(f"{'':14s} {'median':>9s} {'spread':>15s} {'iterations':>10s} {'per iteration':>13s} {'ratio to ours':>13s}")
    ours = statistics.median(seconds["dlc_reg"]) / steps["dlc_reg"]
    for name, times in seconds.items():
        each = statistics.median(times) / steps[name]
        print(
            f"{name:14s} {statistics.median(times):8.3f}s {min(times):7.3f}-{max(times):.3f} {steps[name]:10d} "
            f"{1e3 * each:11.2f}ms {each / ours:12.2f}x"
        )


if __name__ == "__main__":
    main()
