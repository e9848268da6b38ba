"""Every setting of the literature is one ConvexifiedLoss: values and gradients against loops over the formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dlc_reg.convexify import Ambient, Box, ConvexifiedLoss, Gaussian, Learned, Multiplicative, SoftmaxNoise, Star
from dlc_reg.manifold import SE3, Euclidean

POSE = Ambient((4, 4), (0, 1, 2, 4, 5, 6, 8, 9, 10, 3, 7, 11))  # R row by row, then t
ENTRIES = Ambient((3, 3), tuple(range(8)))  # of a homography whose last is 1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def by_hand(value, truth, points, ends, fractions, radius2, *, mu, rho, aggregate, terms, task_weight=1.0):
    """The formulas as they are printed, for each sample s and element b. value(omega, b) is a number."""
    samples, batch = len(ends), len(truth)
    hinge = []
    for s in range(samples):
        mean = 0.0
        for b in range(batch):
            lam, l0 = fractions if isinstance(fractions, float) else fractions[s, b], value(truth[b], b)
            at_lam, at_end = value(points[s, b], b), value(ends[s, b], b)
            written = {
                "descent": l0 - at_lam,
                "minimum": l0 - at_end + mu / 2 * radius2[s, b],
                "minimum_at_fraction": l0 - at_lam + mu / 2 * radius2[s, b],
                "chord": at_lam - (1 - lam) * l0 - lam * at_end + mu / 2 * lam * (1 - lam) * radius2[s, b],
            }
            for term in terms:
                mean = mean + (written[term] if written[term] > 0 else 0 * written[term]) / batch
        hinge.append(mean)
    total = {"mean": sum(hinge) / samples, "sum": sum(hinge), "max": max(hinge)}[aggregate]
    return task_weight * sum(value(truth[b], b) for b in range(batch)) / batch + rho * total


def same(actual, expected, *inputs):
    """Values, and gradients to the inputs."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    for found, wanted in zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def poses(batch: int) -> torch.Tensor:
    return SE3().retract(SE3().identity((batch,)), randn(batch, 6, seed=3))


def wells(omega, data):
    """A landscape with bad optima and learned parameters, over anything of the shape of data's weights."""
    center, depth = data
    offset = (omega - center).flatten(-2)
    return offset.square().sum(-1) + depth * (3 * offset).sin().square().sum(-1)


# --- the registration demo: noise on R and t, not projected; lam and mu learned; rho 1.5; 3 samples, max --------------


@pytest.mark.parametrize("side", ["label", "energy"])
def test_registration_demo(side):
    truth, depth = poses(4), torch.tensor([0.5, 1, 2, 3], dtype=torch.float64, requires_grad=True)
    prediction = (truth + 0.1 * randn(4, 4, 4, seed=4)).requires_grad_()
    objectives = {"label": lambda omega, f: (omega - f[0]).square().mean((-2, -1)), "energy": wells}
    objective, data = objectives[side], (prediction, depth)
    terms = ("descent", "minimum", "chord")
    loss = ConvexifiedLoss(
        objective, POSE, radius=(1 / 8,) * 9 + (1 / 20,) * 3, samples=3, sampler=Box(), aggregate="max", rho=1.5,
        mu=Learned(0.3), fraction=Learned(0.3), terms=terms, generator=generator(),
    ).double()  # fmt: skip
    star = loss.draw(truth)
    noise = star.ends(POSE) - truth
    assert (noise[..., 3, :] == 0).all() and (noise[..., :3, :].abs().amax((0, 1)) > 0).all()
    assert noise[..., :3, :3].abs().max() <= 1 / 8 and noise[..., :3, 3].abs().max() <= 1 / 20
    assert noise[..., :3, :3].abs().max() > 1 / 10 and noise[..., :3, 3].abs().max() > 1 / 25
    lam, mu = torch.sigmoid(loss.fraction_logit), torch.exp(loss.mu_log)
    assert lam.item() == pytest.approx(1 / (1 + math.exp(-0.3))) and mu.item() == pytest.approx(math.exp(0.3))
    expected = by_hand(
        lambda omega, b: objective(omega[None], (prediction[b : b + 1], depth[b : b + 1]))[0],
        truth, truth + lam * noise, truth + noise, lam.expand(3, 4), noise.square().sum((-2, -1)),
        mu=mu, rho=1.5, aggregate="max", terms=terms,
    )  # fmt: skip
    inputs = [prediction, loss.mu_log, loss.fraction_logit] + [depth] * (side == "energy")
    same(loss(truth, data, star=star).total, expected, *inputs)
    assert {name for name, _ in loss.named_parameters()} == {"mu_log", "fraction_logit"}


