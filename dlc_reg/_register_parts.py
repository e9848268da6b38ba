"""The lengths of a registration, the clock of its stages, and what is done to its clouds and pairs before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.registration import verification
from dlc_reg.registration.budget import Budget
from dlc_reg.registration.global_search import Candidates, GlobalSearch

MIN_CELLS, MAX_CELLS = 3, 500_000  # voxels across a cloud
INIT_PREFERENCE = 0.7  # a given start keeps its basin unless another pose scores more than this above it
WHOLE_CLOUD = 300_000  # clouds up to this size are refined whole, larger ones thinned


@dataclass(frozen=True)
class Lengths:
    """Every length of a registration, in the points' unit; all derive from the voxel size and the spacing."""

    voxel_size: float
    spacing: float
    max_correspondence_distance: float
    given_distance: bool
    whole: bool

    @staticmethod
    def derive(
        source: PointCloud, target: PointCloud, *, working: float, voxel_size: float | None, distance: float | None
    ) -> Lengths:
        """`working`: the voxel size of the data, used without a given `voxel_size`; `distance`: the given one, or None.

        Raises InputError where the given voxel size is of another order than the clouds.
        """
        spacing = max(source.spacing, target.spacing)
        voxel = voxel_size or working
        least, most = (f(source.extent, target.extent) for f in (min, max))
        if voxel_size is not None and not most / MAX_CELLS < voxel < least / MIN_CELLS:
            given = f"{voxel:g} for clouds {least:.4g} and {most:.4g} wide"
            raise InputError("voxel_size", given, f"between {most / MAX_CELLS:.2g} and {least / MIN_CELLS:.2g}")
        whole = max(len(source), len(target)) <= WHOLE_CLOUD
        return Lengths(voxel, spacing, distance or max(voxel / 2, 2.5 * spacing), distance is not None, whole)

    def levels(self, coarsest: float) -> tuple[list[float], list[float]]:
        """Voxel sizes from `coarsest` by halves to the clouds as they are, and the distances that go with them."""
        sizes = [coarsest]
        while sizes[-1] / 2 > 1.2 * self.spacing and sizes[-1] > 0.26 * self.voxel_size:
            sizes.append(sizes[-1] / 2)
        distances = [max(2.5 * size, self.max_correspondence_distance) for size in sizes]
        if self.whole:
            sizes, distances = [*sizes, 0.0], [*distances, 0.0]
        distances[-1] = self.max_correspondence_distance
        if self.given_distance and coarsest > self.voxel_size / 2:
            distances = [self.max_correspondence_distance] * len(sizes)
        return sizes, distances


class Stages:
    """Times the stages, and shows them if asked."""

    def __init__(self, progress: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    def __enter__(self) -> Stages:
        if self._progress:
            from tqdm import tqdm

            self._bar: Any = tqdm(total=7, bar_format="{desc:8s} |{bar:30}| {elapsed}", leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._bar.close()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._progress:
            self._bar.set_description_str(name)
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        if self._progress:
            self._bar.update()


def scaled(cloud: PointCloud, scale: float) -> PointCloud:
    """The cloud in coordinates that are `scale` times as large."""
    return replace(
        cloud,
        points=cloud.points * scale,
        origin=cloud.origin * scale,
        covariances=None if cloud.covariances is None else cloud.covariances * scale**2,
        viewpoint=None if cloud.viewpoint is None else cloud.viewpoint * scale,
    )


def radius(cloud: PointCloud) -> float:
    """Root mean square distance from the mean, of the points thinned evenly."""
    points = cloud.voxel_downsample(cloud.extent / 50).points.double()
    return float((points - points.mean(0)).square().sum(1).mean().sqrt())


def as_given(pairs: NDArray[np.int32], source: PointCloud, target: PointCloud) -> NDArray[np.int32]:
    """Rows in the clouds as they were given, before points were dropped."""
    if not len(pairs) or (source.kept is None and target.kept is None):
        return pairs
    rows = [
        pairs[:, side] if cloud.kept is None else cloud.kept.numpy()[pairs[:, side]]
        for side, cloud in enumerate((source, target))
    ]
    return np.stack(rows, axis=1).astype(np.int32)


def searched(
    quick: GlobalSearch, starts: Sequence[Tensor], learn: Callable[[], Tensor] | None, budget: Budget, stages: Stages
) -> tuple[GlobalSearch, Candidates]:
    """The quick search's candidates if the best of them is certain; else those of all that is at hand.

    `starts` and what `learn` finds are poses (4, 4) to try beside the search's own.
    """
    with stages("search"):
        candidates = quick.candidates(torch.stack(list(starts)) if starts else None, budget)
        if verification.certain(quick, candidates) or budget.skips("the search by signatures", search=True):
            return quick, candidates
    if learn is not None and not budget.skips("the learned start"):
        with stages("learn"):
            starts = [*starts, learn()]
    with stages("search"):
        whole = quick.widened()
        return whole, whole.candidates(torch.cat([candidates.poses, *(start[None] for start in starts)]), budget)


def choose(search: GlobalSearch, candidates: Candidates, start: Tensor | None) -> Tensor:
    """The best candidate, or the refined start if it is nearly as good."""
    if start is not None:
        refined = search.judge(search.refine(start[None]))
        if not len(candidates) or float(refined.scores[0]) > float(candidates.scores[0]) - INIT_PREFERENCE:
            return refined.poses[0]
    return candidates.poses[0] if len(candidates) else search.constraint.project(torch.eye(4, dtype=torch.float64))
