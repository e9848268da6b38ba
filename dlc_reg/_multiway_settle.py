"""Which links of a pose graph hold, and the poses by those: wrong ones are found and leave no trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from heapq import heappop, heappush

import numpy as np
import torch
from torch import Tensor

from dlc_reg._multiway_graph import Array, Flags, Graph, Link
from dlc_reg.manifold import SE3

# How far a link may be off at first grows with the number of links in the loop that it closes, as the sum of so many
# independent errors does; it then shrinks to the link's tolerance. The powers of that number:
ANNEALING = (0.5, 0.25, 0.0, 0.0, 0.0)
EXCHANGES = 500  # trees that are tried, at most, for one with which more links agree


def _links_at(count: int, links: Sequence[Link], numbers: Iterable[int] | None = None) -> list[list[int]]:
    """For each cloud the numbers of the links, of those in `numbers`, that end there."""
    at: list[list[int]] = [[] for _ in range(count)]
    for n in range(len(links)) if numbers is None else map(int, numbers):
        at[links[n].source].append(n)
        at[links[n].target].append(n)
    return at


def groups(count: int, links: Sequence[Link]) -> list[list[int]]:
    """The clouds that links connect, each group in order, the groups by their first cloud."""
    at = _links_at(count, links)
    found, seen = [], [False] * count
    for first in range(count):
        if seen[first]:
            continue
        seen[first], members, waiting = True, [], [first]
        while waiting:
            node = waiting.pop()
            members.append(node)
            for other in (links[n].between(node) for n in at[node]):
                if not seen[other]:
                    seen[other] = True
                    waiting.append(other)
        found.append(sorted(members))
    return found


def settle(count: int, links: Sequence[Link]) -> tuple[Array, Flags, Array]:
    """Poses that the links agree upon, without those that disagree.

    Returns:
        poses (count, 4, 4), local, T_first_cloud, NaN for clouds that no chain of trusted links that hold connects with
        the first; which links hold (links,); their displacements (links,), NaN where an end has no pose.

    The start is a tree of trusted links, the one that the other links contradict least (`_agreed_tree`). From there the
    graph is minimised again and again, each link with the weight of Geman and McClure's kernel for its displacement,
    whose width shrinks to the link's tolerance (graduated non-convexity, as in Yang et al., RA-L 2020; for the kernel
    as a line process, Zhou, Park and Koltun, ECCV 2016). What then still disagrees is left out, untrusted links first,
    and the rest minimised without a kernel, so that wrong links leave no trace.
    """
    out = np.ones(len(links), np.bool_)
    while True:
        trusted = [link for link, ok in zip(links, out, strict=True) if ok and link.trusted]
        members = next(group for group in groups(count, trusted) if 0 in group)
        inside = [n for n, link in enumerate(links) if link.source in members and link.target in members]
        omega, holds = _settle_group(members, [links[n] for n in inside])
        held = np.zeros(len(links), np.bool_)
        held[inside] = holds
        left = [link for link, ok in zip(links, held, strict=True) if ok and link.trusted]
        if next(group for group in groups(count, left) if 0 in group) == members:
            break
        out &= held  # to leave a link out may cut a cloud off: again, with what is connected then
    poses, displacements = np.full((count, 4, 4), np.nan), np.full(len(links), np.nan)
    poses[members] = omega.numpy()
    if inside:
        renamed = {node: at for at, node in enumerate(members)}
        displacements[inside] = Graph(len(members), [_renamed(links[n], renamed) for n in inside]).displacements(omega)
    return poses, held, displacements


def _renamed(link: Link, names: dict[int, int]) -> Link:
    return replace(link, source=names[link.source], target=names[link.target])


def _settle_group(members: list[int], links: list[Link]) -> tuple[Tensor, Flags]:
    if not links:
        return SE3().identity((1,)), np.zeros(0, np.bool_)
    names = {node: at for at, node in enumerate(members)}
    graph = Graph(len(members), [_renamed(link, names) for link in links])
    omega, steps = _along(graph, _agreed_tree(graph))
    loops = np.where(graph.trusted, _lengths(graph, steps), 1.0)
    for power in ANNEALING:
        width = graph.tolerance * loops**power
        weights = (width**2 / (width**2 + graph.displacements(omega) ** 2)) ** 2
        omega = graph.minimise(omega, weights, within=1e-3)
    excess = graph.displacements(omega) / graph.tolerance
    holds = excess <= 1
    holds[_spanning(graph, excess)] = True  # where two links contradict each other, one of them is left
    while True:
        omega = graph.minimise(omega, holds)
        excess = np.where(holds, graph.displacements(omega) / graph.tolerance, 0.0)
        over = excess > 1
        if not over.any():
            return omega, holds
        doubted = over & ~graph.trusted
        excess[~(doubted if doubted.any() else over)] = 0.0
        holds[int(excess.argmax())] = False


def _agreed_tree(graph: Graph) -> list[int]:
    """A spanning tree of trusted links that the others contradict little.

    Its paths from the first cloud have as few links as can be that no triangle supports, and as few links, for errors
    add up along them. Then links are exchanged for ones that disagree, while more agree with the tree so made.
    """
    tree = _shortest(graph, _supported(graph))
    agreeing = _agreeing(graph, tree)
    tries = EXCHANGES
    while not agreeing.all() and tries > 0:
        _, steps = _along(graph, tree)
        better = None
        for n in map(int, np.flatnonzero(~agreeing)):
            for old in _path(steps, graph.links[n].source, graph.links[n].target):
                other = [n if at == old else at for at in tree]
                found, tries = _agreeing(graph, other), tries - 1
                if found.sum() > agreeing.sum():
                    better = other, found
                if better is not None or tries <= 0:
                    break
            if better is not None or tries <= 0:
                break
        if better is None:
            break
        tree, agreeing = better
    return tree


def _supported(graph: Graph) -> Flags:
    """(links,): the trusted links that two others, by way of a third cloud, agree with."""
    to: list[dict[int, tuple[int, Array]]] = [{} for _ in range(graph.count)]  # to[a][b]: the link, T_b_a
    for n in map(int, np.flatnonzero(graph.trusted)):
        link = graph.links[n]
        to[link.source][link.target] = n, graph.poses[n]
        to[link.target][link.source] = n, graph.inverses[n]
    found = np.zeros(len(graph.links), np.bool_)
    for n in map(int, np.flatnonzero(graph.trusted)):
        link = graph.links[n]
        for third in to[link.source].keys() & to[link.target].keys():
            (first, there), (second, on) = to[link.source][third], to[third][link.target]
            change = (on @ there - link.pose)[:3]
            gap = np.sqrt(max(float((change @ link.moments * change).sum()), 0.0))
            found[n] |= gap <= graph.tolerance[[n, first, second]].sum()
    return found


def _shortest(graph: Graph, supported: Flags) -> list[int]:
    """Dijkstra's tree of the trusted links: by links without support, then by links, then by trust."""
    at = _links_at(graph.count, graph.links, np.flatnonzero(graph.trusted))
    tree, done = [], set()
    waiting: list[tuple[int, int, float, int, int]] = [(0, 0, 0.0, -1, 0)]
    while waiting:
        doubts, hops, _, by, node = heappop(waiting)
        if node in done:
            continue
        done.add(node)
        if by >= 0:
            tree.append(by)
        for n in at[node]:
            other = graph.links[n].between(node)
            if other not in done:
                heappush(waiting, (doubts + (not supported[n]), hops + 1, -graph.links[n].trust, n, other))
    return tree


