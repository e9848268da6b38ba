"""Where to start an alignment: patches of one image found in the other, and homographies that many of them agree on.

A whole template seen under perspective fits nowhere, but its parts do, nearly: each patch is correlated with the other
image at every translation, for some rotations and scales, by Fourier transforms. Most of its peaks are wrong, and what
is right agrees: homographies of four matches, drawn at random as RANSAC does (Fischler and Bolles, 1981), and of single
ones with their rotation and scale, are scored by how many patches have a peak where they send them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dlc_reg._alignment_objective import coarser, standardised
from dlc_reg._warping import SQUARE, Size, corners, homography_from_points, in_front, project, turns, warp

Encode = Callable[[Tensor, int], Tensor]
SCALE = 2  # pixels of the image, along x and y, that one of the maps stands for
GRID = 5  # patches along each side of the template
SIDE = 0.25  # of a patch, of the template's shorter side
SMALLEST = 6  # map pixels of a patch's side
COVERED = 0.9  # least share of a patch that both images have
PEAKS = 2  # kept of a patch at one rotation and scale
MATCHES = 6  # kept of a patch
APART = 0.08  # of its matches, in halves of the longer side
DRAWS = 8192  # of four matches
FAVOUR = 0.1  # a match so much better is drawn e times as often
REACH = 0.04  # standard deviation of a match, in halves of the longer side
IMPROVED = 500  # homographies that are fitted again, to all patches that agree


class Matches(NamedTuple):
    """Patches of the template, and where each may be in the other image, the best first; all in float64 on the CPU."""

    patch: Tensor  # (P, 2) middles, in the template's normalised coordinates
    place: Tensor  # (P, K, 2) middles, in the other image's
    score: Tensor  # (P, K) correlation, 0 where there is no match
    frame: Tensor  # (P, K, 3, 3) the similarity under which it was found, the other image's pixels -> the template's


def similarities(
    rotation_deg: float, scale: float, turn_deg: float = 15.0, ratio: float = 1.5
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


def search(
    encode: Encode,
    source: Tensor,
    template: Tensor,
    masks: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor],
    rotation_deg: float,
    scale: float,
    count: int,
) -> Tensor:
    """(K, 3, 3): homographies, source into template in normalised coordinates: up to `count`, the most agreed on first,
    and the middle of one on that of the other, pixel for pixel.

    source, template: images (1, C, h, w); masks (1, 1, h, w); places (3, 3): pixels -> normalised coordinates, on the
    CPU; `encode(image, branch)`: the feature map, each pixel of which stands for SCALE x SCALE of the image.
    """
    patches, middles = cut(encode(template, 1), masks[1], places[1])
    found = []
    for angle, zoom in similarities(rotation_deg, scale):
        matrix, (height, width) = turned(angle, zoom, (source.shape[-2], source.shape[-1]))
        canvas = max(height, 8 * SCALE), max(width, 8 * SCALE)
        image, covered = warp(source, matrix[None], canvas)
        holds = reduced(warp(masks[0].to(source), matrix[None], canvas)[0] * covered[:, None], SCALE)
        maps = standardised(encode(image, 0), holds)[0]
        if min(maps.shape[-2:]) < patches.shape[-1]:  # a narrow image holds no patch
            continue
        score, peak = peaks(correlations(patches, maps, holds[0, 0]), patches)
        place = project(places[0] @ torch.linalg.inv(coarser(SCALE) @ matrix), peak.reshape(-1, 2)).reshape(peak.shape)
        found.append((score, place, matrix.expand(*score.shape, 3, 3)))
    middle = torch.eye(3, dtype=torch.float64)
    middle[:2, :2] *= places[1][0, 0] / places[0][0, 0]
    if not found:
        return middle[None]
    score, place, frame = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return torch.cat([agreed(best_apart(Matches(middles, place, score, frame)), places, scale, count), middle[None]])


def cut(template: Tensor, mask: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Patches (P, C, s, s) of a map (1, C, h, w), each channel less its mean, zero where much of it is masked; and
    their middles (P, 2) in normalised coordinates."""
    holds = reduced(mask, SCALE)
    maps, (height, width) = standardised(template, holds)[0], template.shape[-2:]
    side = min(max(SMALLEST, round(SIDE * min(height, width))), height, width)
    rows, columns = (torch.linspace(0, n - side, GRID).round().int().tolist() for n in (height, width))
    starts = [(row, column) for row in rows for column in columns]
    parts = torch.stack([maps[:, row : row + side, column : column + side] for row, column in starts])
    whole = torch.stack([holds[0, 0, row : row + side, column : column + side].mean() for row, column in starts])
    centred = (parts - parts.mean((-2, -1), keepdim=True)) * (whole > COVERED).to(parts)[:, None, None, None]
    middles = torch.tensor([(column, row) for row, column in starts], dtype=torch.float64) + (side - 1) / 2
    return centred, project(place @ torch.linalg.inv(coarser(SCALE)), middles)


