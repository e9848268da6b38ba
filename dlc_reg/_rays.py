"""Rays from a truth, in whatever space predictions live: how they are drawn, and where they lead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlc_reg.errors import InputError
from dlc_reg.manifold import Manifold


class Star(NamedTuple):
    """Rays from a truth: center (B.., *shape), tangents xi (R, B.., dof), fractions lam (R, B..)."""

    center: Tensor
    tangents: Tensor
    fractions: Tensor

    def points(self, manifold: Manifold) -> Tensor:
        """omega(lam), (R, B.., *shape)."""
        return manifold.retract(self.center, self.fractions[..., None] * self.tangents)

    def ends(self, manifold: Manifold) -> Tensor:
        """omega(1), (R, B.., *shape)."""
        return manifold.retract(self.center, self.tangents)


@dataclass(frozen=True)
class Ambient:
    """Arrays of any shape whose entries are moved by plain addition, as a chart for noise that leaves the manifold.

    `free`: which entries of the flattened array move, in the order of the tangent vector's; None: all. A (4, 4) pose
    with noise on R and t is `Ambient((4, 4), (0, 1, 2, 4, 5, 6, 8, 9, 10, 3, 7, 11))`: nine radii for R, three for t.
    """

    shape: tuple[int, ...]
    free: tuple[int, ...] | None = None

    @property
    def dof(self) -> int:
        return len(self._free)

    @property
    def _free(self) -> tuple[int, ...]:
        return tuple(range(torch.Size(self.shape).numel())) if self.free is None else self.free

    def identity(
        self, batch_shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float64, device: Any = None
    ) -> Tensor:
        return torch.zeros(*batch_shape, *self.shape, dtype=dtype, device=device)

    def retract(self, omega: Tensor, xi: Tensor) -> Tensor:
        padded = torch.cat([xi, torch.zeros_like(xi[..., :1])], dim=-1)
        source = [self._free.index(k) if k in self._free else self.dof for k in range(torch.Size(self.shape).numel())]
        return omega + padded[..., source].reshape(*xi.shape[:-1], *self.shape)

    def local(self, omega: Tensor, other: Tensor) -> Tensor:
        difference = other - omega
        return difference.flatten(difference.ndim - len(self.shape))[..., list(self._free)]


@dataclass(frozen=True)
class Neighbourhood:
    """What a sampler draws in: radius (dof,) in the tangent space at center (B.., *shape).

    `score` (None where no objective is at hand): tangents (R, B.., dof) -> by how much each violates (R, B..).
    """

    center: Tensor
    manifold: Manifold
    radius: Tensor
    generator: torch.Generator | None = None
    score: Callable[[Tensor], Tensor] | None = None

    @property
    def batch(self) -> tuple[int, ...]:
        return self.center.shape[: self.center.ndim - len(self.manifold.shape)]

    def uniform(self, count: int, *trailing: int) -> Tensor:
        """(count, B.., *trailing) in [0, 1)."""
        return self._draw(torch.rand, (count, *self.batch, *trailing))

    def normal(self, count: int, *trailing: int) -> Tensor:
        """(count, B.., *trailing), standard normal."""
        return self._draw(torch.randn, (count, *self.batch, *trailing))

    def _draw(self, function: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        if self.generator is None:
            return function(shape, dtype=self.center.dtype, device=self.center.device)
        drawn = function(shape, generator=self.generator, dtype=self.center.dtype, device=self.generator.device)
        return drawn.to(self.center.device)  # a CPU generator draws the same for every device


Sampler = Callable[[int, Neighbourhood], Tensor]
"""(count, neighbourhood) -> tangents (count, B.., dof)."""


@dataclass(frozen=True)
class Ball:
    """Uniform in the ball, or ellipsoid, of the radius; with `blocks`, in a product of balls of these dimensions.

    `Ball((3, 3))` on SE3 draws a rotation and a translation independently, each in its ball.
    """

    blocks: tuple[int, ...] | None = None

    def __call__(self, count: int, near: Neighbourhood) -> Tensor:
        sizes = list(self.blocks or (near.manifold.dof,))
        if sum(sizes) != near.manifold.dof:
            raise InputError("blocks", str(self.blocks), f"sizes that add up to {near.manifold.dof}")
        return torch.cat([self._in_one(count, near, radius) for radius in torch.split(near.radius, sizes)], dim=-1)

    def _in_one(self, count: int, near: Neighbourhood, radius: Tensor) -> Tensor:
        direction = near.normal(count, len(radius)) * (radius > 0)
        unit = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        inside = near.uniform(count, 1) ** (1 / (radius > 0).sum().clamp(min=1))  # equal volumes
        tangents: Tensor = radius * unit * inside
        return tangents


@dataclass(frozen=True)
class Gaussian:
    """Normal, with the radius as standard deviation of each coordinate."""

    def __call__(self, count: int, near: Neighbourhood) -> Tensor:
        return near.radius * near.normal(count, near.manifold.dof)


@dataclass(frozen=True)
class Box:
    """Each coordinate uniform within its radius."""

    def __call__(self, count: int, near: Neighbourhood) -> Tensor:
        return near.radius * (2 * near.uniform(count, near.manifold.dof) - 1)


@dataclass(frozen=True)
class Multiplicative:
    """Each coordinate of the truth times 1 + U(-radius, radius), the change's size at least `smallest` (of 1).

    For manifolds whose retraction adds: `Ambient`, `Euclidean`.
    """

    smallest: float = 0.0

    def __call__(self, count: int, near: Neighbourhood) -> Tensor:
        change = near.radius * (2 * near.uniform(count, near.manifold.dof) - 1)
        raised = torch.where(change < 0, -change.abs().clamp(min=self.smallest), change.clamp(min=self.smallest))
        entries = near.manifold.local(torch.zeros_like(near.center), near.center)
        return entries * torch.where(near.radius > 0, raised, 0.0)


@dataclass(frozen=True)
class SoftmaxNoise:
    """From a label (B.., C) straight to softmax(label + N(0, radius^2)), so that all of the ray is in the simplex."""

    def __call__(self, count: int, near: Neighbourhood) -> Tensor:
        return (near.center + near.radius * near.normal(count, near.manifold.dof)).softmax(-1) - near.center


@dataclass(frozen=True, eq=False)
class Iterates:
    """Rays that end at predictions which the model's own iteration visits, omega (K, B.., *shape), wherever they lie.

    Drawn without repetition as long as there are enough.
    """

    omega: Tensor = field(repr=False)

    def __call__(self, count: int, near: Neighbourhood) -> Tensor:
        rays = near.manifold.local(near.center, self.omega.detach().to(near.center))
        order = torch.rand(
            len(rays), generator=near.generator, device=getattr(near.generator, "device", None)
        ).argsort()
        return rays[order.to(rays.device).repeat(-(-count // len(rays)))[:count]]


@dataclass(frozen=True)
class Scaled:
    """Another sampler's rays, each times U(low, high): in many dimensions a ball holds almost no short rays."""

    sampler: Sampler
    low: float = 0.0
    high: float = 1.0

    def __call__(self, count: int, near: Neighbourhood) -> Tensor:
        return self.sampler(count, near) * (self.low + (self.high - self.low) * near.uniform(count, 1))


