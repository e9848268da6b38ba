"""What must hold of `register` whatever the clouds: neither frame, order, unit nor side of the pair matters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from registering import any_pose, distance, move, scaling, thin

import dlc_reg

FEW = settings(max_examples=6)
SEEDS = st.integers(0, 2**32 - 1)
COUNT = 1500
SAME = 1e-3  # of the extent: another frame or order rounds and thins differently


@pytest.fixture(scope="module")
def pair(bunny_pair):
    return thin(bunny_pair.source, COUNT), thin(bunny_pair.target, COUNT)


@pytest.fixture(scope="module")
def found(pair):
    r = dlc_reg.register(*pair)
    assert r.verdict == "aligned"
    return r


@FEW
@given(seed=SEEDS, shift=st.sampled_from([0.0, 1.0, 1e4]))
@example(seed=0, shift=1e7)
def test_moving_the_source_moves_the_answer(pair, found, seed, shift):
    """register(G s, t) = T G^-1."""
    source, target = pair
    applied = any_pose(np.random.default_rng(seed), shift)
    r = dlc_reg.register(move(applied, source), target)
    assert distance(r.transformation @ applied, found.transformation, source) < SAME
    assert r.verdict == "aligned" and abs(r.fitness - found.fitness) < 0.01


@FEW
@given(seed=SEEDS, shift=st.sampled_from([0.0, 1.0, 1e4]))
def test_moving_the_target_moves_the_answer(pair, found, seed, shift):
    """register(s, G t) = G T."""
    source, target = pair
    applied = any_pose(np.random.default_rng(seed), shift)
    r = dlc_reg.register(source, move(applied, target))
    assert distance(np.linalg.inv(applied) @ r.transformation, found.transformation, source) < SAME
    assert r.verdict == "aligned"


@FEW
@given(seed=SEEDS)
def test_the_order_of_points_does_not_matter(pair, found, seed):
    rng = np.random.default_rng(seed)
    source, target = (rng.permutation(points) for points in pair)
    r = dlc_reg.register(source, target)
    assert distance(r.transformation, found.transformation, source) < SAME
    assert r.verdict == "aligned" and abs(r.fitness - found.fitness) < 0.01


@FEW
@given(power=st.integers(-9, 9))
def test_the_unit_does_not_matter(pair, found, power):
    source, target = pair
    unit = 10.0**power
    r = dlc_reg.register(unit * source, unit * target)
    assert distance(scaling(1 / unit) @ r.transformation @ scaling(unit), found.transformation, source) < SAME
    assert r.inlier_rmse == pytest.approx(unit * found.inlier_rmse, rel=0.01)
    assert r.verdict == "aligned"


@FEW
@given(seed=SEEDS)
def test_the_way_back_is_the_inverse(pair, found, seed):
    """Up to the noise: a refinement that minimises over the other cloud's surface is a different sum."""
    source, target = pair
    applied = any_pose(np.random.default_rng(seed))
    r = dlc_reg.register(target, move(applied, source))
    assert distance(np.linalg.inv(r.transformation) @ applied, found.transformation, source) < 5 * SAME
    assert r.verdict == "aligned"


@FEW
@given(seed=SEEDS, power=st.integers(-4, 4))
def test_similar_clouds(pair, found, seed, power):
    """With a scale: register(c G s, t) = T G^-1 / c."""
    source, target = pair
    applied = scaling(10.0**power) @ any_pose(np.random.default_rng(seed))
    r = dlc_reg.register(move(applied, source), target, with_scaling=True)
    assert r.verdict == "aligned"
    assert distance(r.transformation @ applied, found.transformation, source) < 20 * SAME


@FEW
@given(seed=SEEDS, size=st.integers(3, 60))
def test_any_handful_of_points_gets_an_answer(seed, size):
    """Too few points to know anything: a rigid pose and no trust, whatever they are."""
    rng = np.random.default_rng(seed)
    r = dlc_reg.register(rng.normal(size=(size, 3)), rng.normal(size=(size + 2, 3)))
    rotation = r.transformation[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) > 0 and np.isfinite(r.transformation).all()
    assert r.verdict != "aligned" and 0 <= r.fitness <= 1 and r.verdict_reasons