def _spanning(graph: Graph, costs: Array) -> list[int]:
    """The trusted links of a spanning tree of least cost (Kruskal)."""
    tree: list[int] = []
    label = list(range(graph.count))
    for n in map(int, np.argsort(np.where(graph.trusted, costs, np.inf), kind="stable")[: graph.trusted.sum()]):
        a, b = label[graph.links[n].source], label[graph.links[n].target]
        if a != b:
            tree.append(n)
            label = [b if at == a else at for at in label]
    return tree


def _agreeing(graph: Graph, tree: list[int]) -> Flags:
    """Which trusted links agree with the poses along a tree, as far as the errors of a chain let one say."""
    omega, steps = _along(graph, tree)
    agree: Flags = graph.displacements(omega) <= graph.tolerance * _lengths(graph, steps) ** ANNEALING[0]
    return agree | ~graph.trusted


def _along(graph: Graph, tree: list[int]) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Poses (count, 4, 4) along a spanning tree; for each cloud its parent, the link to it and its depth."""
    at = _links_at(graph.count, graph.links, tree)
    poses = np.tile(np.eye(4), (graph.count, 1, 1))
    steps = [(-1, -1, 0)] * graph.count
    waiting, seen = deque([0]), {0}
    while waiting:
        node = waiting.popleft()
        for n in at[node]:
            child = graph.links[n].between(node)
            if child not in seen:
                seen.add(child)
                pose = graph.poses[n] if child == graph.links[n].source else graph.inverses[n]
                poses[child] = poses[node] @ pose
                steps[child] = (node, n, steps[node][2] + 1)
                waiting.append(child)
    return torch.from_numpy(poses), steps


def _path(steps: list[tuple[int, int, int]], a: int, b: int) -> list[int]:
    """The tree's links between two clouds."""
    found = []
    while a != b:
        if steps[a][2] < steps[b][2]:
            a, b = b, a
        found.append(steps[a][1])
        a = steps[a][0]
    return found


def _lengths(graph: Graph, steps: list[tuple[int, int, int]]) -> Array:
    """(links,): of how many links the loop is, at most, that each closes by way of the first cloud."""
    depth = np.array([step[2] for step in steps], np.float64)
    lengths: Array = 1.0 + depth[graph.source.numpy()] + depth[graph.target.numpy()]
    return lengths


def confirmed(count: int, links: Sequence[Link], link: Link) -> bool:
    """Whether the ends of `link` stay connected by `links` whichever one of these is taken away."""
    way = route(count, links, link.source, link.target, -1)
    return way is not None and all(route(count, links, link.source, link.target, n) is not None for n in way)


def route(count: int, links: Sequence[Link], start: int, end: int, without: int) -> list[int] | None:
    """The numbers of the fewest links that lead from one cloud to another, or None."""
    at = _links_at(count, links, (n for n in range(len(links)) if n != without))
    before: dict[int, tuple[int, int]] = {start: (-1, -1)}
    waiting = deque([start])
    while waiting and end not in before:
        node = waiting.popleft()
        for n in at[node]:
            other = links[n].between(node)
            if other not in before:
                before[other] = node, n
                waiting.append(other)
    if end not in before:
        return None
    way = []
    while end != start:
        end, n = before[end]
        way.append(n)
    return way
