"""What star-convexity says of objectives whose landscapes are known in closed form, and where rays lead."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import special_ortho_group

from dlc_reg.convexify import ConvexifiedLoss, Star, basin_radius, landscape, star_violation, violation_curve
from dlc_reg.errors import InputError
from dlc_reg.manifold import SE3, Euclidean

EDGE = brentq(lambda u: math.tan(u / 2) - u, 2, 3)  # up to where 1 - cos is star-convex


def worst(angle: float) -> float:
    """The largest of (1 - cos(lam u)) - lam (1 - cos u): where its derivative u sin(lam u) - (1 - cos u) vanishes."""
    lam = (math.pi - math.asin((1 - math.cos(angle)) / angle)) / angle
    return 0.0 if lam >= 1 else (1 - math.cos(lam * angle)) - lam * (1 - math.cos(angle))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def point_to_point(omega, data):
    """Mean squared distance of true correspondences, (*lead, B)."""
    p, q = data
    return (p @ omega[..., :3, :3].mT + omega[..., None, :3, 3] - q).square().sum(-1).mean(-1)


def matched(batch: int = 2):
    truth = SE3().retract(SE3().identity((batch,)), randn(batch, 6, seed=1))
    p = randn(batch, 40, 3, seed=2)
    return truth, (p, p @ truth[:, :3, :3].mT + truth[:, None, :3, 3])


def double_well(omega, data):
    """Minima at 1, the truth, and -1."""
    return (omega.square() - 1).square().sum(-1)


# --- the condition ----------------------------------------------------------------------------------------------------


def test_the_edge_is_where_the_design_says():
    assert pytest.approx(2.33112, abs=5e-6) == EDGE


@pytest.mark.parametrize(("angle", "coarse"), [(2.3311, 0.0), (2.34, 2.44e-5), (2.5, 9.70e-3)])
def test_one_minus_cosine(angle, coarse):
    lam = torch.linspace(0, 1, 201, dtype=torch.float64)
    assert star_violation(1 - torch.cos(lam * angle), lam, angle**2, 0.0).max() == pytest.approx(coarse, rel=2e-3)
    lam = torch.linspace(0, 1, 20001, dtype=torch.float64)
    found = star_violation(1 - torch.cos(lam * angle), lam, angle**2, 0.0).max()
    assert found == pytest.approx(worst(angle), rel=1e-4, abs=1e-15)


@pytest.mark.parametrize("angle", [2.3311, 2.34, 2.5])
def test_point_to_point_along_rotations_is_one_minus_cosine(angle):
    """Turning the points q about an axis through the origin moves them by 2 (1 - cos) |q_perpendicular|^2."""
    truth, (p, q) = matched()
    axis = torch.nn.functional.normalize(randn(3), dim=0)
    amplitude = 2 * torch.linalg.cross(axis.expand_as(q), q).square().sum(-1).mean(-1)
    direction = torch.cat([axis, torch.zeros(3)])[None]
    seen = landscape(point_to_point, SE3(), truth, (p, q), directions=direction, extent=angle, steps=2001, chunk=2001)
    torch.testing.assert_close(seen.values[0], (1 - seen.offsets.cos())[:, None] * amplitude, atol=1e-12, rtol=1e-12)
    for b in range(2):
        assert seen.violation[0, :, b].max() / amplitude[b] == pytest.approx(worst(angle), rel=5e-3, abs=1e-14)


def test_basin_of_rotations_ends_at_the_edge():
    truth, data = matched()
    options = {"radius": 2.6, "scale": (1, 1, 1, 0, 0, 0), "steps": 520, "directions": 4, "chunk": 500}
    each = basin_radius(point_to_point, SE3(), truth, data, pooled=False, **options)
    # a grid of this step sees the violation when the ray's last interval lies beyond the edge
    assert each.shape == (2,) and ((each >= EDGE - 0.005) & (each < EDGE + 0.012)).all()
    assert basin_radius(point_to_point, SE3(), truth, data, **options) == each[0]
    assert basin_radius(point_to_point, SE3(), truth, data, **{**options, "radius": 2.0}) == 2.0


@given(st.integers(0, 10**6), st.floats(0.1, 5), st.floats(0, 8))
def test_quadratics(seed, smallest, mu):
    """The curvature on a ray is k = xi^T H xi / |xi|^2, and the violation (mu - k)+ / 2 lam (1 - lam) |xi|^2."""
    rotation = torch.from_numpy(special_ortho_group.rvs(3, random_state=seed))
    H = rotation @ torch.diag(torch.tensor([smallest, smallest + 1, smallest + 3], dtype=torch.float64)) @ rotation.T
    rays = torch.cat([randn(5, 3, seed=seed), rotation[:, :1].T])  # the last along the smallest curvature
    lam = torch.linspace(0, 1, 11, dtype=torch.float64)
    points = lam[:, None] * rays[:, None]
    values, radius2 = 0.5 * (points @ H * points).sum(-1) + 7, rays.square().sum(-1)
    found = star_violation(values, lam, radius2, mu)
    lack = (mu - (rays @ H * rays).sum(-1) / radius2).clamp(min=0) / 2 * radius2
    shape = torch.cat([lam * (1 - lam), lam.new_zeros(0)])
    shape[-1] = 1  # the minimum condition
    torch.testing.assert_close(found, lack[:, None] * shape, atol=1e-11, rtol=1e-9)
    assert (found.max() < 1e-12) if mu < smallest - 1e-9 else True
    assert (found[-1, 1:].min() > 0) if mu > smallest + 1e-9 else True


def test_double_well():
    """l(1 - u) = u^2 (2 - u)^2, whose chords from u = 0 hold while u l' - l = u^2 (2 - u)(2 - 3u) >= 0: to u = 2/3."""
    truth, lam = torch.ones(1, dtype=torch.float64), torch.linspace(0, 1, 101, dtype=torch.float64)
    found = star_violation(double_well((1 - 2 * lam)[:, None], None), lam, 4.0)
    torch.testing.assert_close(found[:-1], (2 * lam).square()[:-1] * (2 - 2 * lam).square()[:-1])  # over a flat chord
    assert found[-1] == 0  # the bad minimum is as low as the truth
    options = {"radius": 2.0, "steps": 1200, "directions": 40, "generator": generator(), "chunk": 10**6}
    assert basin_radius(double_well, Euclidean(1), truth, None, **options) == pytest.approx(2 / 3, abs=4e-3)
    options["generator"].manual_seed(0)
    lengths, shares = violation_curve(double_well, Euclidean(1), truth, None, **options)
    left = (randn(40, 1) < 0).double().mean()  # as `Neighbourhood.normal` draws; rays to the right never violate
    torch.testing.assert_close(shares[lengths > 0.7], left.expand(int((lengths > 0.7).sum())))


