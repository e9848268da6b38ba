"""Images made of formulas, with known homographies, for the tests of alignment."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dlc_reg.alignment import corners, homography_from_corners


def scene(x: Tensor, y: Tensor, seed: int = 0, blobs: int = 220, extent: float = 220.0) -> Tensor:
    """A picture without an end: bright and dark ellipses of all sizes and directions, evaluated at any coordinates."""
    rng = np.random.default_rng(seed)
    total = torch.zeros_like(x)
    for _ in range(blobs):
        cx, cy = rng.uniform(-0.2 * extent, 1.2 * extent, 2)
        wide, thin = rng.uniform(2, 18), rng.uniform(1.5, 6)
        turn, height = rng.uniform(0, math.pi), rng.uniform(-1, 1)
        u = (x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)
        v = (y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)
        total = total + height * (-((u / wide) ** 2) - (v / thin) ** 2).exp()
    return total


def picture(size: tuple[int, int], homography: Tensor | None = None, seed: int = 0) -> Tensor:
    """(H, W) float64: the scene at the pixel centres, or at where the homography sends them: no interpolation."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    if homography is None:
        return scene(x, y, seed)
    third = homography[2, 0] * x + homography[2, 1] * y + homography[2, 2]
    u = (homography[0, 0] * x + homography[0, 1] * y + homography[0, 2]) / third
    v = (homography[1, 0] * x + homography[1, 1] * y + homography[1, 2]) / third
    return scene(u, v, seed)


def perturbed(size: tuple[int, int], reach: float, seed: int, offset: float = 20.0) -> Tensor:
    """(3, 3): an image's corners, moved on by `offset` and each off by up to `reach` pixels."""
    rng = np.random.default_rng(seed)
    there = corners(size) + offset + torch.from_numpy(rng.uniform(-reach, reach, (4, 2)))
    return homography_from_corners(corners(size), there)
