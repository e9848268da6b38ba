"""RPM-Net's hybrid features (Yew and Lee, CVPR 2020): where a point is, and what its neighbourhood looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg.errors import InputError
from dlc_reg.networks.neighbours import blanked, check_counts, gather, layers, masked_max, neighbourhoods

NORMAL_NEIGHBOURS = 20


class LocalEncoder(nn.Module):
    """Clouds (B, N, 3) -> features (B, N, out) of unit length.

    Each neighbour within `radius`, at most `neighbours` of them, is described by [x, dx, PPF(x, dx)], goes through a
    small network, and the largest over the neighbours through another one. `position` False leaves out x and dx: what
    is left does not change with the pose. Normals are estimated and have no sign: angles are those between lines.
    """

    def __init__(
        self,
        widths: Sequence[int] = (96, 96, 192),
        head: Sequence[int] = (192,),
        out: int = 96,
        neighbours: int = 64,
        radius: float = 0.3,
        position: bool = True,
    ) -> None:
        super().__init__()
        check_counts(neighbours=neighbours)
        if not radius > 0:
            raise InputError("radius", str(radius), "a length above 0")
        self.neighbours, self.radius, self.position = neighbours, radius, position
        self.local = layers([10 if position else 4, *widths])
        self.head = nn.Sequential(layers([widths[-1], *head]), nn.Linear([widths[-1], *head][-1], out))

    def forward(self, points: Tensor, mask: Tensor | None = None) -> Tensor:
        points = blanked(points, mask)
        around = neighbourhoods(
            points, mask, self.neighbours, radius=self.radius, itself=False, normals_from=NORMAL_NEIGHBOURS
        )
        assert around.normals is not None
        offset = gather(points, around.rows) - points[:, :, None]
        pairs = point_pair_features(offset, around.normals[:, :, None], gather(around.normals, around.rows))
        x = torch.cat([torch.minimum(pairs[..., :3], math.pi - pairs[..., :3]), pairs[..., 3:]], dim=-1)
        if self.position:
            x = torch.cat([points[:, :, None].expand_as(offset), offset, x], dim=-1)
        pooled = masked_max(self.local(x), around.real, 2)
        return functional.normalize(self.head(pooled), dim=-1)


def point_pair_features(offset: Tensor, normal: Tensor, other: Tensor) -> Tensor:
    """Drost et al., CVPR 2010: (angle(n, d), angle(n', d), angle(n, n'), |d|), (..., 4), angles in [0, pi] [rad].

    `offset` d: from a point to its neighbour; `normal` n: the point's; `other` n': the neighbour's. All (..., 3),
    normals broadcast. Angles with an offset of no length are zero.
    """
    normal, other = normal.expand_as(offset), other.expand_as(offset)
    angles = [angle(normal, offset), angle(other, offset), angle(normal, other)]
    return torch.stack([*angles, offset.norm(dim=-1)], dim=-1)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Between vectors (..., 3) of one shape [rad]; exact near 0 and pi, where the arc cosine is not."""
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))
