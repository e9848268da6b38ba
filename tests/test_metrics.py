"""Metrics against worked examples and against what they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dlc_reg.errors import InputError
from dlc_reg.metrics import recall, redwood_rmse, rotation_error, translation_error


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