def correlations(patches: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    """Normalised cross-correlation (P, y, x) of patches (P, C, s, s), whose means are zero, with a map (C, h, w) at
    every place that lies within it; -1 where its mask (h, w) lacks much."""
    side, (height, width) = patches.shape[-1], maps.shape[-2:]
    shape = [1 << (n - 1).bit_length() for n in (height, width)]
    there = torch.fft.rfft2(torch.cat([maps, maps.square().sum(0, keepdim=True), mask[None].to(maps)]), s=shape)
    box = torch.fft.rfft2(torch.ones_like(patches[0, 0]), s=shape).conj()
    common = (there[:-2] * torch.fft.rfft2(patches, s=shape).conj()).sum(1)
    sums = torch.fft.irfft2(torch.cat([common, there * box]), s=shape)[:, : height - side + 1, : width - side + 1]
    products, local, squares, area = sums[: len(patches)], sums[len(patches) : -2], sums[-2], sums[-1]
    spread = (squares - local.square().sum(0) / side**2).clamp(min=0)
    # a tenth of a typical place's spread, so that the noise of a flat one matches nothing
    length = patches.square().sum((1, 2, 3)).sqrt()[:, None, None] * (spread + 0.1 * side**2).sqrt()
    return torch.where(area > COVERED * side**2, products / length.clamp(min=1e-12), -1.0)


def peaks(correlation: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """The PEAKS highest of (P, y, x): correlation (P, PEAKS), 0 where there is none, and the map pixels (P, PEAKS, 2)
    of the patches' middles there."""
    side, reach = patches.shape[-1], patches.shape[-1] // 4
    columns = functional.max_pool2d(correlation[None], (2 * reach + 1, 1), 1, (reach, 0))
    highest = functional.max_pool2d(columns, (1, 2 * reach + 1), 1, (0, reach))[0]
    only = torch.where(highest == correlation, correlation, -1.0).flatten(1)
    score, index = only.topk(min(PEAKS, only.shape[1]))
    width = correlation.shape[-1]
    middles = torch.stack([index % width, index // width], dim=-1).double() + (side - 1) / 2
    return score.clamp(min=0).double().cpu(), middles.cpu()


def best_apart(found: Matches) -> Matches:
    """The MATCHES best of each patch that are apart from each other."""
    left, rows, chosen = found.score.clone(), torch.arange(len(found.score)), []
    for _ in range(min(MATCHES, left.shape[1])):
        best = left.argmax(1)
        chosen.append((best, left[rows, best]))
        distance = (found.place - found.place[rows, best][:, None]).norm(dim=-1)
        left = torch.where(distance < APART, 0.0, left)
    index, score = (torch.stack(parts, 1) for parts in zip(*chosen, strict=True))
    return Matches(found.patch, found.place[rows[:, None], index], score, found.frame[rows[:, None], index])


def agreed(found: Matches, places: tuple[Tensor, Tensor], scale: float, count: int) -> Tensor:
    """(K, 3, 3), source into template: the distinct homographies with the highest `support`, at most `count`."""
    patch, place, score, _ = found
    generator = torch.Generator().manual_seed(0)
    chance = (score / FAVOUR).exp()
    four = torch.multinomial(chance.sum(1).expand(DRAWS, -1), 4, generator=generator)
    match = torch.multinomial(chance[four.flatten()], 1, generator=generator).reshape(four.shape)
    guesses = torch.cat([homography_from_points(patch[four], place[four, match]), _alone(found, places)])
    area = 4 * (places[0][0, 0] / places[1][0, 0]).item() ** 2  # of the template in the other image, at scale 1
    areas = area / (2 * scale) ** 2, area * (2 * scale) ** 2
    total, order = support(guesses, found, areas)[0].sort(descending=True, stable=True)
    best, total = guesses[order[:IMPROVED]], total[:IMPROVED]
    for _ in range(2):
        _, each, which = support(best, found, areas)
        fitted = homography_from_points(patch.expand(len(best), -1, -1), place[torch.arange(len(patch)), which], each)
        better, _, _ = support(fitted, found, areas)
        best = torch.where((better > total)[:, None, None], fitted, best)
        total = torch.maximum(better, total)
    total, order = total.sort(descending=True, stable=True)
    forward: Tensor = torch.linalg.inv(best[order][total > 0])
    return forward[distinct(forward, count, apart=0.1)]


def support(homographies: Tensor, found: Matches, areas: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """How well the matches agree with homographies (N, 3, 3), template into source: (N,), the sum over patches of the
    score of the match that speaks most for it, less with its distance; what each says (N, P), and which it is (N, P).

    0 where the template would fold, mirror, or have an area outside `areas`.
    """
    corner = project(homographies, SQUARE)
    (x, y), (u, v) = (corner[:, 2] - corner[:, 0]).unbind(-1), (corner[:, 3] - corner[:, 1]).unbind(-1)
    area = (x * v - y * u) / 2
    upright = in_front(homographies, SQUARE, 0.2).all(-1) & (turns(corner) > 0).all(-1)
    fair = upright & (area > areas[0]) & (area < areas[1])
    distance = (project(homographies, found.patch)[:, :, None] - found.place).square().sum(-1)
    said = torch.nan_to_num(found.score * (-distance / (2 * REACH**2)).exp())
    each, which = said.max(-1)
    return torch.where(fair, each.sum(-1), 0.0), each, which


def _alone(found: Matches, places: tuple[Tensor, Tensor]) -> Tensor:
    """(P K, 3, 3), template into source: each match with the rotation and scale that it was found under."""
    back: Tensor = (places[0] @ torch.linalg.inv(found.frame) @ torch.linalg.inv(places[1])).flatten(0, 1)
    patch = found.patch[:, None].expand(found.place.shape).reshape(-1, 1, 2)
    back[:, :2, 2] += (found.place.reshape(-1, 1, 2) - project(back, patch))[:, 0]
    return back


def distinct(homographies: Tensor, count: int, apart: float) -> list[int]:
    """Rows of the first `count` that send the corners of [-1, 1]^2 at least `apart` from each other on average."""
    places = project(homographies.double(), SQUARE.to(homographies.device))
    kept: list[int] = []
    for k in range(len(places)):
        if bool(((places[kept] - places[k]).norm(dim=-1).mean(-1) > apart).all()):
            kept.append(k)
        if len(kept) == count:
            break
    return kept


def reduced(mask: Tensor, scale: int) -> Tensor:
    """Masks (B, 1, h, w) at a coarser scale: 1 where more than half holds."""
    return (functional.avg_pool2d(mask.to(torch.float32), scale) > 0.5).to(torch.float32)
