"""The terms of the training loss, against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learning import SMALL, Tiny, blocks, recipe, tiny

from dlc_reg import _losses
from dlc_reg._around import Around
from dlc_reg._losses import pose_loss, poses_about
from dlc_reg._terms import Draw
from dlc_reg.errors import InputError
from dlc_reg.manifold import SE3
from dlc_reg.metrics import rotation_error
from dlc_reg.protocols import PairBatch, PairDataset, collate
from dlc_reg.registration.learned import ARCHITECTURES


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


def draw(total: int = 4, begin: int = 0, end: int | None = None, seed: int = 0) -> Draw:
    return Draw(torch.Generator().manual_seed(seed), total, begin, total if end is None else end)


def test_the_pose_loss_of_a_turn_is_four_times_one_minus_its_cosine():
    xi = torch.tensor([[0.0, 0.3, 0.4, 0, 0, 0], [0, 0, 0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    one = SE3().identity((2,))
    expected = torch.tensor([4 * (1 - math.cos(0.5)), 9.0], dtype=torch.float64)
    torch.testing.assert_close(pose_loss(SE3().retract(one, xi), one), expected)


def around(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Around, PairBatch]:
    """Truths of a batch of pairs whose sources lie beside the origin."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(count, 30, 3, generator=generator, dtype=dtype) + torch.tensor([3.0, -1.0, 0.5], dtype=dtype)
    xi = torch.randn(count, 6, generator=generator, dtype=dtype)
    truth = SE3().retract(SE3().identity((count,), dtype=dtype), xi)
    batch = PairBatch(source, source, None, None, truth, torch.arange(count))
    return Around.truths(batch), batch


def test_poses_are_drawn_within_their_bounds_about_the_middle_of_the_source():
    given, batch = around(400)
    poses = poses_about(given, 40.0, 0.2, draw(400), 3)
    angles = rotation_error(poses, given.truth).rad2deg()
    assert 39 < angles.max() < 40.01 and angles.mean() == pytest.approx(20, abs=1.5)
    middle = batch.source.mean(1)
    moved = [(T[..., :3, :3] @ middle[..., None])[..., 0] + T[..., :3, 3] for T in (poses, given.truth)]
    shifts = moved[0] - moved[1]
    assert 0.18 < shifts.norm(dim=-1).max() < 0.2001
    assert shifts.mean((0, 1)).abs().max() < 0.01  # every direction alike
    torch.testing.assert_close(given.place @ given.local, given.truth)


def test_each_process_draws_its_rows_of_the_whole_batch():
    given, _ = around(6)
    whole = poses_about(given, 90, 1, draw(6), 2)
    for i in (0, 3):
        rows = Around(*(part[i : i + 3] for part in (given.truth, given.place, given.local)))
        torch.testing.assert_close(poses_about(rows, 90, 1, draw(6, i, i + 3), 2), whole[:, i : i + 3])


def at_identity(count: int) -> Around:
    eye = SE3().identity((count,), dtype=torch.float32)
    return Around(eye, eye, eye)


class Known(Tiny):
    """Its energy is the pose's distance from the identity, and its step halves the translation."""

    def value(self, omega, encoded):
        return (omega - torch.eye(4))[..., :3, 3].square().sum(-1)

    def step(self, omega, encoded):
        half = omega.clone()
        half[..., :3, 3] = omega[..., :3, 3] / 2
        return half


def test_contrastive_is_the_cross_entropy_of_the_energies():
    one = at_identity(3)
    given = recipe(loss={"negatives": 5, "temperature": 0.2, "negative_angle_deg": 0.0})
    value = _losses.contrastive(Known(), None, one, given, draw(3))
    moved = poses_about(one, 0.0, 0.5, draw(3), 5)
    energies = torch.cat([torch.zeros(1, 3), moved[..., :3, 3].square().sum(-1)]).numpy() / 0.2
    expected = np.mean([-np.log(np.exp(-e[0]) / np.exp(-e).sum()) for e in energies.T])
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_unrolled_term_weighs_later_steps_more():
    one = at_identity(1)
    given = recipe(loss={"unrolled_steps": 3, "start_angle_deg": 0.0, "start_translation": 1.0})
    start = poses_about(one, 0.0, 1.0, draw(1))[0, :3, 3].square().sum().item()
    value = _losses.unrolled(Known(), None, one, given, draw(1))
    assert value.item() == pytest.approx(start * (1 / 4 + 2 / 16 + 3 / 64) / 6, rel=1e-5)


