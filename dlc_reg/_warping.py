"""Homographies of images: pixel coordinates, corners, and images seen through them.

A pixel is named by its centre, x to the right, y down, the first one (0, 0); so a W x H image covers [-0.5, W - 0.5] x
[-0.5, H - 0.5]. Normalised coordinates have their origin in the middle of the image, and half its longer side is 1: in
them the entries of a homography are of one size, whatever the resolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]
"""(height, width) in pixels, the order of an array's shape."""


SQUARE = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
"""(4, 2): the corners of [-1, 1]^2, clockwise where y points down."""


def normaliser(size: Size, *, device: Any = None) -> Tensor:
    """(3, 3) float64: pixel coordinates of an image of this size -> normalised ones."""
    height, width = size
    scale = 2 / max(height, width)
    rows = [[scale, 0, -scale * (width - 1) / 2], [0, scale, -scale * (height - 1) / 2], [0, 0, 1]]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def corners(size: Size, *, device: Any = None) -> Tensor:
    """(4, 2) float64: the centres of the corner pixels, clockwise from the first."""
    x, y = size[1] - 1.0, size[0] - 1.0
    return torch.tensor([[0, 0], [x, 0], [x, y], [0, y]], dtype=torch.float64, device=device)


def project(homography: Tensor, points: Tensor) -> Tensor:
    """Points (..., N, 2) through (..., 3, 3). What lies on or behind the horizon becomes infinite or a mirror image."""
    moved = points @ homography[..., :, :2].mT + homography[..., None, :, 2]
    return moved[..., :2] / moved[..., 2:]


def inverse(homography: Tensor) -> Tensor:
    """(..., 3, 3); without an error where there is none: what comes there is not finite."""
    found: Tensor = torch.linalg.inv_ex(homography)[0]
    return found


def in_front(homography: Tensor, points: Tensor, least: float = 0.05) -> Tensor:
    """Whether points (..., N, 2) stay before the horizon: (..., N).

    The third coordinate must be above `least` of its largest, and the orientation kept (determinant above 0).
    """
    third = (points @ homography[..., 2, :2, None])[..., 0] + homography[..., 2, 2, None]
    upright = torch.linalg.det(homography).sign()[..., None]
    front: Tensor = upright * third > least * third.abs().amax(-1, keepdim=True)
    return front


def homography_from_corners(source: Tensor, target: Tensor) -> Tensor:
    """The (..., 3, 3), last entry 1, that maps four points (..., 4, 2) to four others; no three in a line.

    The corner parametrisation: eight numbers, the places that an image's corners go to, in place of the matrix.
    """
    return homography_from_points(source, target)


def homography_from_points(source: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The (..., 3, 3), last entry 1, that maps points (..., N, 2), four or more, to others.

    With weights (..., N), by least squares of the algebraic error (Hartley and Zisserman, Multiple View Geometry, 4.1);
    without, exactly, of four points. Where they do not determine it, what comes is not finite, or some homography.
    """
    (x, y), (u, v) = source.unbind(-1), target.unbind(-1)
    zero, one = torch.zeros_like(x + u), torch.ones_like(x + u)
    x, y, u, v = (value.expand_as(zero) for value in (x, y, u, v))
    upper = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=-1)
    lower = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=-1)
    system, right = torch.cat([upper, lower], dim=-2), torch.cat([u, v], dim=-1)[..., None]
    if weight is not None:
        both = system.mT * torch.cat([weight, weight], dim=-1)[..., None, :]
        system, right = both @ system, both @ right
    entries: Tensor = torch.linalg.solve_ex(system, right)[0][..., 0]
    whole = torch.cat([entries, torch.ones_like(entries[..., :1])], dim=-1)
    return whole.reshape(*whole.shape[:-1], 3, 3)


def turns(quadrilateral: Tensor) -> Tensor:
    """(..., 4): how far each side of (..., 4, 2) turns into the next; all above 0: it neither folds nor mirrors."""
    side = quadrilateral.roll(-1, -2) - quadrilateral
    after = side.roll(-1, -2)
    return side[..., 0] * after[..., 1] - side[..., 1] * after[..., 0]


def corner_error(estimate: Tensor, truth: Tensor, size: Size) -> Tensor:
    """(...): mean distance, in target pixels, between where two homographies (..., 3, 3) send a source's four corners.

    Infinite where the estimate sends one behind the horizon.
    """
    estimate, truth = torch.as_tensor(estimate).double(), torch.as_tensor(truth).double()
    points = corners(size, device=estimate.device)
    error = (project(estimate, points) - project(truth, points)).norm(dim=-1).mean(-1)
    front = in_front(estimate, points, 0.0).all(-1)
    return torch.where(front & torch.isfinite(error), error, torch.inf)


def pixel_grid(size: Size, *, dtype: torch.dtype = torch.float64, device: Any = None) -> Tensor:
    """(height * width, 2): the centres of all pixels, row by row."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=dtype, device=device) for n in size), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def sample(images: Tensor, points: Tensor) -> Tensor:
    """Images (B, C, H, W) at pixel coordinates (*lead, B, N, 2), bilinearly: (*lead, B, N, C).

    Beyond the border the nearest pixel of the border counts. The lead dimensions are one call, without copies of the
    images. NaN coordinates, and those beyond all bounds, count as a corner.
    """
    lead, (batch, _, height, width) = points.shape[:-3], images.shape
    size = points.new_tensor([width, height])
    grid = torch.nan_to_num(((2 * points + 1) / size - 1).clamp(-4, 4), nan=-1.0)
    rows = grid.reshape(-1, *grid.shape[-3:]).movedim(0, 1)  # (B, L, N, 2)
    values = functional.grid_sample(images, rows.to(images.dtype), padding_mode="border", align_corners=False)
    return values.movedim(1, -1).movedim(1, 0).reshape(*lead, batch, points.shape[-2], -1)


def inside(points: Tensor, size: Size) -> Tensor:
    """Whether pixel coordinates (..., 2) lie between the outermost pixel centres: (...). NaN does not."""
    height, width = size
    x, y = points.unbind(-1)
    return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)


def warp(images: Tensor, homography: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) as a target of this size sees them through source-to-target (B, 3, 3) in pixels.

    Returns (B, C, *size), and (B, *size) whether the image covers the pixel; what it does not is its nearest border.
    """
    homography = homography.to(torch.float64)
    points = pixel_grid(size, device=images.device)
    back = torch.linalg.inv(homography)
    places = project(back, points)
    covered = inside(places, (images.shape[-2], images.shape[-1])) & in_front(back, points, 0.0)
    values = sample(images, places)
    return values.mT.reshape(*images.shape[:2], *size), covered.reshape(-1, *size)
