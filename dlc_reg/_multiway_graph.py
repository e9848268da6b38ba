"""The pose graph of `register_multiway`: clouds as nodes, registrations as edges, some of which are wrong.

Everything here is in local coordinates, each cloud's relative to its own origin, so that numbers have the clouds' size
and not that of their place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg.iterate import Record, Termination, iterate
from dlc_reg.manifold import SE3, hat, invert_rigid
from dlc_reg.updates import LevenbergMarquardt

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# How far a link may be off at first grows with the loop that it closes, as the errors of a chain of registrations add
# up; it then shrinks to the link's tolerance. The powers of the number of links in the loop:
ANNEALING = (1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Link:
    """One registration of `source` onto `target`, both numbers of clouds.

    pose (4, 4): T_target_source, local. information (6, 6): of a left update of it about `pivot` (3,), target-local.
    moments (4, 4): the mean of (p, 1) (p, 1)^T over the source's local points. tolerance: by how much the graph may
    move these points, root mean square, from where the registration has them. trusted: its verdict is aligned, and the
    more certainly the greater its `trust`.
    """

    source: int
    target: int
    pose: Array
    information: Array
    pivot: Array
    moments: Array
    tolerance: float
    trusted: bool
    trust: float = 1.0

    def between(self, other: int) -> int:
        """The cloud at the other end."""
        return self.target if other == self.source else self.source


@dataclass(frozen=True)
class _Poses:
    """`count` rigid motions (count, 4, 4), of which the first stays."""

    count: int

    @property
    def dof(self) -> int:
        return 6 * (self.count - 1)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, 4, 4)

    def identity(
        self, batch_shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float64, device: torch.device | None = None
    ) -> Tensor:
        return SE3().identity((*batch_shape, self.count), dtype, device)

    def retract(self, omega: Tensor, xi: Tensor) -> Tensor:
        return torch.cat([omega[:1], SE3().retract(omega[1:], xi.reshape(-1, 6))])

    def local(self, omega: Tensor, other: Tensor) -> Tensor:
        return SE3().local(omega[1:], other[1:]).reshape(-1)


class Graph:
    """Links between `count` clouds, as an objective of their poses in the first's frame (count, 4, 4).

    The objective is 1/2 sum of weight xi^T information xi over the links, xi the left update of a link's pose that
    gives what the clouds' poses make of it: the negative log-likelihood, to second order, of registrations with
    Gaussian errors. It has its own `linearize`, link by link, for `dlc_reg.updates`.
    """

    identity: ClassVar[Tensor] = SE3().identity()

    def __init__(self, count: int, links: Sequence[Link]) -> None:
        self.count, self.links = count, links

        def stacked(values: Iterable[Array]) -> Tensor:
            return torch.from_numpy(np.stack([np.asarray(value, np.float64) for value in values]))

        self.source = torch.tensor([link.source for link in links])
        self.target = torch.tensor([link.target for link in links])
        self._pose, self._moments = stacked(link.pose for link in links), stacked(link.moments for link in links)
        to_pivot = self.identity.repeat(len(links), 1, 1)
        to_pivot[:, :3, 3] = -stacked(link.pivot for link in links)
        self._to_pivot, self._before = to_pivot, invert_rigid(self._pose) @ invert_rigid(to_pivot)
        values, vectors = torch.linalg.eigh(stacked(link.information for link in links))
        self._root = values.clamp(min=0).sqrt()[..., None] * vectors.mT
        self.tolerance = np.array([link.tolerance for link in links])
        self.trusted = np.array([link.trusted for link in links], np.bool_)

    def value(self, omega: Tensor, weights: Tensor) -> Tensor:
        off, _ = self._off(omega)
        value: Tensor = 0.5 * (weights * (self._root @ off[..., None]).square().sum((-1, -2))).sum()
        return value

    def linearize(self, omega: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Record]:
        off, carry = self._off(omega)
        residuals = self._root @ off[..., None]
        by_source = self._root @ torch.linalg.solve(_left_jacobian(off), _adjoint(carry))
        hessian = omega.new_zeros(self.count * self.count, 6, 6)
        gradient = omega.new_zeros(self.count, 6)
        ends = ((self.source, by_source), (self.target, -by_source))
        for row, left in ends:
            weighted = weights[:, None, None] * left.mT
            gradient.index_add_(0, row, (weighted @ residuals)[..., 0])
            for column, right in ends:
                hessian.index_add_(0, row * self.count + column, weighted @ right)
        size = 6 * (self.count - 1)
        blocks = hessian.reshape(self.count, self.count, 6, 6)[1:, 1:].transpose(1, 2)
        value = 0.5 * (weights * residuals.square().sum((-1, -2))).sum()
        return blocks.reshape(size, size), gradient[1:].reshape(size), {"value": value}

    def _off(self, omega: Tensor) -> tuple[Tensor, Tensor]:
        """(links, 6), the tangent vector xi; (links, 4, 4), what carries updates of the source's pose to its frame.

        An update exp(a) of the source's pose and exp(b) of the target's give log(exp(Ad (a - b)) exp(xi)), Ad of that.
        """
        carry = self._to_pivot @ invert_rigid(omega[self.target])
        found = carry @ omega[self.source] @ self._before
        return SE3().local(torch.eye(4, dtype=omega.dtype), found), carry

    def displacements(self, omega: Tensor) -> Array:
        """(links,): by how much the poses move each link's points from where it has them, root mean square."""
        change = (invert_rigid(omega[self.target]) @ omega[self.source] - self._pose)[:, :3]
        squares: Array = (change @ self._moments * change).sum((-1, -2)).clamp(min=0).numpy()
        return np.sqrt(squares)

    def minimise(self, omega: Tensor, weights: Array | Flags) -> Tensor:
        """From `omega`, until no step lowers the objective."""
        if self.count == 1:
            return omega
        update = LevenbergMarquardt(_Poses(self.count))
        data = torch.from_numpy(np.asarray(weights, np.float64))
        return iterate(self, update, omega, data, termination=Termination(100, None)).omega


