"""DGCNN (Wang et al., TOG 2019) as DCP uses it: edges to the nearest neighbours, one graph for all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlc_reg.networks.neighbours import (
    Neighbourhoods,
    blanked,
    check_counts,
    gather,
    layers,
    masked_max,
    neighbourhoods,
)


class DGCNN(nn.Module):
    """Clouds (B, N, 3) -> features (B, N, out).

    An edge (x_i, x_j - x_i) goes through all layers; after each the largest over the point's edges is kept, and all of
    these together make the feature.
    """

    def __init__(self, widths: Sequence[int] = (64, 64, 128, 256), out: int = 512, neighbours: int = 20) -> None:
        super().__init__()
        check_counts(neighbours=neighbours)
        self.neighbours = neighbours
        self.edge = nn.ModuleList(layers([a, b]) for a, b in zip([6, *widths[:-1]], widths, strict=True))
        self.merge = nn.Linear(sum(widths), out)

    def forward(self, points: Tensor, mask: Tensor | None = None) -> Tensor:
        points = blanked(points, mask)
        around = neighbourhoods(points, mask, self.neighbours)
        x, kept = edges(points, around), []
        for layer in self.edge:
            x = layer(x)
            kept.append(masked_max(x, around.real, 2))
        merged: Tensor = self.merge(torch.cat(kept, dim=-1))
        return merged


def edges(points: Tensor, around: Neighbourhoods) -> Tensor:
    """(B, N, K, 6): the point, and from it to each neighbour."""
    center = points[:, :, None].expand(*around.rows.shape, 3)
    return torch.cat([center, gather(points, around.rows) - center], dim=-1)
