"""Clouds at ever finer scales, as Open3D's tensor module thins them, and the checks of what says which."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.pipelines._clouds import Cloud, drop_non_finite

Array = NDArray[np.float64]


def pyramid(cloud: Cloud, sizes: Sequence[float]) -> list[Cloud]:
    """The cloud at each scale, coarsest first; each thinned from the next finer one."""
    levels = []
    for size in reversed(sizes):
        cloud = thinned(cloud, size) if size > 0 else cloud
        levels.append(cloud)
    return levels[::-1]


def thinned(cloud: Cloud, size: float) -> Cloud:
    """Means of all that is known, over voxels [i, i + 1) `size` along each axis; points that are not finite go."""
    cloud = drop_non_finite(cloud)[0]
    cells = np.floor(cloud.points / size).astype(np.int64)
    _, inverse, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)

    def mean(values: Array) -> Array:
        columns = values.reshape(len(values), -1).T
        sums = np.stack([np.bincount(inverse, column, len(counts)) for column in columns], axis=1)
        means: Array = (sums / counts[:, None]).reshape(-1, *values.shape[1:])
        return means

    return cloud.map(mean)


def check_scales(sizes: list[float], distances: list[float], criteria: list[Any]) -> None:
    if not len(sizes) == len(distances) == len(criteria) > 0:
        raise InputError(
            "voxel_sizes, criteria_list, max_correspondence_distances",
            f"lengths {len(sizes)}, {len(criteria)}, {len(distances)}",
            "the same length, at least 1",
        )
    if any(later >= earlier for earlier, later in pairwise(sizes)):
        raise InputError("voxel_sizes", str(sizes), "sizes in strictly decreasing order")
    for scale, distance in enumerate(distances):
        if not distance > 0:
            raise InputError("max_correspondence_distances", f"{distance:g} in scale {scale}", "a distance above 0")