def test_a_matching_loss_that_the_network_does_not_have_is_an_error():
    class Without(Tiny):
        @property
        def matching_loss(self):
            raise AttributeError

    with pytest.raises(InputError, match="Without") as caught:
        _losses.RegistrationLosses(Without(), recipe())
    assert caught.value.argument == "loss.matching"
    _losses.RegistrationLosses(Without(), recipe(loss={"matching": 0.0}))


class Cosine(Tiny):
    """Its energy is 1 - cos of the pose's angle: star-convex up to 2.33112 rad = 133.56 degrees, and not beyond."""

    def value(self, omega, encoded):
        return (3 - omega[..., :3, :3].diagonal(dim1=-2, dim2=-1).sum(-1)) / 2 + 0 * self.log_beta


@pytest.mark.parametrize(("radius", "violated"), [(133.0, False), (150.0, True)])
def test_dlc_of_the_energy_sees_where_an_energy_stops_being_star_convex(radius, violated):
    table = {"radius_deg": radius, "samples": 200, "mu": 0.0, "fractions": [0.5, 0.99]}
    losses = _losses.RegistrationLosses(
        Cosine(), recipe(dlc="energy", loss={"contrastive": 0.0, "unrolled": 0.0, "matching": 0.0}, convexify=table)
    )
    value, figures = losses.term("dlc", (None, at_identity(8)), None, draw(8))
    assert (value.item() > 1e-4) == violated
    assert (figures["dlc_violation"] > 0) == violated


def test_on_the_label_side_the_chord_has_no_gradient_to_the_network_where_the_label_moves_in_a_straight_line():
    """By algebra it is -lam (1 - lam) |xi|^2 whatever was predicted (and mu / 2 times that beside it)."""
    network = tiny()
    only = {"contrastive": 0.0, "unrolled": 0.0, "matching": 0.0}
    table = {"space": "entries", "mu": 4.0, "terms": ["chord"], "rho": 1.0}
    given = recipe(dlc="label", loss=only, convexify=table)
    pairs = PairDataset(blocks(), given.data.make(), 0, 4)
    batch = collate([pairs[i] for i in range(4)])
    total, figures = _losses.RegistrationLosses(network, given)(batch, draw(4))
    total.backward()
    assert figures["dlc_chord"] > 1e-4  # (mu / 2 - 1) lam (1 - lam) |xi|^2
    assert max(p.grad.abs().max().item() for p in network.parameters() if p.grad is not None) < 1e-5
    with_minimum = recipe(dlc="label", loss=only, convexify={**table, "terms": ["minimum"]})
    total, _ = _losses.RegistrationLosses(network, with_minimum)(batch, draw(4))
    total.backward()
    assert network.log_beta.grad.abs() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_every_architecture_trains_with_either_side_and_without_by_one_flag(name):
    """One step changes the network, and the hinges are in the loss exactly where the flag asks for them."""
    pairs = PairDataset(blocks(), recipe().data.make(), 0, 4)
    batch = collate([pairs[i] for i in range(4)])
    for side in ("none", "label", "energy"):
        torch.manual_seed(0)
        network = ARCHITECTURES[name](**SMALL[name]).train()
        before = [p.detach().clone() for p in network.parameters()]
        given = recipe(dlc=side, loss={"matching": 0.0}, convexify={"mu": 1.0, "terms": ["minimum", "chord"]})
        total, figures = _losses.RegistrationLosses(network, given)(batch, draw(4))
        total.backward()
        torch.optim.SGD(network.parameters(), 0.1).step()
        assert total.isfinite() and ("dlc" in figures) == (side != "none")
        assert any(not torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))
        assert all(p.isfinite().all() for p in network.parameters())
