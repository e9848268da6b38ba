"""Rays: that samplers draw what they say they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from dlc_reg.convexify import (
    Ambient,
    Ball,
    Box,
    ConvexifiedLoss,
    Gaussian,
    Iterates,
    Multiplicative,
    Neighbourhood,
    Scaled,
    SoftmaxNoise,
    Star,
    WorstOf,
)
from dlc_reg.errors import InputError
from dlc_reg.manifold import SE3, Euclidean, Homography, Sim3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def near(center, manifold, radius, score=None):
    return Neighbourhood(center, manifold, center.new_tensor(radius), generator(), score)


def test_a_stars_points():
    center, tangents, lam = (
        Sim3().identity((2,)),
        0.3 * randn(5, 2, 7),
        torch.rand(5, 2, generator=generator(), dtype=torch.float64),
    )
    star = Star(center, tangents, lam)
    for r, b in np.ndindex(5, 2):
        torch.testing.assert_close(star.points(Sim3())[r, b], Sim3().retract(center[b], lam[r, b] * tangents[r, b]))
        torch.testing.assert_close(star.ends(Sim3())[r, b], Sim3().retract(center[b], tangents[r, b]))


def test_ambient_moves_the_free_entries_in_their_order():
    pose = Ambient((4, 4), (0, 1, 2, 4, 5, 6, 8, 9, 10, 3, 7, 11))
    omega, xi = randn(2, 4, 4), randn(5, 2, 12, seed=1)
    moved = pose.retract(omega, xi) - omega
    torch.testing.assert_close(moved[..., :3, :3].flatten(-2), xi[..., :9])
    torch.testing.assert_close(moved[..., :3, 3], xi[..., 9:])
    assert (moved[..., 3, :] == 0).all()
    torch.testing.assert_close(pose.local(omega, omega + moved), xi)
    everything = Ambient((2, 3))
    torch.testing.assert_close(everything.local(randn(2, 3), randn(2, 3) + 1), torch.ones(6, dtype=torch.float64))
    assert (pose.dof, everything.dof) == (12, 6) and everything.identity((5,)).shape == (5, 2, 3)


def test_ball_is_uniform():
    """(|x| / radius)^d is uniform in [0, 1], and so is the sign of every coordinate."""
    xi = Ball()(4000, near(torch.zeros(3, dtype=torch.float64), Euclidean(3), [0.5, 0.5, 0.5]))
    assert kstest((xi.norm(dim=-1) / 0.5).numpy() ** 3, "uniform").pvalue > 1e-3
    assert kstest((xi[:, 0] / xi.norm(dim=-1)).numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3  # Archimedes


def test_ball_of_blocks_draws_each_apart():
    xi = Ball((3, 3))(4000, near(SE3().identity(), SE3(), [0.8] * 3 + [0.2] * 3))
    for part, radius in ((xi[:, :3], 0.8), (xi[:, 3:], 0.2)):
        assert kstest((part.norm(dim=-1) / radius).numpy() ** 3, "uniform").pvalue > 1e-3
    with pytest.raises(InputError, match="blocks"):
        Ball((3, 2))(1, near(SE3().identity(), SE3(), [1.0] * 6))


@pytest.mark.parametrize("sampler", [Ball(), Gaussian(), Box(), Scaled(Ball())])
def test_samplers_leave_coordinates_of_radius_zero(sampler):
    xi = sampler(500, near(SE3().identity((3,)), SE3(), [0.5] * 3 + [0.0] * 3))
    assert xi.shape == (500, 3, 6) and (xi[..., 3:] == 0).all() and (xi[..., :3] != 0).all()
    if sampler == Ball():  # the ball of the three that move
        assert kstest((xi[:, 0].norm(dim=-1) / 0.5).numpy() ** 3, "uniform").pvalue > 1e-3


def test_gaussian_and_box_have_the_radius_as_scale():
    center = torch.zeros(2, dtype=torch.float64)
    gaussian = Gaussian()(4000, near(center, Euclidean(2), [0.5, 2.0])) / torch.tensor([0.5, 2.0])
    box = Box()(4000, near(center, Euclidean(2), [0.5, 2.0])) / torch.tensor([0.5, 2.0])
    for k in range(2):
        assert kstest(gaussian[:, k].numpy(), "norm").pvalue > 1e-3
        assert kstest(box[:, k].numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def test_scaled_has_short_rays():
    center = torch.zeros(8, dtype=torch.float64)
    short = [(s(2000, near(center, Euclidean(8), [1.0] * 8)).norm(dim=-1) < 0.5).double().mean() for s in
             (Ball(), Scaled(Ball(), 0.1, 1))]  # fmt: skip
    assert short[0] < 0.02 and short[1] > 0.4


def test_multiplicative_changes_by_shares():
    center = torch.tensor([[2.0, -3, 0, 1]], dtype=torch.float64)
    xi = Multiplicative(0.02)(3000, near(center, Euclidean(4), [1 / 12] * 3 + [0]))
    share = (xi / center)[:, 0]
    assert (xi[..., 2:] == 0).all()  # nothing of an entry that is 0, and none that is not free
    for k in (0, 1):
        size = share[:, k].abs()
        assert size.min() == pytest.approx(0.02) and size.max() <= 1 / 12
        assert (size < 0.02 + 1e-12).double().mean() == pytest.approx(0.24, abs=0.03)  # 0.02 / (1/12)
        assert (share[:, k] < 0).double().mean() == pytest.approx(0.5, abs=0.03)


def test_softmax_noise_stays_in_the_simplex():
    label = torch.eye(4, dtype=torch.float64)
    ends = label + SoftmaxNoise()(100, near(label, Euclidean(4), [1.0] * 4))
    torch.testing.assert_close(ends.sum(-1), torch.ones(100, 4, dtype=torch.float64))
    assert ends.min() > 0
    noise = randn(100, 4, 4)  # as `Neighbourhood.normal` draws
    torch.testing.assert_close(ends.log().diff(), (label + noise).diff())


@pytest.mark.parametrize("manifold", [SE3(), Sim3(), Homography(), Euclidean(3), Ambient((2, 3))])
def test_iterates_end_where_the_model_was(manifold):
    center = manifold.identity((2,))
    visited = manifold.retract(center, 0.4 * randn(5, 2, manifold.dof))
    place = near(center, manifold, [1.0] * manifold.dof)
    ends = manifold.retract(center, Iterates(visited)(5, place))
    found = [min(range(5), key=lambda k: float((e - visited[k]).abs().max())) for e in ends]
    assert sorted(found) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(ends, visited[found], atol=1e-8, rtol=1e-8)
    assert len(Iterates(visited)(12, place)) == 12


def test_worst_of_takes_the_worst():
    center = torch.zeros(3, 2, dtype=torch.float64)
    place = near(center, Euclidean(2), [1.0, 1.0], score=lambda xi: xi[..., 0])
    worst, tried = WorstOf(4, Box())(5, place), Box()(20, near(center, Euclidean(2), [1.0, 1.0]))
    for s, b in np.ndindex(5, 3):
        torch.testing.assert_close(worst[s, b], max((tried[k * 5 + s, b] for k in range(4)), key=lambda xi: xi[0]))
    with pytest.raises(InputError, match="WorstOf"):
        WorstOf(4)(5, near(center, Euclidean(2), [1.0, 1.0]))


def bumpy(omega, data):
    return (omega.square() - 1).square().sum(-1)


def test_worst_of_finds_more_violation_than_chance():
    truth = torch.ones(64, 1, dtype=torch.float64)
    by_chance = ConvexifiedLoss(bumpy, Euclidean(1), radius=2.0, terms=("chord",), generator=generator())
    searched = ConvexifiedLoss(
        bumpy, Euclidean(1), radius=2.0, terms=("chord",), sampler=WorstOf(8), generator=generator()
    )
    assert searched(truth, None).total > 2 * by_chance(truth, None).total