def test_hinges_after_the_mean_over_the_batch():
    """The demo's own order: the batch is one point of an ambient space, l a mean over it, |xi|^2 a sum over it."""
    truth, depth = poses(4)[:, :3], torch.rand(4, dtype=torch.float64, generator=generator()).requires_grad_()
    center = truth + 0.1 * randn(4, 3, 4, seed=4)

    def mean(omega, data):
        return wells(omega, data).mean(-1)

    loss = ConvexifiedLoss(
        mean, Ambient((4, 3, 4)), radius=1 / 8, samples=3, sampler=Box(), aggregate="max", mu=1.0, fraction=0.4,
        generator=generator(),
    )  # fmt: skip
    star = loss.draw(truth)
    noise = star.tangents.reshape(3, 4, 3, 4)
    expected = by_hand(
        lambda omega, b: mean(omega, (center, depth)),
        truth[None], (truth + 0.4 * noise)[:, None], (truth + noise)[:, None], 0.4,
        noise.square().sum((1, 2, 3))[:, None], mu=1.0, rho=1.0, aggregate="max", terms=("minimum", "chord"),
    )  # fmt: skip
    same(loss(truth, (center, depth), star=star).total, expected, depth)


# --- PRISE: entries of H times 1 + U(-1/12, 1/12), at least 0.02; both signs; lam 0.5, mu 1, rho 5; two hinges, sum


@pytest.mark.parametrize("samples", [4, 2])
def test_image_alignment(samples):
    truth = torch.eye(3, dtype=torch.float64) + 0.2 * randn(3, 3, 3, seed=5)
    truth = truth / truth[:, 2:, 2:]
    depth = torch.tensor([0.5, 1, 2], dtype=torch.float64, requires_grad=True)
    data = (truth + 0.02 * randn(3, 3, 3, seed=6), depth)
    terms = ("minimum_at_fraction", "chord")
    loss = ConvexifiedLoss(
        wells, ENTRIES, radius=1 / 12, samples=samples, sampler=Multiplicative(0.02), both_signs=True, fraction=0.5,
        mu=1.0, rho=5.0, aggregate="sum", terms=terms, generator=generator(),
    )  # fmt: skip
    star = loss.draw(truth)
    ends = star.ends(ENTRIES)
    share = (ends / truth - 1).reshape(2 * samples, 3, 9)
    assert (share[..., 8] == 0).all() and share.abs().max() <= 1 / 12 and share[..., :8].abs().min() > 0.02 - 1e-9
    torch.testing.assert_close(share[:samples], -share[samples:])
    assert share[:samples].diff(dim=1).abs().max() > 0  # each pair is moved its own way
    expected = by_hand(
        lambda omega, b: wells(omega, (data[0][b], depth[b])),
        truth, (truth + ends) / 2, ends, 0.5, (ends - truth).square().sum((-2, -1)),
        mu=1.0, rho=5.0, aggregate="sum", terms=terms,
    )  # fmt: skip
    same(loss(truth, data, star=star).total, expected, depth)


# --- classification: one-hot label + N(0, 1), softmax -----------------------------------------------------------------


