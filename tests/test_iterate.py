"""The loop: what it records, when it stops, what it returns then, and its gradients."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from dlc_reg.errors import InputError
from dlc_reg.iterate import AnyOf, Settled, SmallStep, Solution, Status, Termination, iterate
from dlc_reg.manifold import Euclidean
from dlc_reg.updates import FixedPoint, GaussNewton, GradientDescent

ALL = Termination(max_iterations=5, converged=None)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Halving:
    """omega <- omega / 2 + data / 2, which settles at data."""

    def value(self, omega, data):
        return (omega - data).square().sum(-1)

    def step(self, omega, data):
        return (omega + data) / 2


@dataclass
class Scripted:
    """An update rule that moves by 1 a step and reports what it is told to."""

    reports: dict[int, dict[str, Any]] = field(default_factory=dict)

    def init(self, objective, omega, data):
        return 0, {"value": torch.tensor(0.0), **self.reports.get(0, {})}

    def step(self, objective, omega, data, state):
        record = {"value": torch.tensor(float(state + 1)), **self.reports.get(state + 1, {})}
        return omega + 1, state + 1, record


def test_history_is_the_start_and_one_record_a_step():
    solution = iterate(Halving(), FixedPoint(), vector(8.0), vector(0.0), termination=ALL)
    assert solution.iterations == 5 and solution.status is Status.MAX_ITERATIONS
    assert [r["iteration"] for r in solution.history] == [0, 1, 2, 3, 4, 5]
    assert [r["value"] for r in solution.history] == [64.0, 16.0, 4.0, 1.0, 0.25, 0.0625]
    assert [r["step_norm"] for r in solution.history[1:]] == [4.0, 2.0, 1.0, 0.5, 0.25]
    assert solution.omega.item() == 0.25 and solution.value.item() == 0.0625
    assert json.loads(json.dumps(solution.history))[2]["value"] == 4.0  # plain numbers


def test_no_iterations_return_the_start():
    solution = iterate(Halving(), FixedPoint(), vector(8.0), vector(0.0), termination=Termination(max_iterations=0))
    assert solution.omega.item() == 8 and solution.iterations == 0 and len(solution.history) == 1
    assert solution.status is Status.MAX_ITERATIONS


def test_callback_sees_every_record_and_stops():
    seen = []

    def callback(record):
        seen.append(record)
        return record["iteration"] == 2

    solution = iterate(Halving(), FixedPoint(), vector(8.0), vector(0.0), termination=ALL, callback=callback)
    assert solution.status is Status.STOPPED and solution.iterations == 2 and solution.omega.item() == 2
    assert seen == solution.history
    at_once = iterate(Halving(), FixedPoint(), vector(8.0), vector(0.0), callback=lambda record: True)
    assert at_once.status is Status.STOPPED and at_once.omega.item() == 8


@pytest.mark.parametrize("status", [Status.NO_CORRESPONDENCES, Status.SINGULAR, Status.DIVERGED])
def test_a_failed_step_is_recorded_but_not_taken(status):
    solution = iterate(None, Scripted({3: {"status": status, "why": "planted"}}), vector(0.0), None, termination=ALL)
    assert solution.status is status and solution.status.failed
    assert solution.omega.item() == 2 and solution.value.item() == 2 and solution.iterations == 3
    assert solution.history[-1] == {"iteration": 3, "value": 3.0, "status": status, "why": "planted"}


def test_a_rule_can_say_that_it_converged_and_its_step_counts():
    solution = iterate(None, Scripted({3: {"status": Status.CONVERGED}}), vector(0.0), None, termination=ALL)
    assert solution.status is Status.CONVERGED and solution.omega.item() == 3 and solution.value.item() == 3


def test_a_failure_at_the_start_leaves_the_start():
    rule = Scripted({0: {"status": Status.NO_CORRESPONDENCES}})
    solution = iterate(None, rule, vector(7.0), None, termination=ALL)
    assert solution.status is Status.NO_CORRESPONDENCES and solution.omega.item() == 7 and solution.iterations == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_keeps_the_last_finite_prediction(bad):
    solution = iterate(None, Scripted({2: {"value": torch.tensor(bad)}}), vector(0.0), None, termination=ALL)
    assert solution.status is Status.DIVERGED and solution.omega.item() == 1 and solution.value.item() == 1
    growing = iterate(
        Halving(), GradientDescent(Euclidean(1), 1e200), vector(1.0), vector(0.0), termination=Termination(50)
    )
    assert growing.status is Status.DIVERGED and torch.isfinite(growing.omega).all()


def test_criteria():
    before, after = {"fitness": 0.5, "rmse": 1.0}, {"fitness": 0.5, "rmse": 1.0 + 1e-7}
    assert Settled({"fitness": 1e-6, "rmse": 1e-6})(before, after)
    assert not Settled({"fitness": 1e-6, "rmse": 1e-8})(before, after)
    assert not Settled({"fitness": 0.0})(before, after)  # Open3D's comparison is strict: 0 never stops
    assert Settled({"rmse": 2e-7}, relative=True)({"rmse": 1e3}, {"rmse": 1e3 + 1e-4})
    assert not Settled({"rmse": 2e-7})({"rmse": 1e3}, {"rmse": 1e3 + 1e-4})
    assert Settled({"value": 1e-6}, relative=True)({"value": 0.0}, {"value": 0.0})
    batch = {"value": vector(1.0, 2.0)}
    assert Settled({"value": 0.1})(batch, {"value": vector(1.05, 2.05)})
    assert not Settled({"value": 0.1})(batch, {"value": vector(1.05, 2.5)})  # all have to settle
    assert SmallStep(0.1)({}, {"step_norm": 0.05}) and not SmallStep(0.1)({}, {}) and not SmallStep(0.1)({}, after)
    either = AnyOf((SmallStep(0.1), Settled({"fitness": 1e-6})))
    assert either(before, after) and not either(before, {"fitness": 0.6})


def test_converged_needs_no_last_iteration_to_be_reported():
    settled = Termination(100, Settled({"value": 1e-3}))
    solution = iterate(Halving(), FixedPoint(), vector(8.0), vector(0.0), termination=settled)
    assert solution.status is Status.CONVERGED
    values = [r["value"] for r in solution.history]
    assert values[-2] - values[-1] < 1e-3 <= values[-3] - values[-2]


def test_default_termination_stops_at_an_exact_answer():
    solution = iterate(Halving(), FixedPoint(), vector(8.0), vector(0.0), termination=Termination(100))
    assert solution.status is Status.CONVERGED and solution.omega.abs().item() < 1e-9


def test_batches():
    omega, data = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    solution = iterate(Halving(), FixedPoint(), omega, data, termination=Termination(60))
    assert solution.status is Status.CONVERGED and solution.value.shape == (3,)
    torch.testing.assert_close(solution.omega, data, rtol=0, atol=1e-8)
    assert solution.history[1]["step_norm"].shape == (3,)


def test_statuses_are_sentences():
    assert str(Status.CONVERGED) == Status.CONVERGED.value and " " in Status.CONVERGED.value
    assert Status(Status.SINGULAR.value) is Status.SINGULAR
    assert json.dumps(Status.STOPPED) == f'"{Status.STOPPED.value}"'


def test_bad_settings_are_named():
    with pytest.raises(InputError, match="max_iterations"):
        Termination(max_iterations=-1)
    with pytest.raises(InputError, match="differentiate"):
        iterate(Halving(), FixedPoint(), vector(1.0), vector(0.0), differentiate="implicit")  # type: ignore[arg-type]


# --- gradients ---


class Affine:
    """omega <- A omega + theta: its fixed point is (I - A)^-1 theta, its derivative in theta (I - A)^-1."""

    A = torch.tensor([[0.02, -0.01], [0.03, 0.01]], dtype=torch.float64)

    def value(self, omega, theta):
        return (omega - theta).square().sum(-1)

    def step(self, omega, theta):
        return omega @ self.A.T + theta


class Fit:
    """Residuals (exp(omega theta) - 2, omega - 1/2): a nonlinear problem in one unknown."""

    def residual(self, omega, theta):
        return torch.cat([(omega * theta).exp() - 2, 0.1 * (omega - 0.5)], dim=-1)

    def value(self, omega, theta):
        return 0.5 * self.residual(omega, theta).square().sum(-1)


def jacobian(objective, update, theta, mode, termination):
    def solve(t):
        return iterate(objective, update, torch.ones_like(t), t, termination=termination, differentiate=mode).omega

    return solve, torch.autograd.functional.jacobian(solve, theta)


@pytest.mark.parametrize("update", [GradientDescent(Euclidean(1), 0.1), GaussNewton(Euclidean(1))])
def test_unrolled_gradient_is_that_of_finite_differences(update):
    theta, step = vector(1.3), 1e-6
    solve, gradient = jacobian(Fit(), update, theta, "unroll", Termination(3, None))
    slope = (solve(theta + step) - solve(theta - step)) / (2 * step)
    assert slope.abs().item() > 0.01
    torch.testing.assert_close(gradient[0], slope, rtol=1e-7, atol=1e-9)


def test_unrolled_value_has_a_gradient_and_history_none():
    theta = vector(1.3).requires_grad_()
    solution = iterate(Fit(), GaussNewton(Euclidean(1)), vector(1.0), theta, termination=ALL, differentiate="unroll")
    (gradient,) = torch.autograd.grad(solution.value, theta)
    assert gradient.abs().item() > 0
    assert all(isinstance(r["value"], float) for r in solution.history)


def test_nothing_is_differentiated_by_default():
    theta = vector(1.3).requires_grad_()
    for update in (GradientDescent(Euclidean(1), 0.1), GaussNewton(Euclidean(1))):
        solution = iterate(Fit(), update, vector(1.0), theta, termination=ALL)
        assert not solution.omega.requires_grad and not solution.value.requires_grad


def test_one_step_gradient_of_a_fixed_point():
    """It is d step / d theta = I: within |A| of the implicit (I - A)^-1, which the unrolled gradient reaches."""
    theta, eye = vector(0.3, -0.7), torch.eye(2, dtype=torch.float64)
    implicit = torch.linalg.inv(eye - Affine.A)
    long = Termination(40, None)
    _, unrolled = jacobian(Affine(), FixedPoint(), theta, "unroll", long)
    _, one_step = jacobian(Affine(), FixedPoint(), theta, "one_step", long)
    torch.testing.assert_close(unrolled, implicit, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one_step, eye)
    torch.testing.assert_close(one_step, implicit, rtol=0, atol=1.1 * torch.linalg.matrix_norm(Affine.A).item())


def test_one_step_gradient_of_newtons_method_is_the_implicit_one():
    """exp(omega theta) = 2 exactly: omega = ln 2 / theta, d omega / d theta = -ln 2 / theta^2."""

    class Root(Fit):
        def residual(self, omega, theta):
            return (omega * theta).exp() - 2

    theta = vector(1.3)
    _, one_step = jacobian(Root(), GaussNewton(Euclidean(1)), theta, "one_step", Termination(30))
    expected = -torch.log(torch.tensor(2.0, dtype=torch.float64)) / theta**2
    torch.testing.assert_close(one_step[0], expected, rtol=1e-9, atol=0)


def test_one_step_does_not_take_an_extra_step_that_fails():
    rule = Scripted({1: {"status": Status.SINGULAR}})
    solution = iterate(None, rule, vector(7.0), None, termination=Termination(0), differentiate="one_step")
    assert solution.status is Status.MAX_ITERATIONS and solution.omega.item() == 7


def test_one_step_leaves_failures_alone():
    solution = iterate(None, Scripted({1: {"status": Status.SINGULAR}}), vector(7.0), None, differentiate="one_step")
    assert isinstance(solution, Solution) and solution.status is Status.SINGULAR and solution.omega.item() == 7
