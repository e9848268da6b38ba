"""Update rules on problems whose answers are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from dlc_reg.errors import InputError
from dlc_reg.iterate import SmallStep, Status, Termination, iterate
from dlc_reg.manifold import SE3, Euclidean, Sim3
from dlc_reg.updates import FixedPoint, GaussNewton, GradientDescent, LevenbergMarquardt, linearize


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Linear:
    """r = A omega - y."""

    def residual(self, omega, data):
        A, y = data
        return (A @ omega[..., None])[..., 0] - y


class Rosenbrock:
    """r = (10 (y - x^2), 1 - x): a bent valley with its floor at (1, 1)."""

    def residual(self, omega, data):
        x, y = omega.unbind(-1)
        return torch.stack([10 * (y - x**2), 1 - x], dim=-1)


class PointToPoint:
    """r = T p - q for matched points p, q (..., N, 3)."""

    def residual(self, omega, data):
        p, q = data
        return (p @ omega[..., :3, :3].mT + omega[..., None, :3, 3] - q).flatten(-2)


class PointToPlane:
    def residual(self, omega, data):
        p, q, normals = data
        return ((p @ omega[..., :3, :3].mT + omega[..., None, :3, 3] - q) * normals).sum(-1)


def matched(seed: int = 0, scale: float = 1.0):
    rotation = Rotation.from_rotvec([0.4, -0.3, 0.5])
    p = randn(50, 3, seed=seed)
    q = torch.from_numpy(scale * rotation.apply(p.numpy())) + torch.tensor([0.5, -1, 2]) + 0.01 * randn(50, 3, seed=7)
    return p, q


def test_gauss_newton_solves_a_linear_problem_in_one_step():
    A, y = randn(20, 4), randn(20, seed=1)
    solution = iterate(Linear(), GaussNewton(Euclidean(4)), randn(4, seed=2), (A, y), termination=Termination(1, None))
    expected = torch.linalg.lstsq(A, y[:, None]).solution[:, 0]
    torch.testing.assert_close(solution.omega, expected, rtol=1e-11, atol=1e-12)
    assert solution.value.item() == pytest.approx(0.5 * (A @ expected - y).square().sum().item(), rel=1e-12)


def test_linearize_is_that_of_the_analytic_jacobian():
    """Left update of T p: d(T p) / d xi = [-hat(T p), I] at xi = 0."""
    p, q = matched()
    omega = SE3().retract(SE3().identity((2,)), 0.3 * randn(2, 6))
    for chart in ("exp", "euler"):
        H, b, record = linearize(PointToPoint(), SE3(chart), omega, (p, q))
        for k in range(2):
            moved = (p @ omega[k, :3, :3].T + omega[k, :3, 3]).numpy()
            J = np.concatenate([np.hstack([np.cross(np.eye(3), -m), np.eye(3)]) for m in moved])
            r = (moved - q.numpy()).ravel()
            np.testing.assert_allclose(H[k], J.T @ J, rtol=1e-12, atol=1e-11)
            np.testing.assert_allclose(b[k], J.T @ r, rtol=1e-12, atol=1e-11)
            assert record["value"][k].item() == pytest.approx(0.5 * r @ r, rel=1e-12)


@pytest.mark.parametrize("update", [GaussNewton(SE3()), GaussNewton(SE3("euler")), LevenbergMarquardt(SE3())])
def test_point_to_point_is_scipys_closed_form(update):
    p, q = matched()
    solution = iterate(PointToPoint(), update, SE3().identity(), (p, q))
    centred_p, centred_q = (p - p.mean(0)).numpy(), (q - q.mean(0)).numpy()
    rotation, _ = Rotation.align_vectors(centred_q, centred_p)
    assert solution.status is Status.CONVERGED
    np.testing.assert_allclose(solution.omega[:3, :3], rotation.as_matrix(), atol=1e-8)
    shift = q.mean(0).numpy() - rotation.as_matrix() @ p.mean(0).numpy()
    np.testing.assert_allclose(solution.omega[:3, 3], shift, atol=1e-8)


def test_sim3_finds_the_scale():
    p, q = matched(scale=2.5)
    solution = iterate(PointToPoint(), LevenbergMarquardt(Sim3()), Sim3().identity(), (p, q))
    assert solution.status is Status.CONVERGED
    assert np.cbrt(np.linalg.det(solution.omega[:3, :3])) == pytest.approx(2.5, rel=5e-3)


def test_batched_is_each_alone():
    p, q = randn(4, 30, 3), randn(4, 30, 3, seed=1)
    start = SE3().retract(SE3().identity(), 0.5 * randn(4, 6, seed=2))
    for update in (GaussNewton(SE3()), LevenbergMarquardt(SE3()), LevenbergMarquardt(SE3(), damping=1e-12)):
        few = Termination(4, None)
        together = iterate(PointToPoint(), update, start, (p, q), termination=few)
        for k in range(4):
            alone = iterate(PointToPoint(), update, start[k], (p[k], q[k]), termination=few)
            torch.testing.assert_close(together.omega[k], alone.omega, rtol=1e-9, atol=1e-10)
            assert together.value[k].item() == pytest.approx(alone.value.item(), rel=1e-9)


def test_levenberg_marquardt_walks_rosenbrocks_valley_and_never_up():
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    solution = iterate(Rosenbrock(), LevenbergMarquardt(Euclidean(2)), start, None, termination=Termination(100))
    assert solution.status is Status.CONVERGED and solution.iterations < 40
    torch.testing.assert_close(solution.omega, torch.ones(2, dtype=torch.float64), rtol=1e-8, atol=0)
    values = [r["value"] for r in solution.history]
    assert all(b <= a for a, b in pairwise(values))
    undamped = iterate(Rosenbrock(), GaussNewton(Euclidean(2)), start, None, termination=Termination(1, None))
    assert undamped.value > 10 * values[0]  # where Gauss-Newton's first step climbs the wall


def test_levenberg_marquardt_recovers_from_far_too_little_damping():
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    rule = LevenbergMarquardt(Euclidean(2), damping=1e-12)
    solution = iterate(Rosenbrock(), rule, start, None, termination=Termination(100))
    torch.testing.assert_close(solution.omega, torch.ones(2, dtype=torch.float64), rtol=1e-8, atol=0)


def test_levenberg_marquardt_agrees_with_scipy_on_a_misfit():
    """Exponential decay through noisy samples: the minimum has a residual."""
    t = torch.linspace(0, 3, 20, dtype=torch.float64)
    y = 2 * torch.exp(-1.3 * t) + 0.05 * randn(20)

    class Decay:
        def residual(self, omega, data):
            return omega[..., :1] * torch.exp(-omega[..., 1:] * t) - y

    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    solution = iterate(Decay(), LevenbergMarquardt(Euclidean(2)), start, None, termination=Termination(100))
    theirs = least_squares(lambda x: Decay().residual(torch.from_numpy(x), None).numpy(), start.numpy(), xtol=1e-12)
    np.testing.assert_allclose(solution.omega, theirs.x, rtol=1e-5)
    assert solution.value.item() == pytest.approx(theirs.cost, rel=1e-9)


def test_levenberg_marquardt_stops_at_the_minimum():
    A, y = randn(20, 4), randn(20, seed=1)
    best = torch.linalg.lstsq(A, y[:, None]).solution[:, 0]
    calls = []

    class Counted(Linear):
        def residual(self, omega, data):
            calls.append(omega)
            return super().residual(omega, data)

    solution = iterate(Counted(), LevenbergMarquardt(Euclidean(4)), best, (A, y), termination=Termination(10, None))
    assert solution.status is Status.CONVERGED and len(calls) <= 6  # it does not try ever smaller steps in vain
    torch.testing.assert_close(solution.omega, best, rtol=1e-9, atol=1e-12)


def test_gradient_descent_moves_down_the_gradient():
    A, y = randn(20, 4), randn(20, seed=1)

    class Value(Linear):
        def value(self, omega, data):
            return 0.5 * self.residual(omega, data).square().sum(-1)

    start = randn(3, 4, seed=2)
    one = iterate(Value(), GradientDescent(Euclidean(4), 1e-3), start, (A, y), termination=Termination(1, None))
    expected = start - 1e-3 * (start @ A.T - y) @ A
    torch.testing.assert_close(one.omega, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(one.history[1]["step_norm"], (expected - start).norm(dim=-1))
    patient = Termination(3000, SmallStep(1e-9))
    many = iterate(Value(), GradientDescent(Euclidean(4), 0.03), start[0], (A, y), termination=patient)
    assert many.status is Status.CONVERGED
    torch.testing.assert_close(many.omega, torch.linalg.lstsq(A, y[:, None]).solution[:, 0], rtol=0, atol=1e-7)


def test_gradient_descent_on_a_pose():
    p, q = matched()

    class Value(PointToPoint):
        def value(self, omega, data):
            return 0.5 * self.residual(omega, data).square().mean(-1)

    solution = iterate(Value(), GradientDescent(SE3(), 0.5), SE3().identity(), (p, q), termination=Termination(500))
    closed = iterate(PointToPoint(), GaussNewton(SE3()), SE3().identity(), (p, q))
    torch.testing.assert_close(solution.omega, closed.omega, rtol=0, atol=1e-3)


def test_a_value_without_gradient_is_refused_not_taken_for_a_minimum():
    class Detached:
        def value(self, omega, data):
            return omega.detach().sum()

    with pytest.raises(InputError, match="Detached, whose value has no gradient"):
        iterate(Detached(), GradientDescent(Euclidean(2), 0.1), randn(2), None)
    with pytest.raises(InputError, match="`linearize` or `residual`"):
        iterate(Detached(), GaussNewton(Euclidean(2)), randn(2), None)


# --- directions that nothing holds ---


def plane_data(rotation: np.ndarray, offset: np.ndarray):
    """Points on a plane, whose normal is the rotation's third column: it slides along two directions and spins."""
    flat = torch.cat([randn(100, 2), torch.zeros(100, 1, dtype=torch.float64)], dim=1).numpy()
    q = torch.from_numpy(flat @ rotation.T + offset)
    normals = torch.from_numpy(rotation[:, 2].copy()).expand(100, 3)
    return q + 0.05 * normals, q, normals


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("rotation", [np.eye(3), Rotation.from_rotvec([0.3, 0.8, -0.4]).as_matrix()])
def test_a_plane_is_reported_as_singular_in_any_unit(rotation, unit):
    p, q, n = plane_data(rotation, np.array([1.0, -2.0, 0.5]))
    data = (unit * p, unit * q, n)
    start = SE3().identity()
    solution = iterate(PointToPlane(), GaussNewton(SE3()), start, data)
    assert solution.status is Status.SINGULAR and torch.equal(solution.omega, start)
    free = solution.history[-1]["free_direction"]
    assert free.norm().item() == pytest.approx(1, abs=1e-12)
    H, _, _ = linearize(PointToPlane(), SE3(), start, data)
    typical = (free.square() * H.diagonal()).sum()  # what it would cost if the entries did not cancel
    assert (free @ H @ free).item() <= 1e-9 * max(typical.item(), H.diagonal().amax().item() * 1e-9)


