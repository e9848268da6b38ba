"""The recurrent head: cells against torch's own and against optimisers, energies against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlc_reg import InputError
from dlc_reg.convexify import ConvexifiedLoss, basin_radius, star_violation, violation_curve
from dlc_reg.manifold import Euclidean
from dlc_reg.sequence import SBORNN, IndRNN, MLPEnergy, QuadraticEnergy, Readout, RecurrentNetwork, SequenceModel
from dlc_reg.updates import GradientDescent


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    torch.manual_seed(0)


X = torch.linspace(-1, 1, 5 * 7 * 3).reshape(5, 7, 3).sin()  # (B, T, D)


@pytest.mark.parametrize("batch_first", [False, True])
def test_indrnn_is_an_rnn_whose_recurrent_matrix_is_diagonal(batch_first):
    cell, torchs = (
        kind(3, 4, 2, batch_first=batch_first, **more)
        for kind, more in ((IndRNN, {}), (nn.RNN, {"nonlinearity": "relu"}))
    )
    with torch.no_grad():
        for layer in range(2):
            getattr(torchs, f"weight_ih_l{layer}").copy_(cell.inputs[layer].weight)
            getattr(torchs, f"bias_ih_l{layer}").copy_(cell.inputs[layer].bias)
            getattr(torchs, f"bias_hh_l{layer}").zero_()
            getattr(torchs, f"weight_hh_l{layer}").copy_(cell.recurrent[layer].diag())
    x = X if batch_first else X.transpose(0, 1)
    start = torch.rand(2, 5, 4)
    for ours, theirs in ((cell(x), torchs(x)), (cell(x, start), torchs(x, start))):
        assert torch.allclose(ours[0], theirs[0], atol=1e-6) and torch.allclose(ours[1], theirs[1], atol=1e-6)


def test_indrnn_neither_vanishes_nor_explodes_over_its_memory():
    cell = IndRNN(1, 200, memory=100)
    with torch.no_grad():
        cell.recurrent[0].mul_(3)
        cell.inputs[0].bias.zero_()
    impulse = torch.zeros(101, 1, 1)
    impulse[0] = 1
    outputs = cell(impulse)[0]
    grown = outputs[-1] / outputs[0]
    assert grown[outputs[0] > 0].max() <= 2 * (1 + 1e-4)
    assert 0.49 < IndRNN(1, 200, memory=100).recurrent[0].min() ** 100 < 1  # the last layer remembers half or more


def test_the_lower_level_gradient_is_that_of_its_objective():
    cell = SBORNN(3, 6).double()
    h, drive = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True), torch.randn(5, 6, dtype=torch.float64)
    by_autograd = torch.autograd.grad(cell.value(h, drive).sum(), h)[0]
    assert torch.allclose(cell.gradient(h, drive), by_autograd, atol=1e-12)
    plain = 0.5 * cell.log_decay.exp() * h.square().sum(-1) - (drive + h @ cell.weight.T).cosh().log().sum(-1)
    assert torch.allclose(cell.value(h, drive), plain, atol=1e-12)
    assert torch.isfinite(cell.value(1e6 * h, drive)).all()  # where cosh overflows


def test_a_plain_step_is_gradient_descent_on_the_manifold_of_states():
    cell = SBORNN(3, 6, batch_first=True).double()
    h, outputs = torch.zeros(5, 6, dtype=torch.float64), cell(X.double())[0]
    update = GradientDescent(Euclidean(6), cell.log_rate.exp().item())
    for t in range(X.shape[1]):
        drive = cell.drive(X[:, t].double()).detach()
        state, _ = update.init(cell, h, drive)
        h = update.step(cell, h, drive, state)[0].detach()
        assert torch.allclose(outputs[:, t], h, atol=1e-12)


@pytest.mark.parametrize("update", ["heavy_ball", "nesterov"])
def test_momentum_is_that_of_an_optimiser(update):
    """torch's Nesterov keeps the point that the gradient is taken at, h + momentum v."""
    cell = SBORNN(3, 6, update).double()
    x = X[:1, :1].double().expand(1, 9, 3).transpose(0, 1)  # one input, for ever
    drive, rate, momentum = cell.drive(x[0]).detach(), cell.log_rate.exp().item(), cell.momentum_logit.sigmoid().item()
    theirs = nn.Parameter(torch.zeros(1, 6, dtype=torch.float64))
    optimizer = torch.optim.SGD([theirs], rate, momentum, nesterov=update == "nesterov")
    state = None
    for t in range(9):
        _, state = cell(x[t : t + 1], state)
        optimizer.zero_grad()
        cell.value(theirs, drive).sum().backward()
        optimizer.step()
        h, v = (s[0] for s in state)
        assert torch.allclose(h + momentum * v if update == "nesterov" else h, theirs, atol=1e-12), t


