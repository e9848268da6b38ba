"""The image objective: geometry against closed forms, derivatives against autograd, the search against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from pictures import perturbed, picture
from torch.nn import functional

from dlc_reg._alignment_objective import VOID, ImageAlignment, coarser, level_of, motion, standardised, thinned
from dlc_reg._warping import (
    corner_error,
    corners,
    homography_from_corners,
    in_front,
    inside,
    normaliser,
    pixel_grid,
    project,
    sample,
    warp,
)
from dlc_reg.convexify import ConvexifiedLoss
from dlc_reg.iterate import Termination, iterate
from dlc_reg.manifold import Homography
from dlc_reg.updates import GaussNewton, LevenbergMarquardt, linearize

DOUBLE = torch.float64


def test_corners_go_where_they_are_sent():
    there = torch.tensor([[3.0, 5], [90, -4], [101, 77], [-6, 60]], dtype=DOUBLE)
    homography = homography_from_corners(corners((50, 80)), there)
    torch.testing.assert_close(project(homography, corners((50, 80))), there)
    batch = homography_from_corners(corners((50, 80)), there.expand(2, 3, 4, 2))
    torch.testing.assert_close(batch, homography.expand(2, 3, 3, 3))


def test_corner_error_is_the_mean_distance():
    truth, moved = torch.eye(3, dtype=DOUBLE), torch.eye(3, dtype=DOUBLE)
    moved[:2, 2] = torch.tensor([3.0, 4.0])
    assert float(corner_error(moved, truth, (20, 30))) == pytest.approx(5)
    behind = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]], dtype=DOUBLE)
    assert math.isinf(corner_error(behind, truth, (20, 30)))


def test_the_horizon():
    points = corners((20, 30))
    assert bool(in_front(-3 * torch.eye(3, dtype=DOUBLE), points).all())  # scale and its sign say nothing
    tilted = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]], dtype=DOUBLE)
    assert in_front(tilted, points).tolist() == [True, False, False, True]


def test_sampling_at_pixel_centres_is_exact_and_border_repeats():
    image = torch.rand(2, 3, 5, 7, dtype=DOUBLE)
    values = sample(image, pixel_grid((5, 7)).expand(4, 2, 35, 2))
    torch.testing.assert_close(values, image.flatten(2).mT.expand(4, 2, 35, 3))
    out = sample(image, torch.tensor([[-3.0, 2.0], [2.5, 100.0]], dtype=DOUBLE).expand(2, 2, 2))
    torch.testing.assert_close(out[:, 0], image[:, :, 2, 0])
    torch.testing.assert_close(out[:, 1], (image[:, :, 4, 2] + image[:, :, 4, 3]) / 2)


def test_warping_by_a_whole_shift():
    image = torch.rand(1, 1, 6, 8, dtype=DOUBLE)
    shift = torch.tensor([[[1.0, 0, 2], [0, 1, 1], [0, 0, 1]]], dtype=DOUBLE)
    seen, covered = warp(image, shift, (6, 8))
    torch.testing.assert_close(seen[0, 0, 1:, 2:], image[0, 0, :-1, :-2])
    assert not covered[0, 0].any() and not covered[0, :, :2].any() and covered[0, 1:, 2:].all()
    assert inside(torch.tensor([float("nan"), 0.0]), (6, 8)).item() is False


def test_averaged_pixels_keep_their_places():
    """The mean of a linear function over a square is its value in the middle."""
    x = pixel_grid((8, 12))[:, 0].reshape(8, 12)
    small = functional.avg_pool2d(x[None, None], 4)[0, 0]
    places = project(torch.linalg.inv(coarser(4)), pixel_grid((2, 3)))
    torch.testing.assert_close(small.flatten(), places[:, 0])


def test_motion_is_the_derivative_of_the_chart():
    points = torch.randn(6, 2, dtype=DOUBLE)
    jacobian = torch.func.jacrev(lambda xi: project(torch.linalg.matrix_exp(Homography.hat(xi)), points))(
        torch.zeros(8, dtype=DOUBLE)
    )
    torch.testing.assert_close(motion(points), jacobian)


def pair(reach: float = 4.0, size: tuple[int, int] = (48, 56), seed: int = 1):
    """A source, its target of 96 x 88, and the truth in normalised coordinates; one channel, float64."""
    truth = perturbed(size, reach, seed)
    source, target = picture(size, truth)[None, None], picture((88, 96))[None, None]
    omega = normaliser((88, 96)) @ truth @ torch.linalg.inv(normaliser(size))
    return source, target, (omega / torch.linalg.det(omega) ** (1 / 3))[None]


def level(source, target):
    """One channel is told in the target's mean and spread, as if both images had them."""
    masks = torch.ones_like(source[:, :1]), torch.ones_like(target[:, :1])
    sizes = (source.shape[-2], source.shape[-1]), (target.shape[-2], target.shape[-1])
    data = level_of(source, target, sizes, 1, masks)
    if source.shape[1] > 1:
        return data
    mean, spread = target.mean((-2, -1), keepdim=True), target.std((-2, -1), keepdim=True, correction=0)
    return data._replace(source=torch.cat([(source - mean) / spread, masks[0]], dim=1))


def as_template():
    """The source as the objective's template, which lies inside the other image: omega maps target into source."""
    source, target, omega = pair()
    return level(target, source), torch.linalg.inv(omega)


def test_the_value_is_the_formula():
    data, truth = as_template()
    residual, weight = ImageAlignment().residual(truth, data)
    e = 0.5 * residual.square().sum(-1)
    void = VOID * weight.shape[-1]
    expected = ((weight * e).sum(-1) + void) / (weight.sum(-1) + void)
    torch.testing.assert_close(ImageAlignment().value(truth, data), expected)
    torch.testing.assert_close(weight, torch.ones_like(weight))