def test_a_minimum_beside_the_truth_can_be_forgiven():
    """(x - 0.01)^2 is not lowest at 0: rays to the right violate the minimum to 0.02, and the chord nowhere."""
    options = {"radius": 1.0, "steps": 200, "directions": 30, "generator": generator()}
    beside = (lambda omega, data: (omega[..., 0] - 0.01).square(), Euclidean(1), torch.zeros(1).double(), None)
    assert basin_radius(*beside, **options) == 0
    assert basin_radius(*beside, **options, shortest=0.015) == 0
    assert basin_radius(*beside, **options, shortest=0.025) == 1


def test_first_order_form_in_closed_form():
    """1 - cos(lam u): l(1) - l(0) - dl/dlam = 1 - cos u - u sin u. A quadratic of curvature k: (mu - k)/2 |xi|^2."""
    truth = torch.zeros(1, 1, dtype=torch.float64)
    for derivative in ("reverse", "forward"):
        options = {"radius": 1.0, "terms": ("first_order",), "derivative": derivative}
        waves = ConvexifiedLoss(lambda omega, data: 1 - omega[..., 0].cos(), Euclidean(1), **options)
        for u in (1.0, 2.3311, 2.34, 3.0):
            star = Star(truth, torch.full((1, 1, 1), u, dtype=torch.float64), torch.ones(1, 1))
            expected = max(0.0, 1 - np.cos(u) - u * np.sin(u))
            assert waves(truth, None, star=star).total.item() == pytest.approx(expected, abs=1e-12)
        bowl = ConvexifiedLoss(lambda omega, k: k / 2 * omega[..., 0].square(), Euclidean(1), mu=3.0, **options)
        assert bowl(truth, 2.0, star=star).total.item() == pytest.approx((3 - 2) / 2 * 9)
        assert bowl(truth, 3.1, star=star).total.item() == 0