def _adjoint(pose: Tensor) -> Tensor:
    """(..., 6, 6) with pose exp(xi) pose^-1 = exp(Ad xi)."""
    rotation = pose[..., :3, :3]
    return _lower(rotation, hat(pose[..., :3, 3]) @ rotation)


def _left_jacobian(xi: Tensor) -> Tensor:
    """(..., 6, 6) with log(exp(eta) exp(xi)) = xi + J^-1 eta to first order: J = sum of ad(xi)^n / (n + 1)!."""
    turn = hat(xi[..., :3])
    bracket = _lower(turn, hat(xi[..., 3:]))
    wide = torch.zeros(*xi.shape[:-1], 12, 12, dtype=xi.dtype)
    wide[..., :6, :6], wide[..., :6, 6:] = bracket, torch.eye(6, dtype=xi.dtype)
    jacobian: Tensor = torch.linalg.matrix_exp(wide)[..., :6, 6:]
    return jacobian


def _lower(diagonal: Tensor, corner: Tensor) -> Tensor:
    return torch.cat([torch.cat([diagonal, torch.zeros_like(corner)], -1), torch.cat([corner, diagonal], -1)], -2)


# --- which links hold ------------------------------------------------------------------------------------------------
def groups(count: int, links: Iterable[Link]) -> list[list[int]]:
    """The clouds that links connect, each group in order, the groups by their first cloud."""
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for link in links:
        neighbours[link.source].append(link.target)
        neighbours[link.target].append(link.source)
    found, seen = [], [False] * count
    for first in range(count):
        if seen[first]:
            continue
        seen[first], members, waiting = True, [], [first]
        while waiting:
            node = waiting.pop()
            members.append(node)
            for other in neighbours[node]:
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
    return Link(**{**link.__dict__, "source": names[link.source], "target": names[link.target]})


