"""From two images to the best homography: the levels of both, a search, and the descent of what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg._alignment_input import Picture
from dlc_reg._alignment_objective import ImageAlignment, Level, coarser, level_of, motion
from dlc_reg._alignment_search import SCALE, distinct, reduced, search
from dlc_reg._warping import corners, normaliser, project
from dlc_reg.iterate import SmallStep, Termination, iterate
from dlc_reg.manifold import Homography
from dlc_reg.networks.images import LEVELS
from dlc_reg.updates import LevenbergMarquardt

WORKING = 256  # pixels of the longer side at which the search and the three levels are
SMALL = 32  # pixels of a shorter side that are kept for it
KEPT = (24, 12, 4)  # starts of the descents at the levels, coarsest first
ITERATIONS = (12, 10, 12)
EROSION = 4  # map pixels beside a hole that features see it from
OBJECTIVE, MANIFOLD = ImageAlignment(), Homography()


@dataclass(frozen=True, eq=False)
class Sides:
    """Two images for the objective: the second is the template. `branches`: which branch encodes each."""

    images: tuple[Tensor, Tensor]
    masks: tuple[Tensor, Tensor]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    branches: tuple[int, int]

    @classmethod
    def of(cls, source: Picture, target: Picture, device: Any) -> Sides:
        both = (source, target)
        return cls(
            (source.values.to(device), target.values.to(device)),
            (source.mask.to(device), target.mask.to(device)),
            (both[0].size, both[1].size),
            (0, 1),
        )

    def swapped(self) -> Sides:
        return Sides(*(pair[::-1] for pair in (self.images, self.masks, self.sizes, self.branches)))  # type: ignore[arg-type]

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """(3, 3) each: pixels -> normalised coordinates."""
        device = self.images[0].device
        return normaliser(self.sizes[0], device=device), normaliser(self.sizes[1], device=device)

    def shrinks(self, longest: int) -> tuple[int, int]:
        """Halvings for the search, and for the finest that is looked at."""
        longer = max(*self.sizes[0], *self.sizes[1])
        shorter = min(*self.sizes[0], *self.sizes[1])
        working = 0
        while longer / 2**working > WORKING and shorter / 2 ** (working + 1) >= SMALL:
            working += 1
        finest = 0
        while longer / 2**finest > longest and finest < working:
            finest += 1
        return working, finest

    def shrunk(self, halvings: int) -> tuple[Tensor, Tensor]:
        step = 1 << halvings
        return functional.avg_pool2d(self.images[0], step), functional.avg_pool2d(self.images[1], step)

    def levels(self, features: nn.Module, halvings: int, count: int = LEVELS) -> list[Level]:
        """The finest `count` levels of the images after so many halvings."""
        maps = [features(image, branch) for image, branch in zip(self.shrunk(halvings), self.branches, strict=True)]
        found = []
        for k in range(count):
            scale = 1 << (halvings + k)
            masks = eroded(reduced(self.masks[0], scale)), eroded(reduced(self.masks[1], scale))
            found.append(level_of(maps[0][k], maps[1][k], self.sizes, scale, masks))
        return found

    def candidates(self, features: nn.Module, halvings: int, rotation_deg: float, scale: float) -> Tensor:
        """(K, 3, 3): starts from all over the other image, in normalised coordinates."""
        images, step = self.shrunk(halvings), 1 << halvings
        back = torch.linalg.inv(coarser(step))
        masks = reduced(self.masks[0], step), reduced(self.masks[1], step)
        places = self.places[0].cpu() @ back, self.places[1].cpu() @ back

        def encode(image: Tensor, side: int) -> Tensor:
            maps: Tensor = features(image, self.branches[side])[SCALE.bit_length() - 1]
            return maps

        return search(encode, images[0], images[1], masks, places, rotation_deg, scale, KEPT[0])


@dataclass(frozen=True)
class Descent:
    """Distinct homographies (K, 3, 3), the best first, with E and the overlapping share of each, and the records."""

    omega: Tensor
    value: Tensor
    overlap: Tensor
    history: list[dict[str, Any]]


def descend(
    levels: Sequence[Level], omega: Tensor, kept: Sequence[int], iterations: Sequence[int], stage: str
) -> Descent:
    """Levenberg and Marquardt's steps from starts (K, 3, 3), at levels in turn, each from the best `kept` by E there.

    What a finer level starts from are the starts themselves and where they led before: at a coarse one there is too
    little to see to tell right from wrong, or to improve on a good start.
    """
    history: list[dict[str, Any]] = []
    starts = omega
    for level, count, most in zip(levels, kept, iterations, strict=True):
        begin = _best(omega, OBJECTIVE.value(omega.to(level.template)[:, None], level)[:, 0], count)
        solution = iterate(
            OBJECTIVE,
            LevenbergMarquardt(MANIFOLD),
            omega[begin].to(level.template)[:, None],
            level,
            termination=Termination(most, SmallStep(1e-5)),
        )
        width = round(1 / float(level.place[0, 0]) * 1e6) / 1e6
        history += [
            {"stage": stage, "unit": width, "value": float(torch.as_tensor(record["value"]).min())}
            for record in solution.history
        ]
        reached, value, overlap = solution.omega[:, 0], solution.value[:, 0], solution.history[-1]["overlap"][:, 0]
        omega = torch.cat([starts.to(reached), reached])
    rows = _best(reached, value, len(reached))
    return Descent(reached[rows], value[rows], overlap[rows], history)


def _best(omega: Tensor, value: Tensor, count: int) -> Tensor:
    """Rows of the best `count` by value that are apart from each other."""
    order = torch.nan_to_num(value, nan=torch.inf).argsort(stable=True)
    return order[distinct(omega[order], count, apart=0.06)]


def correlation(omega: Tensor, level: Level) -> float:
    """Of the features where both images are, at omega (1, 3, 3): 1 if they are alike, 0 if they are unrelated."""
    residual, weight = OBJECTIVE.residual(omega[:, None], level)
    template, weight = level.template.double(), weight[0, ..., None].double()
    seen = template - residual[0].double()
    product, first, second = ((weight * pair).sum() for pair in (template * seen, template**2, seen**2))
    return float(product / (first * second).sqrt().clamp(min=1e-12))


def corner_std(omega: Tensor, level: Level, value: float, size: tuple[int, int]) -> float:
    """By how much noise would move the template's corners: root mean square, pixels; infinite along a free direction.

    As if a quarter of the residuals were independent: features are blurred, and neighbours share what they see.
    """
    hessian = OBJECTIVE.linearize(omega[:1, None], level)[0][0, 0].double()
    scale = normaliser(size)[0, 0]
    square = project(normaliser(size), corners(size))
    jacobian = motion(square).reshape(8, 8).to(hessian)
    values, vectors = torch.linalg.eigh(hessian)
    if not bool(values[0] > 1e-7 * values[-1]):
        return float("inf")
    covariance = vectors @ torch.diag(1 / values) @ vectors.mT * value / max(float(level.weight.sum()) / 4, 1)
    moved = (jacobian @ covariance @ jacobian.mT).diagonal().sum() / 4
    return float(moved.clamp(min=0).sqrt()) / float(scale)


def eroded(mask: Tensor) -> Tensor:
    """Less the pixels beside a hole; the border of the image is none."""
    width = 2 * EROSION + 1
    return -functional.max_pool2d(-mask, width, stride=1, padding=EROSION) if bool((mask == 0).any()) else mask