def test_first_order_and_chord_end_at_the_same_radius():
    options = {"radius": 1.0, "terms": ("chord", "first_order"), "fraction": 0.999, "check_finite": False}
    loss = ConvexifiedLoss(lambda omega, data: 1 - omega[..., 0].cos(), Euclidean(1), **options)
    truth = torch.zeros(1, 1, dtype=torch.float64)
    for u, violated in ((2.32, False), (2.34, True)):
        star = Star(truth, torch.full((1, 1, 1), u, dtype=torch.float64), torch.full((1, 1), 0.999))
        terms = loss(truth, None, star=star).terms
        assert (terms["chord"] > 0) == violated and (terms["first_order"] > 0) == violated
        assert terms["violation"] == violated


def test_a_constant_violates_nothing_but_strong_convexity():
    lam = torch.tensor([0, 0.3, 1])
    assert (star_violation(torch.full((4, 3), 1e6), lam, torch.ones(4)) == 0).all()
    torch.testing.assert_close(star_violation([5.0, 5.0, 5.0], lam, 2.0, 3.0), torch.tensor([0, 3 * 0.21, 3]))


def test_half_precision_is_judged_in_single():
    values = torch.tensor([1.0, 1.5, 1.0], dtype=torch.bfloat16)
    assert star_violation(values, [0, 0.5, 1], 1.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "fractions"), [([1.0], [0.0]), ([1.0, 2.0], [0.0, 0.5]), ([1.0, 2.0], [0.1, 1.0]), ([1.0, 2.0], [0.0])]
)
def test_fractions_run_from_the_truth_to_the_end(values, fractions):
    with pytest.raises(InputError, match="fractions"):
        star_violation(values, fractions, 1.0, 0.0)


# --- charts -----------------------------------------------------------------------------------------------------------


def chart_loss(objective, manifold, truth, star, mu=0.0, data=None):
    every = ("chord", "minimum", "descent", "first_order", "minimum_at_fraction")
    loss = ConvexifiedLoss(objective, manifold, radius=1.0, mu=mu, terms=every)
    return torch.stack([*loss(truth, data, star=star).terms.values()])


@given(st.integers(0, 10**6))
def test_a_linear_change_of_coordinates_changes_nothing_without_mu(seed):
    """y = A x + b carries rays to rays; |xi| is kept by rotations only, and with it the meaning of mu."""
    A, b = randn(2, 2, seed=seed) + 3 * torch.eye(2, dtype=torch.float64), randn(2, seed=seed + 1)
    truth, tangents = randn(3, 2, seed=seed + 2), randn(4, 3, 2, seed=seed + 3)
    lam = torch.rand(4, 3, generator=generator(), dtype=torch.float64)

    def bumpy(x, data):
        return x.sin().sum(-1) + x.square().sum(-1) / 4

    def elsewhere(y, data):
        return bumpy(torch.linalg.solve(A, (y - b)[..., None])[..., 0], data)

    here, there = Star(truth, tangents, lam), Star(truth @ A.T + b, tangents @ A.T, lam)
    expected = chart_loss(bumpy, Euclidean(2), truth, here)
    torch.testing.assert_close(chart_loss(elsewhere, Euclidean(2), there.center, there), expected)
    strong = chart_loss(elsewhere, Euclidean(2), there.center, there, mu=1.0)
    assert not torch.allclose(strong, chart_loss(bumpy, Euclidean(2), truth, here, mu=1.0))
    A = torch.linalg.qr(A).Q
    turned = Star(truth @ A.T + b, tangents @ A.T, lam)
    torch.testing.assert_close(
        chart_loss(elsewhere, Euclidean(2), turned.center, turned, mu=1.0),
        chart_loss(bumpy, Euclidean(2), truth, here, mu=1.0),
    )


