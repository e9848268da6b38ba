"""RANSAC and FGR against Open3D's own, on real fragments: how often each is right, and how long each takes.

    python tools/open3d_consensus.py FRAGMENTS.npz [--pairs 20] [--seeds 3] [--voxel 0.05] [--seed 0]

Both get the same thinned clouds with the same normals, each its own features; a pose is right within 15 degrees and
0.3 m of the recorded one. Times are of one process, the two in turn, features and matching included.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import open3d
from fragments import Fragments
from scene_methods import fgr, fpfh, ransac
from tqdm import tqdm

import dlc_reg
from dlc_reg.metrics import rotation_error, translation_error
from dlc_reg.pipelines import registration as ours

theirs = open3d.pipelines.registration
MODULES = {"Open3D": theirs, "dlc_reg": ours}


METHODS: dict[str, Callable[..., Any]] = {
    "RANSAC, mutual filter": ransac,
    "RANSAC, all matches": partial(ransac, mutual=False),
    "FGR": fgr,
}


def solve(method: Callable[..., Any], reg: Any, clouds: Sequence[Any], voxel: float, seed: int) -> Any:
    more = {"seed": seed, "num_threads": 1} if reg is ours else {}
    return method(reg, clouds, fpfh(reg, clouds, voxel), voxel, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="fragments, as datasets/threedmatch.py prepares them")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of each benchmark")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--voxel", type=float, default=0.05, help="[m]")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pairs")
    options = parser.parse_args()
    open3d.utility.set_verbosity_level(open3d.utility.VerbosityLevel.Error)
    warnings.filterwarnings("ignore", message="mutual_filter")
    fragments = Fragments(options.data)
    print(
        f"dlc_reg {dlc_reg.__version__}, Open3D {open3d.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, voxel {options.voxel:g} m, "
        f"{options.pairs} pairs drawn with seed {options.seed}, {options.seeds} seeds of each method\n"
    )
    print(
        "| pairs | method | right, Open3D | right, dlc_reg | time, Open3D's over ours, median |\n|---|---|---|---|---|"
    )
    for benchmark in fragments.benchmarks:
        right, ratios = defaultdict(list), defaultdict(list)
        tasks = list(fragments.pairs(benchmark, options.pairs, np.random.default_rng(options.seed)))
        for task in tqdm(tasks):
            clouds = [thinned(fragments, i, options.voxel) for i in (task.source, task.target)]
            for name, method in METHODS.items():
                for seed in range(options.seeds):
                    seconds = {}
                    for module in sorted(MODULES, reverse=bool(seed % 2)):
                        open3d.utility.random.seed(seed)
                        began = time.perf_counter()
                        result = solve(method, MODULES[module], clouds, options.voxel, seed)
                        seconds[module] = time.perf_counter() - began
                        pose = np.array(result.transformation)
                        turn = np.degrees(float(rotation_error(pose, task.T_target_source)))
                        shift = float(translation_error(pose, task.T_target_source))
                        right[name, module].append(turn < 15 and shift < 0.3)
                    ratios[name].append(seconds["Open3D"] / seconds["dlc_reg"])
        for name in METHODS:
            shares = [f"{sum(right[name, module])} of {len(right[name, module])}" for module in MODULES]
            print("|", " | ".join([benchmark, name, *shares, f"{statistics.median(ratios[name]):.1f}"]), "|")


def thinned(fragments: Fragments, i: int, voxel: float) -> Any:
    """An Open3D cloud whose normals point to the sensor, at the origin."""
    points = open3d.utility.Vector3dVector(fragments.cloud(i, viewpoint=False).to_absolute())
    cloud = open3d.geometry.PointCloud(points).voxel_down_sample(voxel)
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamHybrid(2 * voxel, 30))
    cloud.orient_normals_towards_camera_location()
    return cloud


if __name__ == "__main__":
    main()
