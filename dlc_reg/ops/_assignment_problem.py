"""What a soft assignment is made of: affinities by their factors, and the tensors that the native operators take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlc_reg import _core
from dlc_reg.ops import _cuda

STRIP = 1 << 26  # bytes of affinities that exist at once on a CUDA device, where they are given by factors


class Affinity(NamedTuple):
    """a_ij = f_i . g_j + r_i + c_j, for `soft_assignment` in place of the matrix (B, N, M).

    Only some rows of the matrix then exist at a time. float32 or float64, any C from 0; a bias of -2e4 or less, also
    -inf, marks padding.
    """

    source_features: Tensor  # (B, N, C): f
    target_features: Tensor  # (B, M, C): g
    source_bias: Tensor  # (B, N): r
    target_bias: Tensor  # (B, M): c

    def matrix(self, rows: slice = slice(None)) -> Tensor:
        """Some rows of the matrix, (B, rows, M); all by default. In the factors' own precision under autocast, too."""
        with torch.autocast(self.source_features.device.type, enabled=False):
            products = self.source_features[:, rows] @ self.target_features.mT
        return products.add_(self.source_bias[:, rows, None]).add_(self.target_bias[:, None])


class Problem(NamedTuple):
    """Contiguous tensors on one device; poses, sharpness and outlier are float64, the rest float32."""

    source: Tensor  # (B, N, 3)
    target: Tensor  # (B, M, 3)
    poses: Tensor  # (K, B, 4, 4)
    sharpness: Tensor  # (B,)
    outlier: Tensor  # (B,)
    source_weight: Tensor  # (B, N)
    target_weight: Tensor  # (B, M)
    affinity: Tensor  # (B, N, M); or the source's features (B, N, C), and then what follows
    target_features: Tensor | None = None  # (B, M, C)
    source_bias: Tensor | None = None  # (B, N)
    target_bias: Tensor | None = None  # (B, M)

    def sizes(self) -> tuple[int, int, int, int]:
        """K, B, N and M."""
        return *self.poses.shape[:2], self.source.shape[1], self.target.shape[1]

    def native(self, both_ways: bool, *more: int) -> tuple[Any, ...]:
        """What a native operator is given of it, and `more`."""
        channels = -1 if self.target_features is None else self.affinity.shape[2]
        return *map(_cuda.address, self), channels, *self.sizes(), both_ways, *more

    def on_device(self, both_ways: bool) -> _core.CudaAssignment:
        return _core.CudaAssignment(*self.native(both_ways, self.strip()))

    def strip(self) -> int:
        """How many rows of affinities exist at once: all of a matrix, and of factors some multiple of 32."""
        _, batch, n, m = self.sizes()
        if self.target_features is None:
            return max(1, n)
        return max(1, STRIP // (4 * 32 * max(1, batch * m))) * 32

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        """Each strip's first row and affinities (B, rows, M); an empty one for a cloud without points."""
        for first in range(0, max(1, self.source.shape[1]), self.strip()):
            if self.target_features is None or self.source_bias is None or self.target_bias is None:
                yield first, self.affinity
            else:
                factors = Affinity(self.affinity, self.target_features, self.source_bias, self.target_bias)
                yield first, factors.matrix(slice(first, first + self.strip()))
