"""How time grows with the number of points: t = c n^e, fitted; and by how much memory grows.

    python benchmarks/growth.py [--largest 1000000] [--memory "*"]

From 1,000 points on in steps of about three, up to `--largest` (10,000,000 takes 10 GiB and long). A surface in random
order: 1-NN near and far, normals (k = 16), voxels (of 1% of the size), point-to-plane ICP (3 iterations, after which a
pose of ours has to be right, another library's half as far off as the start), everything included. The exponent is
fitted by least squares over all sizes, and over the last decade. `--peers` bounds the clouds that other libraries are
asked for.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import harness
import icp
import nearest
import neighbours
import numpy as np
import voxels
from harness import OURS, Cases, Result, Row, Work

STEPS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
PEERS = (OURS, "pykdtree", "small_gicp", "Open3D legacy")


def kinds(options: argparse.Namespace) -> dict[str, Callable[[int], Work]]:
    options.k, options.voxel, options.iterations = 16, 0.03, 3

    def names(n: int) -> tuple[str, ...]:
        return PEERS if n <= options.peers else (OURS,)

    return {
        "1-NN near": lambda n: nearest.work("surface", n, "near", False, options, names(n)),
        "1-NN far": lambda n: nearest.work("surface", n, "far", False, options, names(n)),
        "normals": lambda n: neighbours.normals(n, options, names(n)),
        "voxels": lambda n: voxels.work(n, options, names(n)),
        "point-to-plane ICP": lambda n: icp.work("point_to_plane", n, options, names=names(n), early=True),
    }


def cases(options: argparse.Namespace) -> Cases:
    return {
        f"{kind}, {n:,} points": lambda make=make, n=n: make(n)  # type: ignore[misc]
        for kind, make in kinds(options).items()
        for n in STEPS
        if n <= options.largest
    }


def exponent(points: list[int], seconds: list[float]) -> float:
    """Of t = c n^e by least squares in the logarithms; NaN of fewer than two sizes."""
    if len(points) < 2:
        return math.nan
    return float(np.polyfit(np.log(points), np.log(seconds), 1)[0])


def curves(results: list[Result]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Kind -> contender -> (points, seconds)."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for result in results:
        rows: list[Row] = result.rows
        for row in rows:
            if row.seconds:
                kind = result.case.split(",")[0]
                found.setdefault(kind, {}).setdefault(row.name, []).append((result.points, row.median / row.steps))
    return found


def fits(results: list[Result]) -> list[str]:
    from dlc_reg._tables import markdown

    body = []
    for kind, contenders in curves(results).items():
        for name, curve in contenders.items():
            last = [(n, t) for n, t in curve if n * 10 >= curve[-1][0]]
            overall, decade = (exponent(*map(list, zip(*c, strict=True))) for c in (curve, last))
            sizes = f"{curve[0][0]:,} - {curve[-1][0]:,}"
            body.append([kind, name, sizes, f"{overall:.2f}", f"{decade:.2f}"])
    header = ["growth", "contender", "points", "exponent", "of the last decade"]
    return [markdown(header, body), ""] if body else []


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--largest", type=int, default=1_000_000, help="points (default 1,000,000)")
    parser.add_argument("--peers", type=int, default=1_000_000, help="largest clouds for other libraries")


if __name__ == "__main__":
    harness.main(__file__, __doc__, cases, arguments, fits)