def cross_entropy(omega, logits):
    """-sum over classes of omega log softmax: linear in the label."""
    return -(omega * logits.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize("aggregate", ["sum", "max"])
@pytest.mark.parametrize("task", [cross_entropy, lambda omega, logits: (omega - logits.softmax(-1)).square().sum(-1)])
def test_classification(aggregate, task):
    logits, label = randn(5, 4).requires_grad_(), torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0]]
    loss = ConvexifiedLoss(
        task, Euclidean(4), radius=1.0, samples=6, sampler=SoftmaxNoise(), aggregate=aggregate, mu=0.7, rho=2.0,
        fraction=0.3, generator=generator(),
    )  # fmt: skip
    star = loss.draw(label)
    ends = (label + torch.randn(6, 5, 4, dtype=torch.float64, generator=generator())).softmax(-1)
    torch.testing.assert_close(star.ends(Euclidean(4)), ends)
    expected = by_hand(
        lambda omega, b: task(omega, logits[b]),
        label, label + 0.3 * (ends - label), ends, 0.3, (ends - label).square().sum(-1),
        mu=0.7, rho=2.0, aggregate=aggregate, terms=("minimum", "chord"),
    )  # fmt: skip
    same(loss(label, logits, star=star).total, expected, logits)


# --- every combination ------------------------------------------------------------------------------------------------

SETTINGS = [
    *itertools.product(
        ["mean", "sum", "max"],
        [0.0, 1.3],
        [
            ("minimum", "chord"),
            ("descent", "minimum", "chord"),
            ("descent",),
            ("minimum",),
            ("minimum_at_fraction", "chord"),
        ],
    )
]


@pytest.mark.parametrize(("aggregate", "mu", "terms"), SETTINGS)
def test_any_setting_on_poses(aggregate, mu, terms):
    truth, depth = poses(3), torch.tensor([0.5, 1, 2], dtype=torch.float64, requires_grad=True)
    center = truth + 0.1 * randn(3, 4, 4, seed=8)
    loss = ConvexifiedLoss(
        wells, SE3(), radius=0.9, samples=4, mu=mu, rho=0.8, sampler=Gaussian(), aggregate=aggregate, terms=terms,
        fraction=(0.2, 0.6), task_weight=0.3, generator=generator(),
    )  # fmt: skip
    star = loss.draw(truth)
    assert star.fractions.min() >= 0.2 and star.fractions.max() <= 0.6 and star.fractions.std() > 0.05
    points = [
        SE3().retract(truth.expand(4, 3, 4, 4), step * star.tangents) for step in (star.fractions[..., None], 1.0)
    ]
    expected = by_hand(
        lambda omega, b: wells(omega, (center[b], depth[b])),
        truth, *points, star.fractions, star.tangents.square().sum(-1),
        mu=mu, rho=0.8, aggregate=aggregate, terms=terms, task_weight=0.3,
    )  # fmt: skip
    found = loss(truth, (center, depth), star=star)
    same(found.total, expected, depth)
    assert [*found.terms] == ["truth", *terms, "violation"]
    parts = 0.3 * found.terms["truth"] + 0.8 * sum(found.terms[term] for term in terms)
    torch.testing.assert_close(found.total, parts)


def test_margins_in_units_of_the_radius():
    truth, data = poses(3), (poses(3) + 0.1, torch.ones(3, dtype=torch.float64))
    radius = torch.tensor([0.5] * 3 + [20.0] * 3, dtype=torch.float64)
    loss = ConvexifiedLoss(
        wells, SE3(), radius=radius, mu=500.0, norm="radius", generator=generator(), terms=("minimum",)
    )
    star = loss.draw(truth)
    scaled = (star.tangents / radius).square().sum(-1)
    assert scaled.max() <= 1
    ends = wells(SE3().retract(truth, star.tangents), data)
    expected = (wells(truth, data) - ends + 250 * scaled).relu().mean()
    assert expected > 1
    torch.testing.assert_close(loss(truth, data, star=star).terms["minimum"], expected)
    half = ConvexifiedLoss(wells, SE3(), radius=radius / 2, mu=500.0, norm="radius", terms=("minimum",))
    torch.testing.assert_close(half(truth, data, star=star, radius=radius).terms["minimum"], expected)


