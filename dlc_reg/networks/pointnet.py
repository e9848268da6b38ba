"""PointNet (Qi et al., CVPR 2017) without its transforms: one feature of a cloud, and how it turns with the points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class PointNet(nn.Module):
    """Points (..., N, 3) -> (..., widths[-1]): the same small network for each point, then the largest or the mean.

    Nothing is normalised, so that the feature is a function of the points alone and piecewise linear in them.
    """

    def __init__(self, widths: Sequence[int] = (64, 64, 64, 128, 1024), pool: Literal["max", "mean"] = "max") -> None:
        super().__init__()
        self.pool = pool
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([3, *widths[:-1]]))
        self.last = nn.Linear([3, *widths][-2], widths[-1])

    def forward(self, points: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (..., N): True at real points."""
        return self._pooled(points, mask)[0]

    def with_jacobian(self, points: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The feature (..., C), and its derivative (..., C, 6) as all points move by the twist (w, v): p' = w x p + v.

        By the chain rule of Li et al. (CVPR 2021): a point's feature gradient, a product of the layers' matrices with
        the units that are off struck out, times the point's own motion. With max pooling only the point that is the
        largest in a channel counts, and only at that channel.
        """
        feature, best = self._pooled(points, mask)
        if best is not None:
            chosen = points.gather(-2, best[..., None].expand(*best.shape, 3))  # (..., C, 3)
            gradient = (self._slopes(chosen) * self.last.weight[:, None, :]).sum(-1)  # (..., C, 3)
            return feature, torch.cat([torch.linalg.cross(chosen, gradient), gradient], dim=-1)
        slopes = self._slopes(points).movedim(-2, -1)  # (..., N, H, 3)
        turned = torch.linalg.cross(points[..., None, :].expand_as(slopes), slopes)
        moments = self._mean(torch.cat([turned, slopes], dim=-1).flatten(-2), mask)
        return feature, self.last.weight @ moments.reshape(*moments.shape[:-1], -1, 6)

    def _pooled(self, points: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The feature, and of max pooling the point that each channel is from, (..., C)."""
        x = points
        for layer in self.hidden:
            x = layer(x).relu()
        if self.pool == "mean":
            return self.last(self._mean(x, mask)), None
        x = self.last(x)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], -torch.inf)
        best = x.max(-2)
        return best.values, best.indices

    def _slopes(self, points: Tensor) -> Tensor:
        """(..., N, 3, H): the derivative of the last hidden layer by the point."""
        x, slopes = points, torch.eye(3, dtype=points.dtype, device=points.device)
        for layer in self.hidden:
            x = layer(x).relu()
            slopes = functional.linear(slopes, layer.get_parameter("weight")) * (x > 0)[..., None, :]
        return slopes.expand(*points.shape[:-1], 3, -1)

    @staticmethod
    def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
        """Over the points (..., N, C)."""
        if mask is None:
            return values.mean(-2)
        share = mask.to(values.dtype) / mask.sum(-1, keepdim=True)
        return (values * share[..., None]).sum(-2)
