"""Deep Closest Point (Wang and Solomon, ICCV 2019): matching by the products of features, then Procrustes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlc_reg.networks.dgcnn import DGCNN
from dlc_reg.networks.neighbours import ABSENT, weights
from dlc_reg.networks.transformer import CoAttention
from dlc_reg.registration.assignment import Assignment, SoftAssignment
from dlc_reg.registration.learned.frame import architecture
from dlc_reg.registration.learned.passes import Encoded, Repeated


@architecture("dcp")
class DCP(Repeated):
    """E of `SoftAssignment`, one way and without outliers, with a_ij = Phi(p_i) . Phi(q_j) / sqrt(C).

    The paper matches by features alone: its answer is this energy's step as beta goes to 0, where E does not depend on
    the pose. Here beta is learned, so that the pose reached has its say in the next step.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 64, 128, 256),
        out: int = 512,
        neighbours: int = 20,
        heads: int = 4,
        hidden: int = 1024,
        blocks: int = 1,
        passes: int = 1,
    ) -> None:
        super().__init__(passes)
        self.encoder = DGCNN(widths, out, neighbours)
        self.attention = CoAttention(out, heads, hidden, blocks)
        self.energy = SoftAssignment()
        self.log_beta = nn.Parameter(torch.tensor(0.0))

    def match(
        self, source: Tensor, moved: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None
    ) -> Assignment:
        x, y = self.features(moved, target, source_mask, target_mask)
        return self.assignment(source, target, products(x, y) / x.shape[-1] ** 0.5, source_mask, target_mask)

    def features(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Phi (B, N, C) and (B, M, C), in the points' own precision."""
        x, y = self.encoder(source, source_mask), self.encoder(target, target_mask)
        x, y = self.attention(x, y, source_mask, target_mask)
        return x.to(source.dtype), y.to(target.dtype)

    def assignment(
        self, source: Tensor, target: Tensor, affinity: Tensor, source_mask: Tensor | None, target_mask: Tensor | None
    ) -> Assignment:
        """The energy's data; `affinity` (B, N, M) may say anything at padding."""
        affinity = without_padding(affinity, source_mask, target_mask)
        beta = self.log_beta.exp().expand(len(source))
        real = weights(source, source_mask), weights(target, target_mask)
        return Assignment(source, target, affinity, beta, None, *real)

    def value(self, omega: Tensor, encoded: Encoded) -> Tensor:
        return self.energy.value(omega, encoded.data)

    def step(self, omega: Tensor, encoded: Encoded) -> Tensor:
        return self.energy.step(omega, encoded.data)

    def matching_loss(self, encoded: Encoded, truth: Tensor) -> Tensor:
        """(B,): minus the log-likelihood of the source at the true pose, drawn from Gaussians about the target's points
        that the affinities choose among."""
        data: Assignment = encoded.data
        chosen = (data.source_weight * data.matrix().logsumexp(-1)).sum(-1)
        return self.value(truth, encoded) + chosen + 1.5 * (math.log(math.pi) - data.sharpness.log())


def products(a: Tensor, b: Tensor) -> Tensor:
    """a_i . b_j (B, N, M), in the features' own precision under autocast too: energies are sharp."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.mT


def without_padding(affinity: Tensor, source_mask: Tensor | None, target_mask: Tensor | None) -> Tensor:
    """The affinity (B, N, M) with `ABSENT` where either point is padding."""
    if source_mask is not None:
        affinity = affinity.masked_fill(~source_mask[:, :, None], ABSENT)
    return affinity if target_mask is None else affinity.masked_fill(~target_mask[:, None, :], ABSENT)
