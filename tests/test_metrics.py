"""Metrics against worked examples and against what they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dlc_reg.errors import InputError
from dlc_reg.metrics import euler_errors, modified_chamfer, recall, redwood_rmse, rotation_error, translation_error


def pose(rotvec, translation=(0, 0, 0)):
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_rotvec(rotvec).as_matrix(), translation
    return T


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 0.5, math.pi / 2, 3.0, math.pi - 1e-9, math.pi])
def test_rotation_error_has_all_digits(angle):
    truth = pose([0.3, -0.2, 0.9], [1, 2, 3])
    estimate = truth @ pose(np.array([0.6, 0.0, 0.8]) * angle)
    assert rotation_error(estimate, truth).item() == pytest.approx(angle, abs=1e-15, rel=1e-6)


def test_errors_are_batched():
    truths = np.stack([pose([0, 0, 0]), pose([0, 0, 1], [1, 0, 0])])
    estimates = torch.from_numpy(np.stack([pose([0, 0.5, 0], [3, 4, 0]), pose([0, 0, -1], [1, 0, 2])]))
    torch.testing.assert_close(rotation_error(estimates, truths), torch.tensor([0.5, 2.0], dtype=torch.float64))
    torch.testing.assert_close(translation_error(estimates, truths), torch.tensor([5.0, 2.0], dtype=torch.float64))
    inverse = np.linalg.inv(truths) @ estimates.numpy()
    np.testing.assert_allclose(translation_error(estimates, truths), np.linalg.norm(inverse[:, :3, 3], axis=1))


def turned(x, y, z, translation=(0, 0, 0)):
    """Rx Ry Rz of angles in degrees, as DCP builds it."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("zyx", [z, y, x], degrees=True).as_matrix()
    T[:3, 3] = translation
    return T


def test_euler_errors_of_a_worked_example():
    """Of six angles two are wrong, by 3 and 4 degrees; of six coordinates three, by 0.1, 0.2 and 0.2."""
    truths = np.stack([turned(10, 20, 30, [0.5, 0, 0]), turned(40, 5, 15)])
    estimates = np.stack([turned(13, 16, 30, [0.6, 0.2, -0.2]), truths[1]])
    expected = (math.sqrt((9 + 16) / 6), 7 / 6, math.sqrt(0.09 / 6), 0.5 / 6)
    assert euler_errors(estimates, truths) == pytest.approx(expected, rel=1e-9)
    inverses = np.linalg.inv(estimates), np.linalg.inv(truths)  # RPM-Net's angles are those of the inverse, negated
    assert euler_errors(*inverses, sequence="xyz")[:2] == pytest.approx(expected[:2], rel=1e-9)
    assert euler_errors(*inverses)[:2] != pytest.approx(expected[:2], rel=1e-2)
    assert euler_errors(truths[0], truths).rotation_mae_deg == pytest.approx((30 + 15 + 15) / 6)


def test_euler_angles_are_subtracted_as_they_are():
    assert euler_errors(turned(0, 0, 179), turned(0, 0, -179)).rotation_mae_deg == pytest.approx(358 / 3)


@pytest.mark.parametrize("sequence", ["zyx", "xyz"])
@pytest.mark.filterwarnings("ignore:Gimbal lock")
def test_euler_angles_are_scipys(sequence):
    locked = Rotation.from_euler(sequence, [[a, b, 30] for a in (20, -70, 110) for b in (90, -90)], degrees=True)
    rotations = np.concatenate([Rotation.random(200, random_state=1).as_matrix(), locked.as_matrix()])
    for rotation in rotations:
        T = np.eye(4)
        T[:3, :3] = rotation
        expected = np.abs(Rotation.from_matrix(rotation).as_euler(sequence, degrees=True)).mean()
        assert euler_errors(T, np.eye(4), sequence).rotation_mae_deg == pytest.approx(expected, abs=1e-9)


