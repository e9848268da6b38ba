"""What the CPU kernels are to reach, as ratios to other libraries in one run, and whether they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from growth import curves, exponent
from harness import Result

OPEN3D = ("Open3D legacy", "Open3D tensor")


@dataclass(frozen=True)
class Target:
    """`case` is a pattern; of several peers the fastest counts."""

    work: str
    benchmark: str
    case: str
    peers: tuple[str, ...]
    ratio: float


TARGETS = (
    Target("1-NN, surface, 100k", "nearest", "surface, 100,000 points, near, all included", ("pykdtree",), 4),
    Target("1-NN, surface, 100k", "nearest", "surface, 100,000 points, near, all included", ("small_gicp",), 3),
    Target("1-NN, surface, 1M", "nearest", "surface, 1,000,000 points, near, all included", ("pykdtree",), 8),
    Target("1-NN, surface, 1M", "nearest", "surface, 1,000,000 points, near, all included", ("small_gicp",), 3),
    Target("1-NN from a far start, 1M", "nearest", "surface, 1,000,000 points, far, all included", ("pykdtree",), 5),
    Target("kNN k = 16 + normals, 1M", "neighbours", "normals, k = 16, 1,000,000 points", OPEN3D, 3),
    Target("kNN k = 16 + normals, 1M", "neighbours", "normals, k = 16, 1,000,000 points", ("small_gicp",), 1.5),
    Target("voxel downsampling, 1M", "voxels", "1,000,000 points*", OPEN3D, 3),
    Target("voxel downsampling, 1M", "voxels", "1,000,000 points*", ("small_gicp",), 1.5),
    Target("point-to-plane ICP, 100k", "icp", "point_to_plane, 100,000 points*", ("Open3D legacy",), 5),
    Target("point-to-plane ICP, 100k", "icp", "point_to_plane, 100,000 points*", ("small_gicp",), 2),
    Target("point-to-plane ICP, 1M", "icp", "point_to_plane, 1,000,000 points*", ("Open3D legacy",), 5),
    Target("point-to-plane ICP, 1M", "icp", "point_to_plane, 1,000,000 points*", ("small_gicp",), 2),
    Target("generalized ICP, 100k", "icp", "generalized, 100,000 points*", ("Open3D legacy",), 10),
    Target("generalized ICP, 100k", "icp", "generalized, 100,000 points*", ("small_gicp",), 1.5),
    Target("generalized ICP, 1M", "icp", "generalized, 1,000,000 points*", ("Open3D legacy",), 10),
    Target("generalized ICP, 1M", "icp", "generalized, 1,000,000 points*", ("small_gicp",), 1.5),
    Target("256 ICPs of 1,024 points", "batch", "point_to_plane, 256 pairs of 1,024 points", ("Open3D legacy",), 10),
    Target("256 ICPs of 1,024 points", "batch", "point_to_plane, 256 pairs of 1,024 points", ("small_gicp",), 3),
)
EXPONENT, FROM, TO = 1.1, 1_000_000, 10_000_000


def judge(ratio: float, target: float) -> str:
    return "reached" if ratio >= target else f"missed by {100 * (1 - ratio / target):.0f}%"


def rows(results: Sequence[Result]) -> list[list[str]]:
    """A line a target and number of threads; "not measured" where the case was not run or its peer is missing."""
    found = []
    for threads in sorted({r.threads for r in results}):
        here = [r for r in results if r.threads == threads]
        found += [_ratio(target, here, threads) for target in TARGETS]
        found += _exponents(here, threads)
    return found


def _ratio(target: Target, results: list[Result], threads: int) -> list[str]:
    name = " or ".join(target.peers)
    line = [target.work, str(threads), f"{target.ratio:g} times {name}"]
    for result in results:
        if result.benchmark == target.benchmark and fnmatch(result.case, target.case):
            measured = [row for row in result.rows if row.name in target.peers and row.ratio is not None]
            if measured:
                row = min(measured, key=lambda row: row.ratio or 0.0)
                assert row.ratio is not None and row.ratio_spread is not None
                low, high = row.ratio_spread
                return [*line, f"{row.ratio:.2f} ({low:.2f} - {high:.2f})", judge(row.ratio, target.ratio)]
    return [*line, "", "not measured"]


def _exponents(results: list[Result], threads: int) -> list[list[str]]:
    lines = []
    for kind, contenders in curves([r for r in results if r.benchmark == "growth"]).items():
        part = [(n, t) for n, t in contenders.get("dlc_reg", []) if FROM <= n <= TO]
        line = [f"growth of {kind}, 1M to 10M", str(threads), f"exponent at most {EXPONENT}"]
        if not part or part[-1][0] < TO:
            lines.append([*line, "", "not measured"])
            continue
        e = exponent(*map(list, zip(*part, strict=True)))
        lines.append([*line, f"{e:.2f}", "reached" if e <= EXPONENT else f"missed by {e - EXPONENT:.2f}"])
    return lines


HEADER = ["work", "threads", "target", "measured", ""]
