"""PRNet (Wang and Solomon, NeurIPS 2019): partial clouds, registered by their keypoints, again and again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg.networks.dgcnn import DGCNN
from dlc_reg.networks.neighbours import gather, layers, masked_max, weights
from dlc_reg.networks.transformer import CoAttention
from dlc_reg.registration.assignment import Assignment, SoftAssignment
from dlc_reg.registration.learned.dcp import products, without_padding
from dlc_reg.registration.learned.passes import Encoded, Repeated

COLDEST = 0.01  # temperature


class PRNet(Repeated):
    """E of `SoftAssignment` over the keypoints, the points with the largest features |Phi|, one way, without outliers:
    a_ij = -|Phi(p_i) - Phi(q_j)|^2 / (sqrt(C) temperature).

    A small network reads the temperature from how the two clouds' largest features differ. It is trained with the rest
    by gradients through the soft matching, where the paper has an actor and critic, and Gumbel noise with a hard
    matching whose gradient is the soft one's. The paper's number of passes is 3.
    """

    iterations = 3

    def __init__(
        self,
        widths: Sequence[int] = (64, 64, 128, 256),
        out: int = 512,
        neighbours: int = 20,
        heads: int = 4,
        hidden: int = 1024,
        blocks: int = 1,
        keypoints: int = 512,
        temperature_widths: Sequence[int] = (128, 128),
        passes: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = DGCNN(widths, out, neighbours)
        self.attention = CoAttention(out, heads, hidden, blocks)
        self.temperature = nn.Sequential(
            layers([out, *temperature_widths]), nn.Linear([out, *temperature_widths][-1], 1)
        )
        self.energy = SoftAssignment()
        self.keypoints, self.passes = keypoints, passes
        self.log_beta = nn.Parameter(torch.tensor(0.0))

    def match(
        self, source: Tensor, moved: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None
    ) -> Assignment:
        x, y = self.attention(
            self.encoder(moved, source_mask), self.encoder(target, target_mask), source_mask, target_mask
        )
        x, y = x.to(source.dtype), y.to(source.dtype)
        difference = (masked_max(x, source_mask, 1) - masked_max(y, target_mask, 1)).abs()
        temperature = COLDEST + functional.softplus(self.temperature(difference).to(source.dtype))  # (B, 1)
        source, x, source_mask = self._keypoints(source, x, source_mask)
        target, y, target_mask = self._keypoints(target, y, target_mask)
        apart = x.square().sum(-1)[:, :, None] - 2 * products(x, y) + y.square().sum(-1)[:, None, :]
        affinity = without_padding(-apart / (x.shape[-1] ** 0.5 * temperature[..., None]), source_mask, target_mask)
        beta = self.log_beta.exp().expand(len(source))
        return Assignment(
            source, target, affinity, beta, None, weights(source, source_mask), weights(target, target_mask)
        )

    def _keypoints(self, points: Tensor, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Points, features and mask of those whose features are largest; padding only where a cloud has too few."""
        size = features.detach().norm(dim=-1)
        if mask is not None:
            size = size.masked_fill(~mask, -1.0)
        rows = size.topk(min(self.keypoints, points.shape[1]), dim=1).indices
        kept = None if mask is None else mask.gather(1, rows)
        return gather(points, rows), gather(features, rows), kept

    def value(self, omega: Tensor, encoded: Encoded) -> Tensor:
        return self.energy.value(omega, encoded.data)

    def step(self, omega: Tensor, encoded: Encoded) -> Tensor:
        return self.energy.step(omega, encoded.data)

    def matching_loss(self, encoded: Encoded, truth: Tensor) -> Tensor:
        """(B,): minus the log-likelihood of the source's keypoints at the true pose, about the target's."""
        return self.energy.value(truth, encoded.data) + self.energy.normalizer(encoded.data)
