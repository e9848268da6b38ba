"""What the machine would allow: its memory bandwidth and arithmetic rate, measured, and the least a kernel must do.

The counts are lower bounds by hand, with the reasons beside them. A search is bounded by neither: it waits for cache
misses in the order of its queries, so its distance from the bound says how much of that is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from harness import Clock, Cost

LEAF = 16
"""Points of a leaf of the search tree."""
LEAVES = 2.0
"""Leaves that a near query looks at: its own, and about one more."""


@cache
def machine(threads: int, clock: Clock) -> tuple[float, float]:
    """Bytes a second of a copy too large for caches, read and written, and float32 operations a second of a product."""
    torch.set_num_threads(threads)
    source = torch.zeros(48 * 2**20)
    target = torch.empty_like(source)
    a, b = torch.rand(2, 768, 768)
    copied = _best(lambda: target.copy_(source), 5, clock)
    multiplied = _best(lambda: a @ b, 9, clock)
    return 2 * 4 * source.numel() / copied, 2 * 768**3 / multiplied


def _best(call: Callable[[], object], repeats: int, clock: Clock) -> float:
    times = []
    for _ in range(repeats + 1):
        began = clock()
        call()
        times.append(clock() - began)
    return min(times[1:])


def roofline(cost: Cost, seconds: float, threads: int, clock: Clock) -> dict[str, float]:
    return against(cost, seconds, *machine(threads, clock))


def against(cost: Cost, seconds: float, bandwidth: float, rate: float) -> dict[str, float]:
    memory, arithmetic = cost.bytes / bandwidth, cost.operations / rate
    return {
        "bytes": cost.bytes,
        "operations": cost.operations,
        "bandwidth": bandwidth,
        "rate": rate,
        "memory_s": memory,
        "arithmetic_s": arithmetic,
        "times_bound": seconds / max(memory, arithmetic),
    }


def build(points: int) -> Cost:
    """Points read, and written once in the order of the tree with their indices; a comparison a point and level."""
    return Cost(points * (12 + 16), points * math.log2(max(2, points / LEAF)))


def search(queries: int, points: int, k: int = 1) -> Cost:
    """Queries and the tree's points read once, k distances and indices written; 8 operations a point of a leaf.

    k neighbours need leaves that hold them: 1 + k / 16 more than one neighbour does.
    """
    leaves = LEAVES + k / LEAF
    levels = math.log2(max(2, points / LEAF))
    return Cost(queries * 12 + points * 16 + queries * k * 12, queries * (leaves * LEAF * 8 + 2 * levels))


def both(*costs: Cost) -> Cost:
    return Cost(sum(c.bytes for c in costs), sum(c.operations for c in costs))


def geometry(points: int, k: int) -> Cost:
    """Neighbours gathered in cache; 12 operations each for the moments, about 150 for the 3x3 eigenproblem."""
    return Cost(points * 12, points * (12 * k + 150))


def voxels(points: int, groups: int) -> Cost:
    """Points read, a 64-bit key and index written and sorted in four passes, the means and the inverse written."""
    return Cost(points * (12 + 16 * 2 * 4 + 8) + groups * 12, points * 20)


def icp(kind: str, source: int, target: int, iterations: float) -> Cost:
    """A search a step and one at the end, its points gathered; a row of the system is 27 products and as many sums."""
    attributes, rows = {"point_to_point": (0, 3), "point_to_plane": (12, 1), "generalized": (48, 3)}[kind]
    once = search(source, target)
    step = Cost(once.bytes + source * (12 + attributes), once.operations + source * (30 + rows * 54))
    return both(build(target), Cost((iterations + 1) * step.bytes, (iterations + 1) * step.operations))


def small_icps(kind: str, pairs: int, points: int, iterations: float, neighbours: int) -> Cost:
    """The operations of as many ICPs, normals included if they have neighbours; all but the clouds stays in cache."""
    one = icp(kind, points, points, iterations)
    if neighbours:
        one = both(one, search(points, points, neighbours), geometry(points, neighbours))
    return Cost(pairs * (2 * points * 12 + 128), pairs * one.operations)


def fpfh(points: int, neighbours: float) -> Cost:
    """A search, 60 operations for the angles of a pair and 33 x 2 for the sum over neighbours; features written."""
    pairs = points * neighbours
    return Cost(points * (12 + 12 + 132 * 2), pairs * (8 + 60 + 66))


def assignment(pairs: int, both_ways: bool) -> Cost:
    """Affinities read once each way; 8 operations of a distance, 12 of an exponential, 8 of the sums."""
    ways = 2 if both_ways else 1
    return Cost(4.0 * pairs * ways, 28.0 * pairs * ways)
