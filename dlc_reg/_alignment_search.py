"""Where to start an alignment: the objective at every translation, for some rotations and scales, at low resolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dlc_reg._alignment_objective import VOID, standardised
from dlc_reg._warping import Size, corners, project, warp
from dlc_reg.networks.images import LEVELS

Encode = Callable[[Tensor, int], Tensor]
COARSE = 1 << (LEVELS - 1)
PEAKS = 3  # translations kept of one rotation and scale


class Candidates(NamedTuple):
    """Homographies (K, 3, 3) in normalised coordinates, the best first, and E of each."""

    omega: Tensor
    value: Tensor


def similarities(
    rotation_deg: float, scale: float, turn_deg: float = 15.0, ratio: float = 1.25
) -> list[tuple[float, float]]:
    """(angle [rad], scale) on a grid that reaches at least as far as asked, in both directions."""
    turns = math.ceil(rotation_deg / turn_deg - 1e-9)
    zooms = math.ceil(math.log(scale) / math.log(ratio) - 1e-9)
    step = math.radians(rotation_deg) / max(turns, 1)
    return [
        (i * step, scale ** (j / max(zooms, 1))) for j in range(-zooms, zooms + 1) for i in range(-turns, turns + 1)
    ]


def turned(angle: float, scale: float, size: Size) -> tuple[Tensor, Size]:
    """(3, 3): an image's pixels -> those of the canvas that holds it turned and scaled; and the canvas."""
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    linear = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    box = project(linear, corners(size))
    low, high = box.amin(0), box.amax(0)
    linear[:2, 2] = -low
    width, height = (high - low).ceil().int().add(1).tolist()
    return linear, (height, width)


def translations(source: Tensor, target: Tensor, masks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """E of moving features (C, h, w) over others (C, H, W) by every whole number of pixels, by Fourier transforms.

    masks: (h, w) and (H, W). Returns E (R, S) and the move that its first entry stands for, (2,) as (x, y).
    """
    (h, w), (height, width) = source.shape[-2:], target.shape[-2:]
    shape = [1 << (n - 1).bit_length() for n in (h + height - 1, w + width - 1)]

    def transform(maps: Tensor) -> Tensor:
        result: Tensor = torch.fft.rfft2(maps, s=shape)
        return result

    s, t = masks
    left = transform(torch.cat([source * s, s[None], (s * source.square().sum(0))[None]]))
    right = transform(torch.cat([target * t, t[None], (t * target.square().sum(0))[None]]))
    common = (left[:-2].conj() * right[:-2]).sum(0)
    squares = left[-2].conj() * right[-1] + left[-1].conj() * right[-2]
    both = torch.fft.irfft2(torch.stack([0.5 * squares - common, left[-2].conj() * right[-2]]), s=shape)
    both = both.roll((h - 1, w - 1), dims=(-2, -1))[..., : h + height - 1, : w + width - 1]
    void = VOID * torch.minimum(s.sum(), t.sum()).clamp(min=1)
    return (both[0].clamp(min=0) + void) / (both[1].clamp(min=0) + void), torch.tensor([1.0 - w, 1.0 - h])


def search(
    encode: Encode,
    source: Tensor,
    target: Tensor,
    masks: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor],
    grid: list[tuple[float, float]],
    count: int,
) -> Candidates:
    """The best similarities, distinct ones.

    source, target: images (1, C, h, w); masks (1, 1, h, w); places (3, 3): pixels -> normalised coordinates;
    `encode(image, branch)`: the coarsest feature map, each pixel of which stands for COARSE x COARSE of the image.
    """
    size = source.shape[-2], source.shape[-1]
    seen = reduced(masks[1], COARSE)
    there = standardised(encode(target, 1), seen)[0]
    found, values = [], []
    for angle, scale in grid:
        matrix, (height, width) = turned(angle, scale, size)
        canvas = max(height, 4 * COARSE), max(width, 4 * COARSE)
        image, covered = warp(source, matrix[None], canvas)
        holds = warp(masks[0].to(source), matrix[None], canvas)[0] * covered[:, None]
        mask = reduced(holds, COARSE)
        energy, first = translations(standardised(encode(image, 0), mask)[0], there, (mask[0, 0], seen[0, 0]))
        near = max(2, min(energy.shape) // 12)
        for _ in range(PEAKS):
            row, column = divmod(int(energy.argmin()), energy.shape[1])
            shift = torch.eye(3, dtype=torch.float64)
            shift[:2, 2] = COARSE * (first + torch.tensor([column, row]))
            found.append(places[1] @ shift @ matrix @ torch.linalg.inv(places[0]))
            values.append(energy[row, column].item())
            energy[max(row - near, 0) : row + near + 1, max(column - near, 0) : column + near + 1] = torch.inf
    omega, value = torch.stack(found), torch.tensor(values)
    order = value.argsort(stable=True)
    return distinct(Candidates(omega[order], value[order]), count, apart=0.1)


def distinct(candidates: Candidates, count: int, apart: float) -> Candidates:
    """The best `count` that send the corners of [-1, 1]^2 at least `apart` from each other on average."""
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    places = project(candidates.omega.double(), square)
    kept: list[int] = []
    for k in range(len(places)):
        if all((places[k] - places[other]).norm(dim=-1).mean() > apart for other in kept):
            kept.append(k)
        if len(kept) == count:
            break
    return Candidates(candidates.omega[kept], candidates.value[kept])


def reduced(mask: Tensor, scale: int) -> Tensor:
    """Masks (B, 1, h, w) at a coarser scale: 1 where more than half holds."""
    return (functional.avg_pool2d(mask.to(torch.float32), scale) > 0.5).to(torch.float32)