def test_levenberg_marquardt_moves_along_what_is_held():
    p, q, n = plane_data(Rotation.from_rotvec([0.3, 0.8, -0.4]).as_matrix(), np.zeros(3))
    solution = iterate(PointToPlane(), LevenbergMarquardt(SE3()), SE3().identity(), (p, q, n))
    assert solution.status is Status.CONVERGED and solution.value.item() < 1e-20
    moved = p @ solution.omega[:3, :3].T + solution.omega[:3, 3]
    assert ((moved - q) * n).sum(-1).abs().max() < 1e-9
    assert (moved - p).norm(dim=-1).max() < 0.2  # the free directions are not run away along


def test_a_well_held_problem_in_extreme_units_is_not_singular():
    """Metres at 1e3 and at 1e-3: Jacobians in rotation and translation differ by a million in the squares."""
    for unit in (1e-3, 1e3):
        p, q = matched()
        solution = iterate(PointToPoint(), GaussNewton(SE3()), SE3().identity(), (unit * p, unit * q))
        assert solution.status is Status.CONVERGED


def test_singular_elements_of_a_batch_stay_and_the_others_go_on():
    A = randn(3, 10, 2)
    A[1, :, 1] = 2 * A[1, :, 0]
    y, start = randn(3, 10, seed=1), randn(3, 2, seed=2)
    A.requires_grad_()
    solution = iterate(
        Linear(), GaussNewton(Euclidean(2)), start, (A, y), termination=Termination(1, None), differentiate="unroll"
    )
    record = solution.history[-1]
    assert record["singular"].tolist() == [False, True, False]
    assert torch.equal(solution.omega[1], start[1])
    torch.testing.assert_close(record["free_direction"][1].abs(), torch.tensor([2.0, 1.0]).double() / 5**0.5)
    for k in (0, 2):
        expected = torch.linalg.lstsq(A[k].detach(), y[k, :, None]).solution[:, 0]
        torch.testing.assert_close(solution.omega[k].detach(), expected, rtol=1e-9, atol=1e-10)
    (gradient,) = torch.autograd.grad(solution.omega.sum(), A)
    assert torch.isfinite(gradient).all() and not gradient[1].any() and gradient[0].any()