def test_states_of_a_lower_level_objective_stay_bounded():
    cell = SBORNN(1, 16, rate=0.3, decay=0.1)
    h = cell(100 * torch.randn(500, 4, 1))[1][0]
    assert h.abs().max() <= cell.weight.abs().sum(0).max() / 0.1


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU, IndRNN, SBORNN])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_default_head_is_the_linear_readout_of_the_last_step(kind, batch_first):
    model = SequenceModel(kind(3, 8, batch_first=batch_first), outputs=2)
    x = X if batch_first else X.transpose(0, 1)
    outputs = model.cell(x)[0]
    last = outputs[:, -1] if batch_first else outputs[-1]
    wanted = nn.functional.linear(last, model.head.minimiser.weight, model.head.minimiser.bias)
    for mode in (True, False):
        assert torch.allclose(model.train(mode)(x), wanted, atol=1e-6)
    anywhere = model(x, init=torch.randn(5, 2))
    assert torch.allclose(anywhere, wanted, atol=1e-5)  # one unit step reaches it from everywhere
    assert model.solve(model.encode(x), torch.zeros(5, 2)).value.abs().max() < 1e-9


def test_ragged_sequences_are_answered_as_each_alone():
    model = SequenceModel(nn.LSTM(3, 8, batch_first=True), 2).eval()
    lengths = torch.tensor([7, 1, 3, 7, 5])
    padded = X.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 99.0
    together = model(padded, lengths)
    alone = torch.cat([model(X[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())])
    assert torch.allclose(together, alone, atol=1e-6)


def test_gradients_flow_to_every_weight_through_every_step():
    for head in ("plain", "quadratic", "mlp"):
        model = SequenceModel(nn.GRU(3, 8, batch_first=True), 2, head).train()
        model(X).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()), head


def test_the_quadratic_energy_descends_to_its_minimiser_and_is_strongly_star_convex_about_it():
    model = SequenceModel(nn.GRU(3, 8, batch_first=True), 2, "quadratic").double().eval()
    encoded = model.encode(X.double())
    reached = model.solve(encoded, 3 * torch.randn(5, 2, dtype=torch.float64), 400)
    assert torch.allclose(reached.omega, encoded.minimiser, atol=1e-6)
    values = torch.stack([r["value"] for r in reached.history])
    assert (values.diff(dim=0) <= 1e-15).all()
    lowest = encoded.curvature.min().item()
    options = {"radius": 4.0, "steps": 8, "generator": torch.Generator().manual_seed(0)}
    center = encoded.minimiser.detach()
    assert violation_curve(model, model.manifold, center, encoded, mu=lowest, **options)[1].max() == 0
    too_much = 2.02 * encoded.curvature.max().item()
    assert violation_curve(model, model.manifold, center, encoded, mu=too_much, **options)[1].min() == 1


def test_nothing_about_the_readout_follows_from_the_chord():
    """E(lam) - (1 - lam) E(0) - lam E(1) = -lam (1 - lam) |xi|^2 / 2 for every weight."""
    model = SequenceModel(nn.GRU(3, 8, batch_first=True), 2).double()
    truth, encoded = torch.randn(5, 2, dtype=torch.float64), model.encode(X.double())
    lam, xi = torch.linspace(0, 1, 11, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    values = torch.stack([model.value(truth + s * xi, encoded) for s in lam], -1)
    along = values - (1 - lam) * values[:, :1] - lam * values[:, -1:]
    identity = -0.5 * lam * (1 - lam) * xi.square().sum(-1, keepdim=True)
    assert torch.allclose(along, identity, atol=1e-12)
    loss = ConvexifiedLoss(model, Euclidean(2), radius=1.0, mu=3.0, terms=("chord",), task_weight=0.0)
    loss(truth, encoded).total.backward()  # mu is too large, so that every hinge is active
    assert max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None) < 1e-12


def test_the_mlp_energy_is_bounded_below_and_its_descent_never_rises():
    model = SequenceModel(nn.GRU(3, 8, batch_first=True), 2, "mlp").eval()
    encoded = model.encode(X)
    far = 1e4 * torch.randn(100, 5, 2)
    assert (model.value(far, encoded) > model.value(torch.zeros(5, 2), encoded)).all()
    values = torch.stack([r["value"] for r in model.solve(encoded, torch.randn(5, 2), 50).history])
    assert (values.diff(dim=0) <= 1e-5).all()


