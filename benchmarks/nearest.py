"""The nearest neighbour of every query: what registration does most.

    python benchmarks/nearest.py [--sizes 10000 100000 1000000] [--data TARGET [QUERIES]]

Clouds: uniform, a surface, a LiDAR's street (density falls off), real scans (the bunny's pair, or `--data`: two scans,
or one of which the odd points look for the even ones). Queries are another sample of the same, moved by 0.1% (near) or
1/15 (far: 20 cm on 3 m) of its size, in random order. Either everything counts, from the arrays to the neighbours, or
the queries alone. Answers are checked against SciPy's tree in float64, on up to 20,000 queries.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import clouds
import harness
import numpy as np
import roofline
from harness import Cases, Work
from oracle import Oracle
from peers import searchers


def case(kind: str, points: int, how: str, ready: bool = False) -> str:
    return f"{kind}, {points:,} points, {how}, {'queries alone' if ready else 'all included'}"


def work(
    kind: str,
    points: int,
    how: str,
    ready: bool,
    options: argparse.Namespace,
    names: tuple[str, ...] | None = None,
) -> Work:
    target, queries = (clouds.cloud(kind, points, options.seed + i) for i in (0, 1))
    return _work(target, clouds.away(queries, how), ready, options, names)


def _work(
    target: clouds.Array,
    queries: clouds.Array,
    ready: bool,
    options: argparse.Namespace,
    names: tuple[str, ...] | None = None,
) -> Work:
    p, q = (np.ascontiguousarray(x, dtype=np.float32) for x in (target, queries))
    costs = [roofline.search(len(q), len(p))] + ([] if ready else [roofline.build(len(p))])
    contenders = searchers(p, q, options.threads, ready=ready, names=names)
    return Work(len(p), contenders, Oracle(p, q), roofline.both(*costs))


def _scan(options: argparse.Namespace, how: str, ready: bool) -> Work:
    target, queries = clouds.scans(options.data, options.seed)
    return _work(target, clouds.away(queries, how), ready, options)


def cases(options: argparse.Namespace) -> Cases:
    found: Cases = {}
    for how in clouds.STARTS:
        for ready in (False, True):
            for points in options.sizes:
                for kind in ("uniform", "surface", "lidar"):
                    given = (kind, points, how, ready, options)
                    found[case(*given[:4])] = lambda given=given: work(*given)  # type: ignore[misc]
            name = f"{'data' if options.data else 'bunny'}, {how}, {'queries alone' if ready else 'all included'}"
            found[name] = lambda how=how, ready=ready: _scan(options, how, ready)  # type: ignore[misc]
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="one or two scans, any format dlc_reg reads")


if __name__ == "__main__":
    harness.main(__file__, __doc__, cases, arguments)
