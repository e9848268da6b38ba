"""What `prepare` saves: `register(scan, target)` beside `prepare(target).register(scan)`, alternating, medians.

    python benchmarks/prepared.py SCAN SCAN [SCAN ...] [--thin 1 16] [--method auto] [--voxel-size 0.6] [--rounds 5]

The first scan, or all of them together with --map, is the target; the others are registered onto it from the identity,
every so manieth point of them (--thin). Files are what `register` reads, and KITTI's .bin.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dlc_reg
from dlc_reg.io import read


def points_of(path: Path) -> NDArray[np.float64]:
    """(N, 3)."""
    if path.suffix == ".bin":
        return np.fromfile(path, np.float32).reshape(-1, 4)[:, :3].astype(np.float64)
    return np.asarray(read(path).points, dtype=np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--map", action="store_true", help="all scans together are the target")
    parser.add_argument("--thin", nargs="+", type=int, default=[1])
    parser.add_argument("--method", default="auto")
    parser.add_argument("--voxel-size", type=float)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    clouds = [points_of(path) for path in options.scans]
    target = np.concatenate(clouds) if options.map else clouds[0]
    given = {"method": options.method, "voxel_size": options.voxel_size, "num_threads": 1}
    prepared = dlc_reg.prepare(target, **given)
    for thin in options.thin:
        for path, cloud in zip(options.scans[1:], clouds[1:], strict=True):
            scan = cloud[::thin]
            expected = prepared.register(scan, init=np.eye(4)).transformation
            seconds: tuple[list[float], list[float]] = [], []
            for _ in range(options.rounds):
                for times, call in zip(
                    seconds,
                    (
                        lambda s: dlc_reg.register(s, target, init=np.eye(4), **given),
                        lambda s: prepared.register(s, init=np.eye(4)),
                    ),
                    strict=True,
                ):
                    began = time.perf_counter()
                    result = call(scan)
                    times.append(time.perf_counter() - began)
                    assert np.array_equal(result.transformation, expected)
            whole, again = (statistics.median(times) for times in seconds)
            print(
                f"{path.name}, {len(scan)} points onto {len(target)}: register {whole:.2f} s, prepared {again:.2f} s, "
                f"{whole / again:.2f} times",
                flush=True,
            )


if __name__ == "__main__":
    main()
