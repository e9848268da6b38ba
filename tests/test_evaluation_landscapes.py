"""Landscapes that are known: a cosine's basin, and steps that halve the way."""

from __future__ import annotations

import pytest
import torch
from learning import Tiny, blocks

from dlc_reg import evaluation
from dlc_reg.manifold import SE3
from dlc_reg.protocols import PairDataset


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


class Bowl(Tiny):
    """E = 1 - cos of the angle to the truth, which it has been told: its basin ends at 133.56 degrees."""

    truth: torch.Tensor
    rate = 0.5

    def value(self, omega, encoded):
        delta = self.truth[..., :3, :3].mT @ omega[..., :3, :3]
        return (3 - delta.diagonal(dim1=-2, dim2=-1).sum(-1)) / 2

    def step(self, omega, encoded):
        return SE3().retract(omega, self.rate * SE3().local(omega, self.truth))


@pytest.fixture
def bowl():
    pairs = PairDataset(blocks(6, 600), "full-90-90", 0, 3)
    network = Bowl()
    network.truth = torch.stack([pairs[i].truth for i in range(3)])
    return network, pairs


def test_the_basin_of_a_cosine_ends_where_algebra_says(bowl, monkeypatch):
    network, pairs = bowl
    monkeypatch.setattr("dlc_reg._landscapes.TRANSLATION", 0.0)
    assert evaluation.violation_rate(network, pairs, radius_deg=130) == 0
    assert evaluation.violation_rate(network, pairs, radius_deg=150) == 1
    assert evaluation.basin_radius(network, pairs) == pytest.approx(133.56, abs=5)  # looked at every 5 degrees


def test_a_basin_ends_at_the_first_share_that_is_too_large():
    lengths = [5.0, 10.0, 15.0, 20.0, 25.0]
    assert evaluation.basin_of(lengths, [0.9, 0.0, 0.04, 0.2, 0.0]) == 15  # the first is within the noise
    assert evaluation.basin_of(lengths, [0.0, 0.1, 0.0, 0.0, 0.0]) == 0
    assert evaluation.basin_of(lengths, [0.0] * 5) == 25


def test_iterations_to_converge_counts_steps(bowl):
    """Half of what is left a step, from 90 degrees: 90 / 2^8 = 0.35 is the first below 0.5; the shift needs fewer."""
    network, pairs = bowl
    counts = evaluation.iterations_to_converge(network, pairs, most=30)
    assert counts.tolist() == [8, 8, 8]
    assert network.training


def test_slices_show_the_energy_and_where_rays_violate(bowl):
    network, pairs = bowl
    cut = evaluation.slices(network, pairs, directions=4, steps=37)
    cosine = 1 - torch.cos(torch.deg2rad(cut.angles_deg))
    torch.testing.assert_close(cut.rays, cosine.expand(3, 4, 37), atol=1e-5, rtol=1e-5)
    assert not cut.violated[..., cut.angles_deg < 130].any() and cut.violated[..., cut.angles_deg > 142].all()
    x = torch.deg2rad(cut.offsets_deg)
    angle = torch.hypot(x[:, None], x[None, :])
    torch.testing.assert_close(cut.plane, (1 - torch.cos(angle)).expand(3, 37, 37), atol=1e-5, rtol=1e-5)