def test_another_origin_of_the_target_changes_nothing_without_mu():
    """T -> S T carries the ray exp(lam xi) T* to the ray exp(lam Ad_S xi) S T*, whose |xi| is another."""
    truth, (p, q) = matched()
    S = SE3().retract(SE3().identity(), randn(6, seed=5))
    tangents, lam = 1.5 * randn(4, 2, 6, seed=6), torch.rand(4, 2, generator=generator(), dtype=torch.float64)
    turned, shift = tangents[..., :3] @ S[:3, :3].T, tangents[..., 3:] @ S[:3, :3].T
    adjoint = torch.cat([turned, shift + torch.linalg.cross(S[:3, 3].expand_as(turned), turned)], dim=-1)
    here, there = Star(truth, tangents, lam), Star(S @ truth, adjoint, lam)
    moved = (p, q @ S[:3, :3].T + S[:3, 3])
    expected = chart_loss(point_to_point, SE3(), truth, here, data=(p, q))
    assert expected[1] > 0.01 and expected[4] > 0.01  # chord, first order: there is something to compare
    torch.testing.assert_close(chart_loss(point_to_point, SE3(), S @ truth, there, data=moved), expected)
    strong = chart_loss(point_to_point, SE3(), S @ truth, there, mu=1.0, data=moved)
    assert not torch.allclose(strong, chart_loss(point_to_point, SE3(), truth, here, mu=1.0, data=(p, q)))


def test_charts_that_bend_rays_are_different_conditions():
    """exp and Euler angles agree on where a short ray leads, to first order, and no further."""
    truth, data = matched()
    tangents, lam = 1.5 * randn(4, 2, 6, seed=6), torch.full((4, 2), 0.5).double()
    star = Star(truth, tangents, lam)
    exp, euler = (chart_loss(point_to_point, SE3(chart), truth, star, data=data) for chart in ("exp", "euler"))
    assert not torch.allclose(exp, euler, rtol=1e-2)


# --- landscapes -------------------------------------------------------------------------------------------------------


def test_landscape_is_the_objective_there():
    truth, data = matched()
    directions = randn(3, 6)
    seen = landscape(point_to_point, SE3(), truth, data, directions=directions, extent=2.0, steps=5, chunk=4)
    assert seen.values.shape == seen.violation.shape == (3, 5, 2) and seen.offsets.tolist() == [0, 0.5, 1, 1.5, 2]
    plane = landscape(point_to_point, SE3(), truth, data, directions=directions[:2], steps=5, plane=True, chunk=7)
    assert plane.values.shape == (5, 5, 2) and plane.violation is None
    assert plane.offsets.tolist() == [-1, -0.5, 0, 0.5, 1]
    for d, s in np.ndindex(3, 5):
        expected = point_to_point(SE3().retract(truth, seen.offsets[s] * directions[d].expand(2, 6)), data)
        torch.testing.assert_close(seen.values[d, s], expected)
    for i, j in np.ndindex(5, 5):
        xi = plane.offsets[i] * directions[0] + plane.offsets[j] * directions[1]
        torch.testing.assert_close(plane.values[i, j], point_to_point(SE3().retract(truth, xi.expand(2, 6)), data))
    strong = landscape(point_to_point, SE3(), truth, data, directions=directions, extent=2.0, steps=5, mu=3.0)
    radius2 = 4 * directions.square().sum(-1)
    for d, b in np.ndindex(3, 2):
        by_hand = star_violation(strong.values[d, :, b], [0, 0.25, 0.5, 0.75, 1], radius2[d], 3.0)
        torch.testing.assert_close(strong.violation[d, :, b], by_hand)
        assert by_hand.max() > 0
    own = landscape(point_to_point, SE3(), truth, data, directions=randn(3, 2, 6), steps=3)
    xi = randn(3, 2, 6)[1]
    torch.testing.assert_close(own.values[1, 2], point_to_point(SE3().retract(truth, xi), data))


def test_landscapes_refuse_what_they_cannot_show():
    truth, data = matched()
    with pytest.raises(InputError, match="directions"):
        landscape(point_to_point, SE3(), truth, data, directions=randn(3, 5))
    with pytest.raises(InputError, match="directions"):
        landscape(point_to_point, SE3(), truth, data, directions=randn(3, 6), plane=True)
    with pytest.raises(InputError, match="NaN"):
        basin_radius(lambda omega, data: omega[..., 0].log(), Euclidean(1), torch.ones(1), None, radius=2.0)
    with pytest.raises(InputError, match="objective"):
        basin_radius(lambda omega, data: omega, Euclidean(1), torch.ones(1), None, radius=2.0)
