"""Optimal transport with slack as an energy of the pose, against solvers and closed forms that are not ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from dlc_reg.manifold import SE3
from dlc_reg.networks.neighbours import ABSENT
from dlc_reg.registration.assignment import Assignment
from dlc_reg.registration.learned.transport import Transport


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    torch.manual_seed(0)


def problem(n: int, m: int, batch: int = 1, sharpness: float = 3.0, affinity: float = 1.0, dtype=torch.float64):
    source, target = torch.randn(batch, n, 3), torch.randn(batch, m, 3)
    return Assignment(
        source.to(dtype), target.to(dtype), (affinity * torch.rand(batch, n, m)).to(dtype),
        torch.full((batch,), sharpness, dtype=dtype), None,
        torch.full((batch, n), 1 / n, dtype=dtype), torch.full((batch, m), 1 / m, dtype=dtype),
    )  # fmt: skip


def poses(*lead: int, dtype=torch.float64) -> torch.Tensor:
    return SE3().retract(torch.eye(4, dtype=dtype), 0.5 * torch.randn(*lead, 6, dtype=dtype))


def logits(omega, data) -> np.ndarray:
    moved = data.source[0].numpy() @ omega[0, :3, :3].numpy().T + omega[0, :3, 3].numpy()
    squared = ((moved[:, None] - data.target[0].numpy()) ** 2).sum(-1)
    return data.affinity[0].numpy() - data.sharpness[0].item() * squared


def free_energy(flat: np.ndarray, values: np.ndarray) -> float:
    """The bracket of the module's first equation."""
    P = flat.reshape(values.shape)
    h = [x * (np.log(np.maximum(x, 1e-300)) - 1) for x in (P, 1 - P.sum(1), 1 - P.sum(0))]
    return h[0].sum() - (P * values).sum() + h[1].sum() + h[2].sum()


@pytest.mark.parametrize("affinity", [0.5, 3.0])
def test_the_value_is_scipys_minimum_over_matchings(affinity):
    data, omega = problem(3, 4, affinity=affinity, sharpness=0.5), poses(1)
    values = logits(omega, data)
    sums = [np.kron(np.eye(3), np.ones(4)), np.kron(np.ones(3), np.eye(4))]
    inside = [{"type": "ineq", "fun": lambda x, A=A: 1 - 1e-9 - A @ x} for A in sums]
    best = minimize(
        free_energy, np.full(12, 0.1), (values,), method="SLSQP", bounds=[(1e-12, 1)] * 12, constraints=inside,
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    transport = Transport(rounds=1000)
    assert transport.value(omega, data).item() == pytest.approx(1 + best.fun / 7, abs=1e-7)
    np.testing.assert_allclose(transport.responsibilities(omega, data)[0], best.x.reshape(3, 4), atol=1e-4)


def test_one_pair_is_a_quadratic_equation():
    """u = v, u + K u^2 = 1 and P = K u^2."""
    data, omega = problem(1, 1, sharpness=0.1), poses(1)
    K = np.exp(logits(omega, data))[0, 0]
    u = (np.sqrt(1 + 4 * K) - 1) / (2 * K)
    assert Transport().responsibilities(omega, data).item() == pytest.approx(K * u * u, rel=1e-9)
    expected = 1 + (2 * np.log(u) - 2 * u - K * u * u) / 2
    assert Transport().value(omega, data).item() == pytest.approx(expected, rel=1e-9)


def test_slack_takes_what_is_not_matched():
    """Rows and columns of P and the slack sum to one; nothing is matched where nothing is near, and E is 0 there."""
    data, omega = problem(20, 30, sharpness=5.0), poses(1)
    P = Transport(rounds=1000).responsibilities(omega, data)[0]
    kernel = torch.from_numpy(np.exp(logits(omega, data)))
    u, v = 1 - P.sum(1), 1 - P.sum(0)
    assert (P >= 0).all() and (u > 0).all() and (v > 0).all()
    torch.testing.assert_close(P, u[:, None] * kernel * v, rtol=1e-4, atol=1e-8)
    away = omega.clone()
    away[:, :3, 3] += 100
    assert Transport().value(away, data).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sharpness", [1.0, 30.0, 300.0])
def test_the_step_never_raises_it(sharpness, dtype):
    """Beyond rounding, which in float32 is some 1e-8 of the sharpness: squared distances are good to 1e-6."""
    data = problem(40, 50, 3, sharpness, affinity=4.0, dtype=dtype)
    transport, omega = Transport(), poses(5, 3, dtype=dtype)
    values = [transport.value(omega, data)]
    for _ in range(12):
        omega = transport.step(omega, data)
        values.append(transport.value(omega, data))
    values = torch.stack(values)
    rounding = 3e-6 * values.abs().max() + 1e-8 * sharpness if dtype == torch.float32 else 1e-9
    assert (values[1:] - values[:-1]).max() <= rounding
    assert (values[-1] < values[0] - 1e-3).all()


def test_the_step_is_the_best_pose_for_the_matching():
    """Weighted Kabsch by SciPy, over all pairs."""
    data, omega = problem(8, 9), poses(1)
    P = Transport().responsibilities(omega, data)[0].numpy().ravel()
    p = np.repeat(data.source[0].numpy(), 9, 0)
    q = np.tile(data.target[0].numpy(), (8, 1))
    mean_p, mean_q = (P[:, None] * p).sum(0) / P.sum(), (P[:, None] * q).sum(0) / P.sum()
    rotation, _ = Rotation.align_vectors(q - mean_q, p - mean_p, P)
    found = Transport().step(omega, data)[0]
    np.testing.assert_allclose(found[:3, :3], rotation.as_matrix(), atol=1e-6)
    np.testing.assert_allclose(found[:3, 3], mean_q - rotation.as_matrix() @ mean_p, atol=1e-6)


def test_gradients_of_value_and_step_are_those_of_finite_differences():
    """The step's too, although only the last rounds are differentiated: with slack they forget the first ones."""
    data, omega, step = problem(6, 7, sharpness=1.0), poses(1), 1e-6
    transport = Transport(rounds=1000, unrolled=30)
    along = torch.randn_like(data.affinity)
    for function in (transport.value, lambda o, d: transport.step(o, d)[:, :3].sum()):
        affinity = data.affinity.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(omega, data._replace(affinity=affinity)).sum(), affinity)
        ends = [function(omega, data._replace(affinity=data.affinity + s * step * along)).sum() for s in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope.abs() > 1e-3
        torch.testing.assert_close((gradient * along).sum(), slope, rtol=1e-4, atol=1e-7)


def test_padding_and_lead_dimensions():
    data, omega = problem(6, 7, 2), poses(4, 2)
    wide = data._replace(
        source=torch.cat([data.source, torch.zeros(2, 3, 3)], 1).double(),
        affinity=torch.cat([data.affinity, torch.full((2, 3, 7), ABSENT).double()], 1),
        source_weight=torch.cat([data.source_weight, torch.zeros(2, 3)], 1).double(),
    )
    transport = Transport(rounds=1000)
    torch.testing.assert_close(transport.value(omega, wide), transport.value(omega, data))
    torch.testing.assert_close(transport.step(omega, wide), transport.step(omega, data))
    one = torch.stack([transport.value(o, data) for o in omega])
    torch.testing.assert_close(transport.value(omega, data), one, rtol=1e-6, atol=1e-8)