def _settle_group(members: list[int], links: list[Link]) -> tuple[Tensor, Flags]:
    if not links:
        return SE3().identity((1,)), np.zeros(0, np.bool_)
    names = {node: at for at, node in enumerate(members)}
    graph = Graph(len(members), [_renamed(link, names) for link in links])
    tree = _agreed_tree(graph)
    omega, steps = _along(graph, tree)
    loops = np.where(graph.trusted, 1.0 + _lengths(graph, steps), 1.0)
    for power in ANNEALING:
        width = graph.tolerance * loops**power
        weights = (width**2 / (width**2 + graph.displacements(omega) ** 2)) ** 2
        omega = graph.minimise(omega, weights)
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
    """A spanning tree of trusted links: that of the greatest trust, its links exchanged while more of them agree."""
    tree = _spanning(graph, np.array([-link.trust for link in graph.links]))
    agreeing = _agreeing(graph, tree)
    while not agreeing.all():
        better = _exchanged(graph, tree, agreeing)
        if better is None:
            break
        tree, agreeing = better
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


def _exchanged(graph: Graph, tree: list[int], agreeing: Flags) -> tuple[list[int], Flags] | None:
    """The first tree with which more trusted links agree, one link of this exchanged for one that disagrees with it."""
    _, steps = _along(graph, tree)
    for n in map(int, np.flatnonzero(~agreeing)):
        for old in _path(graph, steps, graph.links[n].source, graph.links[n].target):
            other = [n if at == old else at for at in tree]
            found = _agreeing(graph, other)
            if found.sum() > agreeing.sum():
                return other, found
    return None


def _agreeing(graph: Graph, tree: list[int]) -> Flags:
    """Which trusted links agree with the poses along a tree, as far as the errors of a chain let one say."""
    omega, steps = _along(graph, tree)
    widest = graph.tolerance * (1.0 + _lengths(graph, steps)) ** ANNEALING[0]
    agree: Flags = (graph.displacements(omega) <= widest) | ~graph.trusted
    return agree


def _along(graph: Graph, tree: list[int]) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Poses (count, 4, 4) along a spanning tree; for each cloud its parent, the link to it and its depth."""
    at: list[list[int]] = [[] for _ in range(graph.count)]
    for n in tree:
        at[graph.links[n].source].append(n)
        at[graph.links[n].target].append(n)
    poses = np.tile(np.eye(4), (graph.count, 1, 1))
    steps = [(-1, -1, 0)] * graph.count
    waiting, seen = deque([0]), {0}
    while waiting:
        node = waiting.popleft()
        for n in at[node]:
            link = graph.links[n]
            child = link.between(node)
            if child not in seen:
                seen.add(child)
                pose = link.pose if child == link.source else invert_rigid(torch.from_numpy(link.pose)).numpy()
                poses[child] = poses[node] @ pose
                steps[child] = (node, n, steps[node][2] + 1)
                waiting.append(child)
    return torch.from_numpy(poses), steps


def _path(graph: Graph, steps: list[tuple[int, int, int]], a: int, b: int) -> list[int]:
    """The tree's links between two clouds."""
    found = []
    while a != b:
        if steps[a][2] < steps[b][2]:
            a, b = b, a
        found.append(steps[a][1])
        a = steps[a][0]
    return found


def _lengths(graph: Graph, steps: list[tuple[int, int, int]]) -> Array:
    """(links,): over how many of the tree's links the ends of each are connected."""
    return np.array([len(_path(graph, steps, link.source, link.target)) for link in graph.links], np.float64)


def confirmed(count: int, links: Sequence[Link], link: Link) -> bool:
    """Whether the ends of `link` stay connected by `links` whichever one of these is taken away."""
    for n in range(len(links)):
        rest = groups(count, [*links[:n], *links[n + 1 :]])
        if not any(link.source in group and link.target in group for group in rest):
            return False
    return True
