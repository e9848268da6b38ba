"""How the global search describes points, and which of two clouds' points it takes for the same: one list, one place.

Each descriptor is matched by itself, for their distances do not compare; the matches are united.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Of the N points of `index`; their normals (N, 3) have signs if `oriented`. A descriptor is made when asked for.

    Neighbourhoods are multiples of the working voxel size.
    """

    index: ops.SearchIndex
    normals: Tensor
    voxel: float
    oriented: bool
    num_threads: int | None = None

    @cached_property
    def fpfh(self) -> Tensor:
        """(N, 33): fast point feature histograms."""
        return self._by(ops.fpfh, FPFH_VOXELS)

    @cached_property
    def signatures(self) -> Tensor:
        """(N, 352), or (N, 192) unless `oriented`: signatures of histograms of orientations."""
        return self._by(ops.signatures, SIGNATURE_VOXELS)

    @cached_property
    def axes(self) -> Tensor:
        """(D, 64): the principal axes of the signatures, with their mean among them."""
        some = self.signatures[:: -(-len(self.signatures) // 2000) or 1]
        gram = (some.mT @ some).double()  # in float32 LAPACK gives up on few rows
        axes: Tensor = torch.linalg.eigh(gram).eigenvectors[:, -SIGNATURE_AXES:].float()
        return axes

    def matches(self, target: Description, *, quick: bool = False, num_threads: int | None = None) -> Tensor:
        """Rows (M, 2) of these points and of the target's that are each other's nearest by some descriptor.

        `quick`: by the histograms alone, at half the cost.
        """
        found = [nearest(self.fpfh, target.fpfh, num_threads=num_threads)]
        if not quick:
            axes = target.axes
            found.append(nearest(self.signatures @ axes, target.signatures @ axes, num_threads=num_threads))
        united: Tensor = torch.unique(torch.cat(found), dim=0)
        return united

    def _by(self, describe: Callable[..., Tensor], voxels: float) -> Tensor:
        reach = voxels * self.voxel
        found: Tensor = describe(self.index, self.normals, reach, oriented=self.oriented, num_threads=self.num_threads)
        return found


def nearest(a: Tensor, b: Tensor, *, num_threads: int | None = None) -> Tensor:
    """(M, 2), M <= `MAX_MATCHES`: the nearest of the rows of a (N, D) and b (K, D) that are each other's nearest."""
    pairs, squared = ops.mutual_matches(a, b, num_threads=num_threads)
    return pairs[squared.argsort(stable=True)[:MAX_MATCHES]]