@dataclass(frozen=True)
class WorstOf:
    """Of every k rays of another sampler the one that violates most: the minimax form. Costs k evaluations more."""

    k: int
    sampler: Sampler = Ball()

    def __call__(self, count: int, near: Neighbourhood) -> Tensor:
        if near.score is None:
            raise InputError("sampler", "WorstOf without an objective", "to be drawn from by a ConvexifiedLoss")
        candidates = self.sampler(self.k * count, near)
        worst = near.score(candidates).reshape(self.k, count, *near.batch).argmax(0)
        return torch.take_along_dim(
            candidates.reshape(self.k, count, *candidates.shape[1:]), worst[None, ..., None], 0
        )[0]


@dataclass(frozen=True)
class Learned:
    """A setting that is learned: the initial value of the parameter whose sigmoid is lam, or whose exp is mu."""

    initial: float = 0.3


def check_radius(radius: float | Sequence[float] | Tensor, manifold: Manifold) -> tuple[float, ...]:
    """One radius for each coordinate of the tangent space."""
    given = radius.tolist() if isinstance(radius, Tensor) else radius
    numbers = (given,) * manifold.dof if isinstance(given, int | float) else tuple(given)
    if len(numbers) != manifold.dof or not all(0 <= x < float("inf") for x in numbers) or not any(numbers):
        raise InputError("radius", repr(given), f"a number above 0, or {manifold.dof} of 0 or more that are not all 0")
    return tuple(float(x) for x in numbers)


def check_number(name: str, given: Any, lowest: int) -> None:
    if not isinstance(given, int | float) or not lowest <= given < float("inf"):
        raise InputError(name, repr(given), f"a finite number, {lowest} or more")
