"""The other poses of a symmetric shape: all of its group, nothing else, in the coordinates as given."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from registering import any_pose, box, can, distance, move

import dlc_reg

SIGNED = [
    np.array(signs)[:, None] * np.eye(3)[list(order)]
    for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    for signs in product([1.0, -1.0], repeat=3)
]
TURNS = [turn for turn in SIGNED if np.linalg.det(turn) > 0]  # the 24 of the cube


def group(size):
    """The (K, 4, 4) rotations that lay a box at the origin on itself."""
    found = [turn for turn in TURNS if np.allclose(np.abs(turn) @ np.asarray(size, float), size)]
    return [np.block([[turn, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]) for turn in found]


def angle_shaped(rng, count):
    """An L, without a symmetry."""
    long, short = box(rng, 2 * count // 3, (3, 1, 1)), box(rng, count // 3, (1, 1, 0.8))
    return np.concatenate([long, short + np.array([-1.0, 1.0, -0.1])])


@pytest.mark.parametrize(("size", "poses"), [((1, 2, 3), 4), ((1, 1, 2), 8), ((1, 1, 1), 24)])
def test_a_box_has_the_poses_of_its_group(size, poses):
    rng = np.random.default_rng(poses)
    source, applied = box(rng, 2000, size), any_pose(rng)
    r = dlc_reg.register(source, move(applied, box(rng, 2000, size)))
    assert r.verdict == "ambiguous" and r.equivalent_poses.shape == (poses - 1, 4, 4)
    truths = [applied @ turn for turn in group(size)]
    assert len(truths) == poses
    named = [
        int(np.argmin([distance(found, truth, source) for truth in truths]))
        for found in [r.transformation, *r.equivalent_poses]
    ]
    assert sorted(named) == list(range(poses))  # each of the group once
    for found, which in zip([r.transformation, *r.equivalent_poses], named, strict=True):
        assert distance(found, truths[which], source) < 0.05
    others = f"{poses - 1} other poses in equivalent_poses"
    assert sum(others in reason for reason in r.verdict_reasons) == 1
    assert np.allclose(json.loads(r.to_json())["equivalent_poses"], r.equivalent_poses)


def test_far_coordinates_and_scale():
    """In the coordinates as given, and with the scale that was found."""
    rng = np.random.default_rng(1)
    source, target = (box(rng, 2000, (1, 2, 3)) for _ in range(2))
    far = np.array([4e6, -2e6, 100.0])
    r = dlc_reg.register(source + far, target - far, voxel_size=0.1)
    assert len(r.equivalent_poses) == 3
    for pose in r.equivalent_poses:
        assert np.abs(pose @ [*far, 1.0] - [*-far, 1.0]).max() < 0.1
    scaled = dlc_reg.register(source, 2 * target, with_scaling=True)
    assert len(scaled.equivalent_poses) == 3
    assert np.allclose(np.cbrt(np.linalg.det(scaled.equivalent_poses[:, :3, :3])), 2, rtol=0.05)


@pytest.mark.parametrize("shape", [angle_shaped, can])
def test_none_where_there_is_none_or_a_motion_is_free(shape):
    """A can spins: that motion is named, and its poses are a continuum that no list holds."""
    rng = np.random.default_rng(0)
    r = dlc_reg.register(shape(rng, 3000), move(any_pose(rng), shape(rng, 3000)))
    assert r.equivalent_poses.shape == (0, 4, 4)
    assert any("spins about" in reason for reason in r.verdict_reasons) == (shape is can)
    assert (r.verdict == "ambiguous") == (shape is can)


def test_a_real_scan_has_none(thin_result):
    assert len(thin_result.equivalent_poses) == 0 and thin_result.verdict == "aligned"


def test_a_constraint_leaves_those_that_it_permits():
    """Upright, a box (1, 1, 2) has four poses; the turns about the other axes are not permitted."""
    rng = np.random.default_rng(0)
    source, target = (box(rng, 2000, (1, 1, 2)) for _ in range(2))
    down = [0.0, 0.0, -1.0]
    r = dlc_reg.register(source, target, dof="yaw+translation", source_gravity=down, target_gravity=down)
    assert r.verdict == "ambiguous" and len(r.equivalent_poses) == 3
    assert np.allclose(r.equivalent_poses[:, 2, :3], [0, 0, 1])
