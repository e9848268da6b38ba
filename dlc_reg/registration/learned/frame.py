"""The one frame of the learned methods: features once, then an update that never raises an energy over poses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from dlc_reg.errors import InputError
from dlc_reg.iterate import Solution, Termination, UpdateRule, iterate
from dlc_reg.manifold import SE3
from dlc_reg.networks.arguments import recorded
from dlc_reg.updates import FixedPoint


class RegistrationNetwork(nn.Module, ABC):
    """Base of the learned methods: an objective over T_target_source, with learned parameters.

    A subclass says how a batch of pairs is encoded (`encode`), what the energy of a pose is (`value`), and how to move:
    `step` for the default update, or `residual` / `linearize` and another `update`.

    Clouds are batches (B, N, 3) and (B, M, 3) in units in which a cloud is about two wide, ragged ones padded, with
    masks (B, N), (B, M) that are True at real points.
    """

    manifold: ClassVar[SE3] = SE3()
    iterations: int = 8
    """Steps taken where none are asked for; more than in training are allowed."""

    @abstractmethod
    def encode(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Any:
        """What `value` and the update need of the clouds; it does not depend on the pose."""

    @abstractmethod
    def value(self, omega: Tensor, encoded: Any) -> Tensor:
        """The energy `(*lead, B)` at poses `(*lead, B, 4, 4)`."""

    @property
    def update(self) -> UpdateRule:
        return FixedPoint()

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        *,
        init: Tensor | None = None,
        iterations: int | None = None,
    ) -> Solution:
        """Registers a batch: the solution's `omega` is T_target_source (B, 4, 4).

        `init` (B, 4, 4): where to start, None for the identity. In training mode gradients flow through every step.

        Raises:
            InputError: shapes that do not belong together, or points that are not finite.
        """
        check_batch(source, target, source_mask, target_mask, init)
        given = self.start(source) if init is None else init.to(source)
        return self.solve(*self.begin(source, target, source_mask, target_mask, given), iterations)

    def begin(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, given: Tensor
    ) -> tuple[Any, Tensor]:
        """The batch encoded, and the poses (B, 4, 4) to iterate from: here those that are given."""
        return self.encode(source, target, source_mask, target_mask), given

    def solve(self, encoded: Any, omega: Tensor, iterations: int | None = None) -> Solution:
        """Iterates from `omega` on clouds that have been encoded."""
        return iterate(
            self,
            self.update,
            omega,
            encoded,
            termination=Termination(self.iterations if iterations is None else iterations, converged=None),
            differentiate="unroll" if self.training and torch.is_grad_enabled() else "none",
        )

    def trajectory(self, encoded: Any, omega: Tensor, iterations: int) -> Tensor:
        """The poses after 1, ..., `iterations` steps, (iterations, B, 4, 4), with their gradients."""
        poses = []
        state, _ = self.update.init(self, omega, encoded)
        for _ in range(iterations):
            omega, state, _ = self.update.step(self, omega, encoded, state)
            poses.append(omega)
        return torch.stack(poses)

    def start(self, source: Tensor) -> Tensor:
        """The identity for each pair of a batch, (B, 4, 4)."""
        return self.manifold.identity((len(source),), dtype=source.dtype, device=source.device)


ARCHITECTURES: dict[str, type[RegistrationNetwork]] = {}
"""By the name that recipes and weights use."""

Network = TypeVar("Network", bound=type[RegistrationNetwork])


def architecture(name: str) -> Callable[[Network], Network]:
    """Gives a network's class its name in `ARCHITECTURES`; written again, in a notebook say, it replaces the first."""

    def named(kind: Network) -> Network:
        ARCHITECTURES[name] = recorded(kind)
        return kind

    return named


def check_batch(
    source: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, init: Tensor | None
) -> None:
    """Raises `InputError` for what is not a batch of pairs."""
    for name, points, mask in (("source", source, source_mask), ("target", target, target_mask)):
        if points.ndim != 3 or points.shape[-1] != 3 or points.shape[1] < 3 or not points.is_floating_point():
            given = f"{points.dtype} of shape {tuple(points.shape)}"
            raise InputError(name, given, "floating-point (B, N, 3) with at least 3 points a cloud")
        if mask is not None and (mask.shape != points.shape[:2] or mask.dtype != torch.bool):
            raise InputError(f"{name}_mask", f"{mask.dtype} of shape {tuple(mask.shape)}", f"bool {points.shape[:2]}")
        if mask is not None and (mask.sum(1) < 3).any():
            raise InputError(f"{name}_mask", "a cloud with fewer than 3 points", "at least 3 points a cloud")
        if not torch.isfinite(points if mask is None else points[mask]).all():
            raise InputError(name, "points that are NaN or infinite", "finite points")
    if len(source) != len(target) or (init is not None and init.shape != (len(source), 4, 4)):
        given = f"{len(source)} sources, {len(target)} targets" + ("" if init is None else f", {tuple(init.shape)}")
        raise InputError("target" if init is None else "init", given, "one target, and one start (4, 4), a source")
