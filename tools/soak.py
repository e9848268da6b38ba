"""Whether memory stays flat: the same calls over and over, and what the process holds after each tenth of them.

    python tools/soak.py --calls 10000 [--every 50]

A call is nearest neighbours, normals, an ICP of Open3D's name and the reading of a file; each `--every`th is `register`
too. The first tenth fills what is kept for good (threads, imports, the allocator's room) and is not judged. The exit
code is 1 if the process holds over 16 MiB more at the end than after that.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import dlc_reg
from dlc_reg import io, ops
from dlc_reg.pipelines import registration as pipelines

LIMIT = 16.0  # MiB


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    held: list[float] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        path = Path(folder) / "a.ply"
        for call in range(options.calls):
            points = rng.normal(size=(int(rng.integers(20, 200)), 3))
            io.write(path, points, overwrite=True)
            source = io.read(path).points
            ops.knn(source, points, 3)
            ops.estimate_normals(source, 8)
            pipelines.registration_icp(source, points, 0.5, np.eye(4))
            if call % options.every == 0:
                dlc_reg.register(source[:60], points[:60])
            if (call + 1) % max(1, options.calls // 10) == 0:
                held.append(resident())
                print(f"{call + 1:>8,} calls, {time.perf_counter() - began:.0f} s: {held[-1]:.1f} MiB", flush=True)
    grown = held[-1] - held[0]
    print(f"{grown:+.1f} MiB over the last nine tenths of {options.calls:,} calls (seed {options.seed})")
    return int(grown > LIMIT)


def resident() -> float:
    """MiB of memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    sys.exit(main())
