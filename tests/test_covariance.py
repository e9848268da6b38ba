"""The covariance against repeated registrations of independent samples; the long form is tools/check_covariance.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tools")]

from check_covariance import SHAPES, Scatter, halves, scatter  # noqa: E402

TRIALS = 40  # the mean normalised error then scatters by 9%, a ratio by 11%


def check(found, textbook, most=1.5, within=0.8):
    """Right within a factor of 1.7 a degree of freedom; the textbook's normalised error is `textbook` times too big."""
    assert len(found.errors) == len(found.normalised) == TRIALS
    assert (found.ratios > 0.5).all() and (found.ratios < 1.7).all(), found.ratios
    assert 0.4 < found.normalised.mean() / 6 < most
    assert found.textbook.mean() / 6 > textbook
    assert found.within > within


@pytest.mark.parametrize(("noise", "textbook"), [(0.1, 1.3), (1.5, 6.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_scatter_as_the_covariance_says(shape, noise, textbook):
    """Noise of 0.1 spacings: target points are shared. Of 1.5: nearest neighbours follow the pose as well."""
    check(scatter(SHAPES[shape], 1500, noise, TRIALS, method="point_to_plane", seed=3), textbook)


@pytest.mark.parametrize(
    ("method", "most", "within"),
    [
        ("point_to_point", 1.5, 0.8),
        ("symmetric", 1.5, 0.8),
        ("generalized", 2.2, 0.6),  # the noise turns the normals of both its clouds: it stays over-confident
    ],
)
def test_every_objective_has_its_own(method, most, within):
    check(scatter(SHAPES["room"], 1500, 0.5, TRIALS, method=method, seed=4), 2.0, most, within)


def test_halves_of_a_scan(bunny_pair):
    check(scatter(halves(bunny_pair.target), 1500, 0.5, TRIALS, method="point_to_plane", seed=5), 2.0)


def test_a_covariance_that_is_too_small_is_found_out():
    """The measure itself: a hundredth of a right covariance has ten times the ratios."""
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(400, 6))
    right = Scatter(errors, np.tile(np.eye(6), (400, 1, 1)), np.ones(400))
    small = Scatter(errors, np.tile(0.01 * np.eye(6), (400, 1, 1)), np.ones(400))
    assert np.allclose(right.ratios, 1, atol=0.15) and np.allclose(small.ratios, 10 * right.ratios)
    assert right.within > 0.9 and small.within < 0.1
    assert abs(right.normalised.mean() / 6 - 1) < 0.1