def test_unrelated_features_have_the_value_one():
    noise = torch.randn(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    data = level(noise[0], noise[1])
    value = ImageAlignment().value(torch.eye(3, dtype=DOUBLE).expand(4, 3, 3), data)
    torch.testing.assert_close(value, torch.ones(4, dtype=DOUBLE), atol=0.03, rtol=0)


def test_standardised_features_ignore_gain_offset_and_what_is_masked():
    maps = torch.rand(2, 3, 9, 9, dtype=DOUBLE)
    mask = torch.rand(2, 1, 9, 9) > 0.3
    wild = torch.where(mask, 5 * maps - 2, 1e6)
    torch.testing.assert_close(standardised(wild, mask), standardised(maps, mask), atol=1e-6, rtol=1e-6)


def test_the_linearisation_is_the_template_s():
    """H and b are J^T W J and J^T W r with J, the derivative of f_t(exp(xi) x), by finite differences of the target."""
    data, truth = as_template()
    omega = Homography().retract(truth, torch.full((1, 8), 0.01, dtype=DOUBLE))
    hessian, gradient, record = ImageAlignment().linearize(omega, data)
    residual, weight = ImageAlignment().residual(omega, data)
    jacobian = data.slope[0] @ motion(data.points)  # (P, C, 8)
    share = (weight / (weight.sum(-1, keepdim=True) + VOID * weight.shape[-1]))[0, :, None, None]
    torch.testing.assert_close(hessian[0], (share * (jacobian.mT @ jacobian)).sum(0))
    torch.testing.assert_close(gradient[0], (share[..., 0] * (jacobian.mT @ residual[0, ..., None])[..., 0]).sum(0))
    torch.testing.assert_close(record["value"], ImageAlignment().value(omega, data))


def test_the_step_s_gradient_agrees_with_autograd_where_the_images_agree():
    """At small offsets the template's derivative is the moved image's, so b is E's own gradient."""
    data, truth = as_template()
    omega = Homography().retract(truth, 0.004 * torch.tensor([[1.0, -1, 1, 0, 1, 0, -1, 1]], dtype=DOUBLE))
    xi = torch.zeros(1, 8, dtype=DOUBLE, requires_grad=True)
    (true,) = torch.autograd.grad(ImageAlignment().value(Homography().retract(omega, xi), data).sum(), xi)
    gradient = linearize(ImageAlignment(), Homography(), omega, data).gradient
    cosine = functional.cosine_similarity(true, gradient).item()
    assert cosine > 0.95, (cosine, true, gradient)


def test_the_hessian_is_taken_once():
    data, truth = as_template()
    other = Homography().retract(truth, torch.full((1, 8), 0.005, dtype=DOUBLE))
    first, second = (ImageAlignment().linearize(omega, data)[0] for omega in (truth, other))
    torch.testing.assert_close(first, second)  # the template lies wholly inside, so that no weight changes


@pytest.mark.parametrize("rule", [GaussNewton, LevenbergMarquardt])
def test_steps_find_the_truth(rule):
    data, truth = as_template()
    start = Homography().retract(truth, 0.02 * torch.tensor([[1.0, -1, 1, 0.5, 1, 0, -1, 1]], dtype=DOUBLE))
    solution = iterate(ImageAlignment(), rule(Homography()), start, data, termination=Termination(20))
    away = [Homography().local(truth, omega).norm().item() for omega in (start, solution.omega)]
    assert away[1] < 0.05 * away[0], away


def test_lead_dimensions_are_the_same_values_in_one_call():
    source, target, omega = pair()
    both = level(torch.cat([target, target.flip(-1)]), torch.cat([source, source.flip(-1)]))
    poses = Homography().retract(torch.linalg.inv(omega).expand(3, 2, 3, 3), 0.05 * torch.randn(3, 2, 8, dtype=DOUBLE))
    values = ImageAlignment().value(poses, both)
    for k in range(3):
        torch.testing.assert_close(ImageAlignment().value(poses[k], both), values[k])


def test_thinning_leaves_pixels_out():
    data, truth = as_template()
    thin = thinned(data, (48, 56), 2)
    residual, weight = ImageAlignment().residual(truth, data)
    expected = residual.reshape(1, 48, 56, 1)[:, ::2, ::2].flatten(1, 2)
    torch.testing.assert_close(ImageAlignment().residual(truth, thin)[0], expected)
    assert thin.powers.shape == (24 * 28, 6) and weight.shape == (1, 48 * 56)
    hessian = ImageAlignment().linearize(truth, thin)[0]
    assert (
        functional.cosine_similarity(hessian.flatten(), ImageAlignment().linearize(truth, data)[0].flatten(), 0) > 0.9
    )


def test_convexified_loss_takes_it_as_it_is():
    data, truth = as_template()
    loss = ConvexifiedLoss(ImageAlignment(), Homography(), radius=0.2, samples=3, terms=("chord",))
    total = loss(truth, data, generator=torch.Generator().manual_seed(0)).total
    assert bool(torch.isfinite(total))


def test_a_homography_that_cannot_be_inverted_sees_nothing():
    """It must not stop a batch: a step of training or a start may go anywhere."""
    data, truth = as_template()
    flat = torch.stack([truth, torch.zeros_like(truth)])
    value = ImageAlignment().value(flat, data)
    torch.testing.assert_close(value[0], ImageAlignment().value(truth, data))
    assert value[1].tolist() == [1.0]
