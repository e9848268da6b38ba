"""Learned descriptors of points: the classical histograms of a neighbourhood, brought to where true matches lie near.

The input is invariant to motions, and its radii are multiples of the working voxel size, so that one weight serves
whatever the clouds' unit, size and spacing.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from dlc_reg.networks.arguments import recorded
from dlc_reg.networks.files import load_network
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


@cache
def shipped(*, oriented: bool) -> Descriptors:
    """The weights that come with the package, for normals turned to known viewpoints, or of any sign.

    They were trained on generated rooms, and go with radii of 5 voxels for `ops.fpfh` and 6 for `ops.signatures`, and
    points thinned to that voxel size.
    """
    folder = resources.files("dlc_reg") / "weights" / "descriptors"
    with resources.as_file(folder / file_name(oriented=oriented)) as path:
        return read(path)


def read(path: Path) -> Descriptors:
    """Those of a file, in eval(). Raises InputError for one that does not hold them."""
    network = load_network(path, {"descriptors": Descriptors})
    assert isinstance(network, Descriptors)
    return network


def file_name(*, oriented: bool) -> str:
    return f"{'' if oriented else 'un'}oriented.safetensors"
