"""What registering two large clouds takes: seconds, the peak of memory, and how far the answer is from the truth.

    python benchmarks/large.py [--points 10000000] [--method auto] [--threads 2] [--seed 0]

A hilly town of 400 m with houses of many sizes is sampled twice, with noise of 1 cm; the second is turned by 40 degrees
about a tilted axis and moved. Both are .npy files of float64 at georeferenced coordinates, as a user would have them,
and a process of its own registers them: its peak is of everything, the interpreter and the libraries included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]

SIZE = 400.0  # [m]
HOUSES = 150
NOISE = 0.01  # [m]
ORIGIN = np.array([432_100.0, 5_411_900.0, 310.0])
CHUNK = 500_000  # points made at once


def truth() -> Array:
    """T_target_source (4, 4), between the coordinates in the files."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(np.radians(40) * np.array([0.1, -0.2, 0.97])).as_matrix()
    T[:3, 3] = ORIGIN + np.array([12.0, -7.0, 3.0]) - T[:3, :3] @ ORIGIN
    return T


def ground(x: Array, y: Array) -> Array:
    """Heights of the terrain [m]."""
    return 6 * np.sin(x / 47) * np.cos(y / 61) + 2.5 * np.sin((x + 2 * y) / 29) + 0.02 * x


def houses(seed: int) -> Array:
    """(HOUSES, 6): centre x and y, angle [rad], length, width and height."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(-0.46 * SIZE, 0.46 * SIZE, (HOUSES, 2))
    sizes = rng.uniform([8, 6, 4], [30, 16, 18], (HOUSES, 3))
    return np.concatenate([place, rng.uniform(0, np.pi, (HOUSES, 1)), sizes], axis=1)


def town(count: int, seed: int, sampling: int) -> Array:
    """(count, 3): the town `seed` about the origin, sampled evenly over its ground, walls and roofs."""
    built, rng = houses(seed), np.random.default_rng([seed, sampling])
    length, width, height = built[:, 3:].T
    areas = np.stack([length * width, 2 * width * height, 2 * length * height], axis=1)
    shares = np.append(areas.ravel(), SIZE**2)
    part = rng.choice(len(shares), count, p=shares / shares.sum())
    on_ground = part == len(shares) - 1
    x, y, angle, *sides = built[np.minimum(part // 3, HOUSES - 1)].T
    local = rng.uniform(-0.5, 0.5, (3, count))  # of a box of side 1, whose bottom has no points
    face, end = part % 3, rng.choice([-0.5, 0.5], count)
    for axis, kind in ((2, 0), (0, 1), (1, 2)):
        local[axis] = np.where(face == kind, 0.5 if axis == 2 else end, local[axis])
    u, v, w = local * np.array(sides)
    px, py = x + u * np.cos(angle) - v * np.sin(angle), y + u * np.sin(angle) + v * np.cos(angle)
    free = rng.uniform(-SIZE / 2, SIZE / 2, (2, count))
    px, py = np.where(on_ground, free[0], px), np.where(on_ground, free[1], py)
    pz = np.where(on_ground, ground(px, py), ground(x, y) + w + sides[2] / 2)
    return np.stack([px, py, pz], axis=1) + rng.normal(0, NOISE, (count, 3))


def write(path: Path, points: int, seed: int, which: int) -> None:
    """The source (`which` 0) or the target (1)."""
    pose = np.linalg.inv(truth()) if which == 0 else np.eye(4)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(points, 3))
    for begin in range(0, points, CHUNK):
        made = town(min(CHUNK, points - begin), seed, 1000 * which + begin // CHUNK) + ORIGIN
        out[begin : begin + len(made)] = made @ pose[:3, :3].T + pose[:3, 3]
    out.flush()


def registered(source: str, target: str, options: dict[str, object]) -> dict[str, object]:
    """Runs in a process of its own."""
    import dlc_reg

    before = peak()
    began = time.perf_counter()
    result = dlc_reg.register(source, target, **options)
    return {
        "seconds": time.perf_counter() - began,
        "before": before,
        "peak": peak(),
        "verdict": str(result.verdict),
        "timings": result.timings,
        "transformation": result.transformation.tolist(),
    }


def peak() -> float:
    """GiB, of this process since it began; `ru_maxrss` is on Linux of the one that started it, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def measure(points: int, seed: int, options: dict[str, object]) -> dict[str, object]:
    """What `registered` says of two clouds of so many points, with "error", the truth's distance [m] at the corners."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{name}.npy") for name in ("source", "target")]
        for which, path in enumerate(paths):
            write(Path(path), points, seed, which)
        work = [sys.executable, __file__, "--child", *paths, "--options", json.dumps(options)]
        done = subprocess.run(work, stdout=subprocess.PIPE, text=True, check=True)
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    half = SIZE / 2
    corners = ORIGIN + np.array([[x, y, 0.0] for x in (-half, half) for y in (-half, half)])
    back = np.linalg.inv(truth()) @ np.c_[corners, np.ones(4)].T
    apart = (np.array(found.pop("transformation")) - truth()) @ back
    return found | {"error": float(np.linalg.norm(apart[:3], axis=0).max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[10_000_000])
    parser.add_argument("--method", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(registered(*given.child, json.loads(given.options))))
        return
    for points in given.points:
        found = measure(points, given.seed, {"method": given.method, "num_threads": given.threads})
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in dict(found["timings"]).items())  # type: ignore[call-overload]
        print(
            f"two clouds of {points:,} points: {found['verdict']}, {found['seconds']:.1f} s ({stages}), "
            f"peak {found['peak']:.2f} GiB ({found['before']:.2f} before the call), "
            f"{1000 * float(str(found['error'])):.2f} mm from the truth at the corners",
            flush=True,
        )


if __name__ == "__main__":
    main()