def test_modified_chamfer_of_a_worked_example():
    """The estimate is 0.1 too high. Source: both points 0.1 off. Target: 0.1 below and 0.2 above the clean source."""
    clean = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    truth, estimate = pose([0, 0, 0], [1, 0, 0]), pose([0, 0, 0], [1, 0, 0.1])
    source, target = np.array([[-1.0, 0, 0], [0, 0, 0]]), np.array([[0, 1, 0], [0, 1, 0.3]])
    value = modified_chamfer(estimate, truth, source, target, clean).item()
    assert value == pytest.approx(0.01 + (0.01 + 0.04) / 2, rel=1e-6)
    assert modified_chamfer(truth, truth, source, clean, clean).item() == pytest.approx(0, abs=1e-12)


def test_modified_chamfer_against_the_formula(rng):
    shape = rng.normal(size=(60, 3))  # in the target's frame
    truth, estimate = pose([0.4, -1.0, 0.3], [0.2, 0.1, -0.5]), pose([0.3, -1.1, 0.3], [0.25, 0.1, -0.4])
    there = np.linalg.inv(truth)
    source, target = shape[:40] @ there[:3, :3].T + there[:3, 3], shape[20:] + 0.02 * rng.normal(size=(40, 3))
    moved = source @ estimate[:3, :3].T + estimate[:3, 3]
    both = estimate @ there
    clean_source = shape @ both[:3, :3].T + both[:3, 3]
    squared = [((a[:, None] - b) ** 2).sum(-1).min(1).mean() for a, b in ((moved, shape), (target, clean_source))]
    value = modified_chamfer(estimate, truth, source.astype(np.float32), target, torch.from_numpy(shape))
    assert value.item() == pytest.approx(sum(squared), rel=1e-5)


def test_redwood_rmse_is_the_distance_of_true_correspondences(rng):
    points = rng.normal([0, 0, 2], 1, size=(500, 3))
    rows = [np.hstack([np.eye(3), -2 * np.cross(np.eye(3), p)]) for p in points]  # d(R p + t) = t + 2 q x p
    information = sum(g.T @ g for g in rows)
    truth = pose([0.5, 1.0, -2.0], [0.3, 0.1, -0.7])
    estimate = truth @ pose([0.01, -0.02, 0.015], [0.02, 0.01, -0.03])
    moved = np.c_[points, np.ones(500)] @ (estimate - truth).T
    rmse = np.sqrt((moved[:, :3] ** 2).sum(1).mean())
    assert redwood_rmse(estimate, truth, information).item() == pytest.approx(rmse, rel=0.02)
    assert redwood_rmse(truth, truth, information).item() == pytest.approx(0, abs=1e-12)
    shift = truth @ pose([0, 0, 0], [0.1, 0.0, 0.0])
    assert redwood_rmse(shift, truth, information).item() == pytest.approx(0.1, rel=1e-12)
    half_turn = truth @ pose([math.pi, 0, 0])
    expected = np.sqrt(information[3, 3] / information[0, 0])  # |q| = sin(pi / 2)
    assert redwood_rmse(half_turn, truth, information).item() == pytest.approx(expected, rel=1e-12)


def test_recall():
    assert recall([1.0, 3.0, math.nan, 5.0], 4.0).item() == 0.5
    assert recall([1.0, 3.0, 5.0, 4.0], [1.0, 4.0, 6.0]).tolist() == [0.0, 0.5, 1.0]  # strictly below
    both = np.array([[1.0, 0.1], [1.0, 0.5], [20.0, 0.1], [2.0, 0.2]])
    assert recall(both, [15.0, 0.3]).item() == 0.5
    assert recall(both, [[15.0, 0.3], [30.0, 1.0]]).tolist() == [0.5, 1.0]


def test_bad_shapes_are_named():
    with pytest.raises(InputError, match="estimate"):
        rotation_error(np.eye(3), np.eye(4))
    with pytest.raises(InputError, match="information"):
        redwood_rmse(np.eye(4), np.eye(4), np.eye(4))
    with pytest.raises(InputError, match="errors"):
        recall([], 1.0)
    with pytest.raises(InputError, match="sequence"):
        euler_errors(np.eye(4), np.eye(4), "XYZ")
    with pytest.raises(InputError, match="at least one pose"):
        euler_errors(np.zeros((0, 4, 4)), np.eye(4))
    with pytest.raises(InputError, match="one"):
        modified_chamfer(np.stack([np.eye(4)] * 2), np.eye(4), np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 3)))
