"""ConvexifiedLoss in a training step: gradients, batches, precision, compilation, cost, and what it refuses."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from dlc_reg.convexify import (
    Ball,
    Box,
    ConvexifiedLoss,
    Gaussian,
    Iterates,
    Learned,
    Scaled,
    Star,
    WorstOf,
)
from dlc_reg.errors import InputError
from dlc_reg.manifold import SE3, Euclidean

EVERY = ("chord", "minimum", "minimum_at_fraction", "descent", "first_order")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


class Energy(nn.Module):
    """A learned energy of omega (*lead, B.., n) given x (B.., m), bumpy enough that every hinge is active somewhere."""

    def __init__(self, n: int = 2, m: int = 2, width: int = 8) -> None:
        super().__init__()
        self.n, self.first, self.last = n, nn.Linear(n + m, width), nn.Linear(width, 1)
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(seed)))

    def value(self, omega, x):
        lead = omega.shape[: omega.ndim - x.ndim]
        hidden = torch.sin(self.first(torch.cat([omega, x.expand(*lead, *x.shape)], dim=-1)))
        return self.last(hidden)[..., 0].square()


def convexified(objective, n=2, **settings):
    settings = {"radius": 1.5, "samples": 3, "mu": 0.3, "terms": EVERY, "generator": generator(), **settings}
    return ConvexifiedLoss(objective, Euclidean(n), **settings)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("derivative", ["reverse", "forward"])
@pytest.mark.parametrize("aggregate", ["mean", "sum", "max"])
def test_gradients_are_those_of_finite_differences(derivative, aggregate):
    """To the network, to lam and to mu, through every value, that at the truth included."""
    network, truth, x = Energy().double(), randn(4, 2, seed=1), randn(4, 2, seed=2)
    settings = {"mu": Learned(-1.0), "fraction": Learned(0.3), "radius": 2.5, "samples": 4}
    loss = convexified(network, derivative=derivative, aggregate=aggregate, **settings).double()
    assert (torch.stack([*loss(truth, x).terms.values()]) > 1e-3).all()  # none of the hinges sleeps

    def total(*parameters):
        loss.generator.manual_seed(5)
        owners = [*network.parameters(), *loss.parameters()]
        with torch.no_grad():
            for owner, parameter in zip(owners, parameters, strict=True):
                owner.copy_(parameter)
        return loss(truth, x).total

    parameters = [p.detach().clone() for p in (*network.parameters(), *loss.parameters())]
    gradients = torch.autograd.grad(total(*parameters), [*network.parameters(), *loss.parameters()])
    for k, parameter in enumerate(parameters):
        direction = randn(*parameter.shape, seed=k)
        moved = [[p + step * direction if i == k else p for i, p in enumerate(parameters)] for step in (1e-6, -1e-6)]
        numeric = (total(*moved[0]) - total(*moved[1])).item() / 2e-6
        assert numeric == pytest.approx((gradients[k] * direction).sum().item(), rel=1e-5, abs=1e-7)
        assert abs(numeric) > 1e-4


def test_without_gradients_the_first_order_form_still_has_its_derivative():
    network, truth, x = Energy(), randn(4, 2).float(), randn(4, 2).float()
    loss = convexified(network, terms=("first_order",))
    star = loss.draw(truth)
    with torch.no_grad():
        quiet = loss(truth, x, star=star)
    assert not quiet.total.requires_grad
    torch.testing.assert_close(quiet.total, loss(truth, x, star=star).total)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_all_rays_are_one_call_and_data_pass_untouched():
    calls, data = [], {"anything": object()}

    def objective(omega, given):
        calls.append((tuple(omega.shape), given is data))
        return omega.square().sum((-2, -1))

    loss = ConvexifiedLoss(objective, SE3(), radius=0.1, samples=5, both_signs=True)
    loss(SE3().identity((7,)), data)
    assert calls == [((1 + 2 * 10, 7, 4, 4), True)]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_batches_of_any_shape(batch):
    network, truth, x = Energy().double(), randn(*batch, 2, seed=1), randn(*batch, 2, seed=2)
    loss = convexified(network)
    star = loss.draw(truth, x)
    assert star.tangents.shape == (3, *batch, 2) and star.fractions.shape == (3, *batch)
    total = loss(truth, x, star=star)
    rays = star.tangents.movedim(0, -2), star.fractions.movedim(0, -1)  # (B.., R, dof), (B.., R)
    each = [loss(truth[b], x[b], star=Star(truth[b], rays[0][b], rays[1][b])).total for b in np.ndindex(batch)]
    torch.testing.assert_close(total.total, torch.stack(each).mean())


def test_weights_and_masks():
    """A mask gives the loss of what is left; NaN in the value of what is not does not reach it."""
    network, truth, x = Energy().double(), randn(5, 2, seed=1), randn(5, 2, seed=2)
    loss = convexified(network, aggregate="max")
    star = loss.draw(truth)
    kept = torch.tensor([True, False, True, True, False])
    of_kept = loss(truth[kept], x[kept], star=Star(truth[kept], star.tangents[:, kept], star.fractions[:, kept]))
    masked = loss(truth, x, star=star, weights=kept)
    torch.testing.assert_close(masked.total, of_kept.total)
    torch.testing.assert_close(masked.terms, of_kept.terms)
    twice = loss(truth, x, star=star, weights=torch.tensor([2.0, 0, 2, 2, 0]))
    torch.testing.assert_close(twice.total, of_kept.total)
    repeated = torch.tensor([0, 0, 1, 2, 3, 4])
    doubled = loss(truth, x, star=star, weights=torch.tensor([2.0, 1, 1, 1, 1]))
    again = Star(truth[repeated], star.tangents[:, repeated], star.fractions[:, repeated])
    torch.testing.assert_close(doubled.total, loss(truth[repeated], x[repeated], star=again).total)

    def broken(omega, x):
        return torch.where(kept, network.value(omega, x), torch.nan)

    spoilt = convexified(broken, aggregate="max")(truth, x, star=star, weights=kept)
    torch.testing.assert_close(spoilt.total, masked.total)
    for wrong in (torch.ones(4), torch.zeros(5), torch.tensor([1.0, -1, 1, 1, 1])):
        with pytest.raises(InputError, match="weights"):
            loss(truth, x, weights=wrong)


def test_what_a_mask_leaves_out_is_not_in_the_gradient_where_its_data_are_finite():
    network, truth, x = Energy().double(), randn(5, 2, seed=1), randn(5, 2, seed=2)
    kept = torch.tensor([True, False, True, True, False])
    loss = convexified(network)
    star = loss.draw(truth)

    def gradients(truth, x, star, weights=None):
        total = loss(truth, x, star=star, weights=weights).total
        return torch.autograd.grad(total, [*network.parameters()])

    of_kept = Star(truth[kept], star.tangents[:, kept], star.fractions[:, kept])
    expected = gradients(truth[kept], x[kept], of_kept)
    wild = torch.where(kept[:, None], x, 1e3)
    torch.testing.assert_close(gradients(truth, wild, star, kept), expected)
    lost = torch.where(kept[:, None], x, torch.nan)  # the loss is finite then, but 0 * NaN is not 0
    assert torch.isfinite(loss(truth, lost, star=star, weights=kept).total)
    assert not all(torch.isfinite(g).all() for g in gradients(truth, lost, star, kept))


def test_draws_are_the_generators():
    network, truth, x = Energy(), randn(4, 2).float(), randn(4, 2).float()
    loss = convexified(network)
    for sampler in (
        Ball(),
        Gaussian(),
        Box(),
        Scaled(Ball((1, 1))),
        WorstOf(3),
        Iterates(randn(6, 4, 2, seed=3).float()),
    ):
        first, second, other = (loss(truth, x, sampler=sampler, generator=generator(seed)).total for seed in (3, 3, 4))
        assert first == second != other
    global_state = torch.get_rng_state()
    loss(truth, x)
    assert (torch.get_rng_state() == global_state).all()


def test_the_objective_stays_its_own():
    network = Energy()
    loss = convexified(network, mu=Learned(), fraction=Learned())
    assert [name for name, _ in loss.named_parameters()] == ["fraction_logit", "mu_log"]
    assert loss.state_dict().keys() == {"fraction_logit", "mu_log"} and loss.objective is network
    assert not [*convexified(network).parameters()]


# --- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "cost"),
    [
        ({"terms": ("chord",)}, 6),
        ({"terms": ("minimum",)}, 3),
        ({"terms": ("descent",)}, 3),
        ({"terms": ("minimum", "chord"), "both_signs": True}, 12),
        ({"terms": ("minimum",), "sampler": WorstOf(4)}, 3 + 12),
        ({"terms": ("minimum",), "sampler": Scaled(WorstOf(4))}, 3 + 12),
        ({"terms": ("minimum",), "checkpoint": True}, 3 + (1 + 3)),
    ],
)
def test_cost_is_what_is_evaluated(settings, cost):
    evaluated = []

    def objective(omega, x):
        evaluated.append(len(omega))
        return network.value(omega, x)

    network = Energy()
    loss = convexified(objective, **settings)
    loss(randn(4, 2).float(), randn(4, 2).float()).total.backward()
    truths = 1 + sum("WorstOf" in str(value) for value in settings.values())  # each call has it
    assert sum(evaluated) - truths == loss.cost == cost
    assert f"costs {cost} evaluations" in str(loss)


def test_a_derivative_counts_as_two():
    assert convexified(Energy(), terms=("first_order",)).cost == 9


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()


# --- precision, compilation, checkpoints ------------------------------------------------------------------------------


def test_mixed_precision():
    """The objective runs in half precision, the poses and the hinges do not."""
    network, truth, x = Energy(), torch.randn(16, 2, generator=generator()), torch.randn(16, 2, generator=generator(1))
    kinds = []

    def objective(omega, x):
        values = network.value(omega, x)
        kinds.append((omega.dtype, values.dtype))
        return values

    loss = convexified(objective)
    star = loss.draw(truth)
    expected = loss(truth, x, star=star)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(truth, x, star=star)
        seen = convexified(lambda omega, data: omega[..., 0, 0].exp(), terms=("chord",))
        pose = ConvexifiedLoss(seen.objective, SE3(), radius=0.5)(SE3().identity((3,), dtype=torch.float32), None)
    assert kinds[-1] == (torch.float32, torch.bfloat16)
    assert found.total.dtype == torch.float32 and pose.total.dtype == torch.float32
    assert {term.dtype for term in found.terms.values()} == {torch.float32}
    torch.testing.assert_close(found.total, expected.total, rtol=0.05, atol=0.05)
    found.total.backward()
    assert torch.isfinite(network.first.weight.grad).all()
    exact = ConvexifiedLoss(lambda omega, data: omega[..., 0, 0], SE3(), radius=0.5, generator=generator())
    truth, outside = SE3().identity((3,), dtype=torch.float32), exact.draw(SE3().identity((3,), dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):  # or the retraction's products would be rounded
        inside = exact(truth, None, star=outside).total
    assert inside == exact(truth, None, star=outside).total


def test_the_search_for_bad_rays_runs_in_the_steps_own_precision():
    kinds = []

    def objective(omega, x):
        values = network.value(omega, x)
        kinds.append(values.dtype)
        return values

    network, loss = Energy(), convexified(objective, sampler=WorstOf(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss(randn(4, 2).float(), randn(4, 2).float())
    assert kinds == [torch.bfloat16, torch.bfloat16]
    loss(randn(4, 2).float(), randn(4, 2).float())
    assert kinds[2:] == [torch.float32, torch.float32]


@pytest.mark.parametrize("terms", [EVERY, ("chord", "minimum")])
def test_checkpoints_change_nothing(terms):
    network, truth, x = Energy().double(), randn(4, 2, seed=1), randn(4, 2, seed=2)
    kept, recomputed = (convexified(network, terms=terms, checkpoint=flag) for flag in (False, True))
    star = kept.draw(truth)
    expected = torch.autograd.grad(kept(truth, x, star=star).total, [*network.parameters()])
    found = torch.autograd.grad(recomputed(truth, x, star=star).total, [*network.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"aggregate": "max", "mu": Learned(), "fraction": Learned(), "both_signs": True, "norm": "radius"},
        {"checkpoint": True},
        {"terms": ("first_order",), "derivative": "forward"},
    ],
)
def test_compiles_into_one_graph(settings, fresh_compiler):
    network, truth, x = Energy(), randn(4, 2).float(), randn(4, 2).float()
    loss = convexified(network, **{"terms": ("minimum", "chord"), "generator": None, **settings})
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    star = loss.draw(truth)
    expected, found = loss(truth, x, star=star).total, compiled(truth, x, star=star).total
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, [*network.parameters()]), torch.autograd.grad(expected, [*network.parameters()])
    )
    if not settings:
        assert torch.isfinite(compiled(truth, x, weights=torch.ones(4)).total)  # with fresh rays, drawn in the graph


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile has no C++ compiler")
def test_compiles_to_machine_code(fresh_compiler):
    truth = randn(4, 2).float()
    loss = ConvexifiedLoss(lambda omega, x: (omega - x).sin().square().sum(-1), Euclidean(2), radius=2.0)
    star = loss.draw(truth)
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(truth, 0.3, star=star).total, loss(truth, 0.3, star=star).total)


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at_truth", [True, False])
def test_values_that_are_not_finite_are_said_so(bad, at_truth):
    """An infinite value far away or minus infinity would satisfy some hinges in silence."""
    truth = torch.zeros(3, 2)

    def objective(omega, data):
        at = omega.abs().sum(-1) == 0
        return torch.where(at if at_truth else ~at, bad, 1.0)

    for terms in (("minimum",), ("chord",), ("descent",)):
        loss = convexified(objective, terms=terms)
        with pytest.raises(InputError, match=r"got \d+ of \d+ values NaN or infinite, [03] of them at the"):
            loss(truth, None)
        assert torch.isnan(convexified(objective, terms=terms, check_finite=False)(truth, None).total)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"radius": 0.0}, "radius"),
        ({"radius": -1.0}, "radius"),
        ({"radius": (1.0, 1.0, 1.0)}, "radius"),
        ({"radius": (0.0, 0.0)}, "radius"),
        ({"radius": float("nan")}, "radius"),
        ({"samples": 0}, "samples"),
        ({"samples": 1.5}, "samples"),
        ({"mu": -1.0}, "mu"),
        ({"mu": (0.0, 1.0)}, "mu"),
        ({"rho": -1.0}, "rho"),
        ({"rho": float("inf")}, "rho"),
        ({"task_weight": -1.0}, "task_weight"),
        ({"aggregate": "median"}, "aggregate"),
        ({"terms": ()}, "terms"),
        ({"terms": "chord"}, "terms"),
        ({"terms": ("chord", "cord")}, "terms"),
        ({"fraction": 1.5}, "fraction"),
        ({"fraction": (0.9, 0.1)}, "fraction"),
        ({"fraction": "half"}, "fraction"),
        ({"norm": "euclidean"}, "norm"),
        ({"derivative": "sideways"}, "derivative"),
        ({"derivative": "forward", "checkpoint": True}, "derivative"),
        ({"objective": 3}, "objective"),
    ],
)
def test_settings_that_mean_nothing(settings, argument):
    objective = settings.pop("objective", Energy())
    with pytest.raises(InputError) as caught:
        convexified(objective, **settings)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("omega_star", lambda loss: loss(torch.zeros(4, 3), None)),
        ("omega_star", lambda loss: loss(torch.zeros(4, 2, dtype=torch.long), None)),
        ("objective", lambda loss: convexified(lambda omega, x: omega)(torch.zeros(4, 2), None)),
        ("objective", lambda loss: convexified(lambda omega, x: omega.sum())(torch.zeros(4, 2), None)),
        ("objective", lambda loss: convexified(lambda omega, x: omega.detach().sum(-1))(torch.zeros(4, 2), None)),
        ("sampler", lambda loss: loss(torch.zeros(4, 2), None, sampler=lambda count, near: torch.zeros(count, 2))),
        ("star", lambda loss: loss(torch.zeros(4, 2), None, star=loss.draw(torch.zeros(3, 2)))),
        ("radius", lambda loss: loss(torch.zeros(4, 2), None, radius=-1.0)),
    ],
)
def test_calls_that_cannot_be_answered(argument, call):
    with pytest.raises(InputError) as caught:
        call(convexified(lambda omega, x: omega.square().sum(-1)))
    assert caught.value.argument == argument
