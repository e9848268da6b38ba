"""Whether an alignment can be trusted, from what is known without the truth."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from dlc_reg._answers import Verdict
from dlc_reg._warping import Size, corners, in_front, project, turns

FAILED_CORRELATION, LEAST_CORRELATION = 0.05, 0.25
LEAST_GAP = 0.1  # of E, to the best other homography that was found
MOST_BACKWARD = 2.0  # pixels
MOST_STD = 1.0  # pixels
LEAST_OVERLAP = 0.25


def judge(homography: NDArray[Any], size: Size, evidence: dict[str, float]) -> tuple[Verdict, list[str]]:
    """The verdict, and why."""
    correlation, gap = evidence["correlation"], evidence["gap"]
    shape = _shape(torch.from_numpy(homography), size)
    if shape is not None:
        return Verdict.FAILED, [shape]
    if not correlation > FAILED_CORRELATION:
        return Verdict.FAILED, [f"the images do not correspond where they were laid: correlation {correlation:.2f}"]
    doubts = []
    if correlation < LEAST_CORRELATION:
        doubts.append(f"the correlation after alignment is only {correlation:.2f}")
    if gap < LEAST_GAP:
        doubts.append(f"another homography does nearly as well: E differs by {gap:.2f}")
    if not evidence["backward"] < MOST_BACKWARD:
        doubts.append(f"aligning the other way round ends {evidence['backward']:.1f} pixels away")
    if not evidence["corner_std"] < MOST_STD:
        doubts.append("the texture leaves a direction nearly free: a repeated or smooth pattern")
    if evidence["overlap"] < LEAST_OVERLAP:
        doubts.append(f"only {evidence['overlap']:.0%} of the smaller image overlap")
    if doubts:
        return Verdict.DOUBTFUL, doubts
    agreement = f"aligning the other way round agrees within {evidence['backward']:.2f} pixels"
    return Verdict.ALIGNED, [f"correlation {correlation:.2f}, {agreement}"]


def _shape(homography: torch.Tensor, size: Size) -> str | None:
    """What is wrong with a homography for any pair of images, or None."""
    points = corners(size)
    if not bool(torch.isfinite(homography).all()) or not bool(in_front(homography, points).all()):
        return "the homography sends part of the source beyond the horizon"
    if not bool((turns(project(homography, points)) > 0).all()):
        return "the homography folds or mirrors the source"
    return None
