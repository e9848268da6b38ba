"""Learned descriptors of points: the classical histograms of a neighbourhood, brought to where true matches lie near.

The input is invariant to motions, and its radii are multiples of the working voxel size, so that one weight serves
whatever the clouds' unit, size and spacing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlc_reg.networks.arguments import recorded
from dlc_reg.networks.neighbours import check_counts


def histograms(features: Tensor, signatures: Tensor) -> Tensor:
    """The input (N, 33 + D), each number 0 to 1, from `ops.fpfh` (N, 33) and `ops.signatures` (N, D).

    Square roots: the distance between histograms is then Hellinger's, which small bins count in.
    """
    return torch.cat([features.clamp(min=0) / 200, signatures.clamp(0, 1)], 1).sqrt()


@recorded
class Descriptors(nn.Module):
    """`histograms` (N, inputs) -> descriptors (N, out) of unit length."""

    def __init__(self, inputs: int, width: int = 128, out: int = 32) -> None:
        super().__init__()
        check_counts(inputs=inputs, width=width, out=out)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(inputs))  # of the training's input
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.layers(10 * (x - self.mean)), dim=-1)
