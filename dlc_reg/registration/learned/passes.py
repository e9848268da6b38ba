"""Methods whose features depend on the pose: encoded where the pass begins, and anew for the next one."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlc_reg.iterate import Record, Solution
from dlc_reg.networks.neighbours import blanked, check_counts
from dlc_reg.registration.assignment import transform
from dlc_reg.registration.learned.frame import RegistrationNetwork


class Encoded(NamedTuple):
    """A batch of pairs, and the objective's data that encoding them at a pose gave."""

    source: Tensor  # (B, N, 3)
    target: Tensor  # (B, M, 3)
    source_mask: Tensor | None
    target_mask: Tensor | None
    at: Tensor  # (B, 4, 4)
    data: Any


class Repeated(RegistrationNetwork):
    """`passes` times: encode the source as the pose so far has moved it, then `iterations` steps on that energy.

    Poses are those of the source as given, throughout. Within a pass E never rises; each pass has its own E. As in
    RPM-Net no gradient flows from a pass's features to the pose they were computed at. A record's "pass" says which it
    belongs to.
    """

    def __init__(self, passes: int = 1) -> None:
        super().__init__()
        check_counts(passes=passes)
        self.passes = passes

    @abstractmethod
    def match(
        self, source: Tensor, moved: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None
    ) -> Any:
        """The objective's data: features of `moved`, the source at the pass's pose, and of the target.

        Padding is zero. The energy is one of the poses of `source`.
        """

    def encode(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        *,
        at: Tensor | None = None,
    ) -> Encoded:
        source, target = blanked(source, source_mask), blanked(target, target_mask)
        pose = self.start(source) if at is None else at.detach()
        with torch.autocast(source.device.type, enabled=False):  # half precision is for features, not for coordinates
            moved = source if at is None else blanked(transform(pose, source), source_mask)
        data = self.match(source, moved, target, source_mask, target_mask)
        return Encoded(source, target, source_mask, target_mask, pose, data)

    def begin(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, given: Tensor
    ) -> tuple[Encoded, Tensor]:
        return self.encode(source, target, source_mask, target_mask, at=given), given

    def solve(self, encoded: Encoded, omega: Tensor, iterations: int | None = None) -> Solution:
        history: list[Record] = []
        steps = 0
        for number in range(1, self.passes + 1):
            encoded = self._at(encoded, omega)
            solution = super().solve(encoded, omega, iterations)
            # the first record of a later pass is the end of the one before, as another energy sees it
            history += [{**r, "iteration": steps + r["iteration"], "pass": number} for r in solution.history]
            omega, steps = solution.omega, steps + solution.iterations
            if solution.status.failed:
                break
        return replace(solution, iterations=steps, history=history)

    def trajectory(self, encoded: Encoded, omega: Tensor, iterations: int) -> Tensor:
        """The poses after each of `iterations` steps in all, shared evenly by the passes."""
        poses = []
        for share in _shares(iterations, self.passes):
            encoded = self._at(encoded, omega)
            poses.append(super().trajectory(encoded, omega, share))
            omega = poses[-1][-1]
        return torch.cat(poses)

    def _at(self, encoded: Encoded, omega: Tensor) -> Encoded:
        """The same clouds encoded at the pose (B, 4, 4)."""
        return encoded if torch.equal(encoded.at, omega) else self.encode(*encoded[:4], at=omega)


def _shares(total: int, parts: int) -> list[int]:
    """`total` in at most `parts` nearly equal whole numbers, the larger ones first."""
    shares = [total // parts + (i < total % parts) for i in range(parts)]
    return [s for s in shares if s]