def test_convexified_loss_makes_an_mlp_energy_star_convex():
    """Two wells, one of them at the truth: with the loss the other one goes, by the same call as for any model."""
    model = SequenceModel(nn.GRU(1, 16, batch_first=True), 1, MLPEnergy(16, 1))
    generator = torch.Generator().manual_seed(1)

    def train(steps, loss_of):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(steps):
            x = 2 * torch.rand(32, 4, 1, generator=generator) - 1
            optimizer.zero_grad()
            loss_of(model.encode(x), x.sum((1, 2))[:, None] / 2).backward()
            optimizer.step()

    def wells(encoded, truth):
        d = 4 * torch.rand(32, 1, generator=generator) - 1
        wanted = (3 * d.square() * ((d - 2).square() + 0.1)).clamp(max=3)[:, 0]
        return (model.value(truth + d, encoded) - wanted).square().mean()

    x = torch.linspace(-0.9, 0.9, 36).reshape(9, 4, 1)
    truth = x.sum((1, 2))[:, None] / 2

    def basin():
        options = {"radius": 2.5, "shortest": 0.4, "generator": torch.Generator().manual_seed(0)}
        return basin_radius(model, model.manifold, truth, model.encode(x), directions=8, **options).item()

    train(250, wells)
    before = basin()
    convexified = ConvexifiedLoss(model, model.manifold, radius=2.5, mu=0.5, task_weight=0.0)
    train(150, lambda encoded, truth: convexified(truth, encoded, generator=generator).total)
    assert before < 2.0 and basin() >= 2.4


def test_both_identities_of_the_label_side():
    """Squared error: the chord is -lam (1 - lam) |xi|^2; cross-entropy is linear in the label: the chord is 0."""
    model = SequenceModel(nn.GRU(3, 8, batch_first=True), 4).double().train()
    prediction, lam = model(X.double()), torch.linspace(0, 1, 5, dtype=torch.float64)
    label, moved = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0]], torch.rand(5, 4, dtype=torch.float64).softmax(-1)
    ray = label[:, None] + lam[:, None] * (moved - label)[:, None]
    square = (prediction[:, None] - ray).square().sum(-1)
    entropy = -(prediction.log_softmax(-1)[:, None] * ray).sum(-1)
    radius2 = (moved - label).square().sum(-1)
    chord = [v - (1 - lam) * v[:, :1] - lam * v[:, -1:] for v in (square, entropy)]
    assert torch.allclose(chord[0], -lam * (1 - lam) * radius2[:, None], atol=1e-12)
    assert chord[1].abs().max() < 1e-12
    assert star_violation(square, lam, radius2, 2.0 + 1e-6)[:, 1:-1].min() > 0  # beyond mu = 2 always violated


def test_architectures_are_built_by_name_and_answer():
    for cell in ("rnn", "lstm", "gru", "indrnn", "sbo"):
        network = RecurrentNetwork(3, 2, hidden=4, cell=cell, update="nesterov")
        assert network(X).shape == (5, 2) and network.arguments["cell"] == cell
    assert isinstance(RecurrentNetwork(3, 2, cell="sbo").cell, SBORNN)
    assert [type(RecurrentNetwork(3, 2, head=h).head) for h in ("plain", "quadratic", "mlp")] == [
        Readout, QuadraticEnergy, MLPEnergy,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        (lambda: SequenceModel(nn.Linear(3, 3), 2), "cell"),
        (lambda: SequenceModel(nn.GRU(3, 4), 0), "outputs"),
        (lambda: SequenceModel(nn.GRU(3, 4), 2, "cubic"), "head"),
        (lambda: SequenceModel(nn.GRU(3, 4), 2)(X[0]), "x"),
        (lambda: SequenceModel(IndRNN(4, 4), 2)(X), "x"),
        (lambda: SequenceModel(nn.GRU(3, 4, batch_first=True), 2)(X, init=torch.zeros(5, 3)), "init"),
        (lambda: SequenceModel(nn.GRU(3, 4, batch_first=True), 2)(X, torch.tensor([0, 1, 1, 1, 1])), "lengths"),
        (lambda: SequenceModel(nn.GRU(3, 4, 1, bidirectional=True), 2)(X, torch.tensor([1])), "lengths"),
        (lambda: IndRNN(0, 4), "input_size"),
        (lambda: SBORNN(3, 4, "adam"), "update"),
        (lambda: SBORNN(3, 4, rate=0.0), "rate, decay, momentum"),
        (lambda: RecurrentNetwork(3, 2, cell="elman"), "cell"),
        (lambda: RecurrentNetwork(3, 2, cell="sbo", layers=2), "layers"),
    ],
)
def test_bad_input_is_named(wrong, argument):
    with pytest.raises(InputError) as caught:
        wrong()
    assert caught.value.argument == argument
