"""Shapes that a rotation lays on themselves are told from others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from learning import block, blocks
from scipy.spatial.transform import Rotation

from dlc_reg.errors import InputError
from dlc_reg.evaluation import is_symmetric, keep_asymmetric


def box(rng: np.random.Generator, lengths) -> np.ndarray:
    return block(rng, 2000, lengths, (0, 0, 0))


def cylinder(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi, 2000)
    return np.column_stack([0.3 * np.cos(angle), 0.3 * np.sin(angle), rng.uniform(-0.8, 0.8, 2000)])


def bent(rng: np.random.Generator) -> np.ndarray:
    """Three bars in the corner of a room, of different lengths."""
    bars = [box(rng, (length, 0.15, 0.15))[:666] * 0.6 for length in (1.0, 0.7, 0.45)]
    turned = [np.roll(bar + np.ptp(bar[:, :1]) * np.array([0.5, 0, 0]), axis, axis=1) for axis, bar in enumerate(bars)]
    return np.concatenate(turned) * 0.8


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda rng: box(rng, (1, 0.7, 0.4)), True),  # half turns
        (lambda rng: box(rng, (1, 1, 1)), True),
        (cylinder, True),
        (lambda rng: block(rng, 2000), False),
        (bent, False),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_symmetric_shapes_are_told_from_others(make, expected, turned):
    rng = np.random.default_rng(3)
    points = make(rng)
    if turned:
        points = points @ Rotation.from_rotvec([0.7, -1.1, 0.4]).as_matrix().T + 0.05
    assert is_symmetric(points) == expected


def test_only_asymmetric_shapes_are_kept():
    rng = np.random.default_rng(0)
    shapes = blocks(3, 2000)
    points = shapes.points.copy()
    points[1] = box(rng, (1, 0.7, 0.4))
    kept = keep_asymmetric(replace(shapes, points=points))
    assert kept.name.tolist() == ["0", "2"]
    with pytest.raises(InputError, match="all symmetric"):
        keep_asymmetric(replace(shapes, points=points).take([1]))