def linear() -> torch.nn.Linear:
    network = torch.nn.Linear(3, 4).double()
    with torch.no_grad():
        network.weight.copy_(randn(4, 3, seed=9)), network.bias.copy_(randn(4, seed=10))
    return network


# --- the label side, by algebra ---------------------------------------------------------------------------------------


def squared_error(omega, prediction):
    return (omega - prediction).square().sum(-1)


@pytest.mark.parametrize("aggregate", ["mean", "sum", "max"])
@pytest.mark.parametrize(("task", "strong", "curvature"), [(squared_error, 5.0, 2.0), (cross_entropy, 1.5, 0.0)])
def test_the_chord_tells_a_predicting_network_nothing(aggregate, task, strong, curvature):
    """It is (mu - k)/2 lam (1 - lam) |xi|^2 with k = 2 and 0, whatever is predicted: only lam and mu learn."""
    network = linear()
    label = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0]]
    loss = ConvexifiedLoss(
        task, Euclidean(4), radius=1.0, mu=Learned(math.log(strong)), fraction=Learned(0.4), terms=("chord",),
        task_weight=0.0, aggregate=aggregate, sampler=SoftmaxNoise(), generator=generator(),
    ).double()  # fmt: skip
    star = loss.draw(label)
    total = loss(label, network(randn(5, 3)), star=star).total
    lam, radius2 = torch.sigmoid(loss.fraction_logit), star.tangents.square().sum(-1).mean(1)
    constant = (strong - curvature) / 2 * lam * (1 - lam) * radius2
    expected = {"mean": constant.mean(), "sum": constant.sum(), "max": constant.max()}[aggregate]
    torch.testing.assert_close(total, expected)
    total.backward()
    assert max(p.grad.abs().max() for p in network.parameters()) < 1e-14
    assert loss.mu_log.grad.abs() > 1e-3 and loss.fraction_logit.grad.abs() > 1e-4


def test_the_chord_does_tell_other_losses_something():
    network = linear()
    label = torch.eye(4, dtype=torch.float64)
    loss = ConvexifiedLoss(
        lambda omega, f: squared_error(omega, f).square(), Euclidean(4), radius=1.0, mu=200.0, terms=("chord",),
        task_weight=0.0, generator=generator(),
    )  # fmt: skip
    loss(label, network(randn(4, 3))).total.backward()
    assert network.weight.grad.abs().max() > 1e-2


def test_the_minimum_is_a_margin_with_negative_label_smoothing():
    """Where it is violated, the hinge's gradient to the logits is grad CE(y) - grad CE(q) = q - y."""
    logits, label = randn(1, 4).requires_grad_(), torch.eye(4, dtype=torch.float64)[:1]
    q = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    loss = ConvexifiedLoss(cross_entropy, Euclidean(4), radius=1.0, mu=50.0, terms=("minimum",), task_weight=0.0)
    loss(label, logits, star=Star(label, (q - label)[None], torch.ones(1, 1))).total.backward()
    torch.testing.assert_close(logits.grad, q - label)
    met = ConvexifiedLoss(cross_entropy, Euclidean(4), radius=1.0, mu=0.0, terms=("minimum",), task_weight=0.0)
    sure = torch.tensor([[9.0, 0, 0, 0]], dtype=torch.float64, requires_grad=True)
    met(label, sure, star=Star(label, (q - label)[None], torch.ones(1, 1))).total.backward()
    assert (sure.grad == 0).all()  # beyond the margin nothing is asked