@pytest.mark.parametrize("rounding", [1e-20, 1e-17, 1e-15])
def test_a_column_of_rounding_is_not_information(rounding):
    A = randn(20, 3)
    A[:, 1] *= rounding
    solution = iterate(Linear(), GaussNewton(Euclidean(3)), randn(3, seed=1), (A, randn(20, seed=2)))
    assert solution.status is Status.SINGULAR
    direction = solution.history[-1]["free_direction"]
    torch.testing.assert_close(direction.abs(), torch.tensor([0.0, 1.0, 0.0]).double(), rtol=0, atol=1e-9)


def test_no_information_at_all_is_singular():
    class Blind:
        def residual(self, omega, data):
            return 0 * omega[..., :1] + 3

    solution = iterate(Blind(), GaussNewton(Euclidean(3)), randn(3), None)
    assert solution.status is Status.SINGULAR and solution.iterations == 1


def test_an_objectives_own_linearization_is_used():
    class Own:
        def linearize(self, omega, data):
            record = {"value": 0.5 * (omega - data).square().sum(-1), "note": "mine"}
            return torch.eye(3, dtype=torch.float64), omega - data, record

    solution = iterate(Own(), GaussNewton(Euclidean(3)), randn(3), randn(3, seed=1))
    torch.testing.assert_close(solution.omega, randn(3, seed=1))
    assert solution.history[1]["note"] == "mine"


def test_fixed_point_of_expectation_maximisation_never_rises():
    """Two Gaussians of unit variance: the objective's own step is one EM update of the means."""
    x = torch.cat([randn(200) - 3, randn(100, seed=1) + 2])[:, None]

    class Mixture:
        def value(self, omega, data):
            return -torch.logsumexp(-0.5 * (data - omega).square(), dim=-1).mean()

        def step(self, omega, data):
            share = torch.softmax(-0.5 * (data - omega).square(), dim=-1)
            return (share * data).sum(0) / share.sum(0)

    solution = iterate(Mixture(), FixedPoint(), torch.tensor([-0.1, 0.1]).double(), x, termination=Termination(200))
    values = [r["value"] for r in solution.history]
    assert solution.status is Status.CONVERGED and all(b <= a + 1e-15 for a, b in pairwise(values))
    torch.testing.assert_close(solution.omega, torch.tensor([-3.0, 2.0]).double(), rtol=0, atol=0.3)
