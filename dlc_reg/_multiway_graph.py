"""The pose graph of `register_multiway` as an objective: clouds as nodes, registrations as links.

Everything here is in local coordinates, each cloud's relative to its own origin, so that numbers have the clouds' size
and not that of their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg.iterate import Record, Settled, Termination, iterate
from dlc_reg.manifold import SE3, hat, invert_rigid
from dlc_reg.updates import LevenbergMarquardt

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


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
        self.poses = np.stack([link.pose for link in links])
        self.inverses = invert_rigid(torch.from_numpy(self.poses)).numpy()
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

    def minimise(self, omega: Tensor, weights: Array | Flags, within: float = 1e-12) -> Tensor:
        """From `omega`, until a step lowers the objective by less than the share `within`, or none does."""
        if self.count == 1:
            return omega
        update = LevenbergMarquardt(_Poses(self.count))
        data = torch.from_numpy(np.asarray(weights, np.float64))
        termination = Termination(100, Settled({"value": within}, relative=True))
        return iterate(self, update, omega, data, termination=termination).omega


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
