"""Poses about the true pose of each pair of a batch, turned about the middle of the source where it truly lies.

A rotation about the origin of coordinates would move a cloud that lies beside it; how far a cloud is moved should not
depend on where it lies. So truth = place @ local with a translation `place`, and rays are drawn from `local`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlc_reg.protocols import PairBatch

Objective = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Around:
    """truth (B, 4, 4) = place @ local, where place (B, 4, 4) is a translation."""

    truth: Tensor
    place: Tensor
    local: Tensor

    @classmethod
    def truths(cls, batch: PairBatch) -> Around:
        """Of a batch's truths: each place is the source's middle."""
        if batch.source_mask is None:
            middle = batch.source.mean(1)
        else:
            real = batch.source_mask[..., None].to(batch.source)
            middle = (batch.source * real).sum(1) / real.sum(1)
        there = (batch.truth[:, :3, :3] @ middle[..., None])[..., 0] + batch.truth[:, :3, 3]
        place = torch.eye(4, dtype=there.dtype, device=there.device).repeat(len(there), 1, 1)
        place[:, :3, 3] = there
        back = place.clone()
        back[:, :3, 3] = -there
        return cls(batch.truth, place, back @ batch.truth)

    def objective(self, objective: Objective) -> Objective:
        """The same objective as a function of local poses (*lead, B, 4, 4)."""
        return lambda omega, data: objective(self.place @ omega, data)
