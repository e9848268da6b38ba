"""PRNet (Wang and Solomon, NeurIPS 2019): partial clouds, registered by their keypoints, again and again."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from dlc_reg.networks.neighbours import check_counts, gather, layers, masked_max
from dlc_reg.registration.assignment import Assignment
from dlc_reg.registration.learned.dcp import DCP, products
from dlc_reg.registration.learned.frame import architecture

COLDEST = 0.01  # temperature


@architecture("prnet")
class PRNet(DCP):
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
        passes: int = 3,
        keypoints: int = 512,
        temperature_widths: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__(widths, out, neighbours, heads, hidden, blocks, passes)
        check_counts(keypoints=keypoints)
        sizes = [out, *temperature_widths]
        self.temperature = nn.Sequential(layers(sizes), nn.Linear(sizes[-1], 1))
        self.keypoints = keypoints

    def match(
        self, source: Tensor, moved: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None
    ) -> Assignment:
        x, y = self.features(moved, target, source_mask, target_mask)
        difference = (masked_max(x, source_mask, 1) - masked_max(y, target_mask, 1)).abs()
        temperature = COLDEST + functional.softplus(self.temperature(difference).to(x.dtype))  # (B, 1)
        source, x, source_mask = self._keypoints(source, x, source_mask)
        target, y, target_mask = self._keypoints(target, y, target_mask)
        apart = x.square().sum(-1)[:, :, None] - 2 * products(x, y) + y.square().sum(-1)[:, None, :]
        affinity = -apart / (x.shape[-1] ** 0.5 * temperature[..., None])
        return self.assignment(source, target, affinity, source_mask, target_mask)

    def _keypoints(self, points: Tensor, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Points, features and mask of those whose features are largest; padding only where a cloud has too few."""
        size = features.detach().norm(dim=-1)
        if mask is not None:
            size = size.masked_fill(~mask, -1.0)
        rows = size.topk(min(self.keypoints, points.shape[1]), dim=1).indices
        kept = None if mask is None else mask.gather(1, rows)
        return gather(points, rows), gather(features, rows), kept
