"""How the global search describes points, and which of two clouds' points it takes for the same: one list, one place.

Each descriptor is matched by itself, for their distances do not compare; the matches are united.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dlc_reg import ops

MAX_MATCHES = 2000  # of a descriptor
FPFH_VOXELS, SIGNATURE_VOXELS = 5, 6  # radii
SIGNATURE_AXES = 64  # principal ones of the target's signatures


@dataclass(frozen=True)
class Description:
    """Of N points: fast point feature histograms (N, 33) and signatures, (N, 352), or (N, 192) without viewpoints."""

    fpfh: Tensor
    signatures: Tensor

    @staticmethod
    def of(
        index: ops.SearchIndex, normals: Tensor, voxel: float, *, oriented: bool, num_threads: int | None = None
    ) -> Description:
        """Of the points of `index`, with neighbourhoods in multiples of the working voxel size."""
        fpfh, signatures = (
            describe(index, normals, radius * voxel, oriented=oriented, num_threads=num_threads)
            for describe, radius in ((ops.fpfh, FPFH_VOXELS), (ops.signatures, SIGNATURE_VOXELS))
        )
        return Description(fpfh, signatures)

    @cached_property
    def axes(self) -> Tensor:
        """(D, 64): the principal axes of the signatures, with their mean among them."""
        some = self.signatures[:: -(-len(self.signatures) // 2000) or 1]
        gram = (some.mT @ some).double()  # in float32 LAPACK gives up on few rows
        axes: Tensor = torch.linalg.eigh(gram).eigenvectors[:, -SIGNATURE_AXES:].float()
        return axes

    def matches(self, target: Description, *, num_threads: int | None = None) -> Tensor:
        """Rows (M, 2) of these points and of the target's that are each other's nearest by some descriptor."""
        axes = target.axes
        found = [
            nearest(*rows, num_threads=num_threads)
            for rows in ((self.fpfh, target.fpfh), (self.signatures @ axes, target.signatures @ axes))
        ]
        pairs: Tensor = torch.unique(torch.cat(found), dim=0)
        return pairs


def nearest(a: Tensor, b: Tensor, *, num_threads: int | None = None) -> Tensor:
    """(M, 2), M <= `MAX_MATCHES`: the nearest of the rows of a (N, D) and b (K, D) that are each other's nearest."""
    pairs, squared = ops.mutual_matches(a, b, num_threads=num_threads)
    return pairs[squared.argsort(stable=True)[:MAX_MATCHES]]
