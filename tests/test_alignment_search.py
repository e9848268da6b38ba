"""Starts of an alignment: correlations against NumPy's, votes among wrong matches, and the grid of similarities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pictures import perturbed, picture

from dlc_reg._alignment_search import (
    APART,
    MATCHES,
    Matches,
    agreed,
    best_apart,
    correlations,
    cut,
    distinct,
    peaks,
    search,
    similarities,
    support,
)
from dlc_reg._warping import corner_error, homography_from_points, normaliser, project
from dlc_reg.networks.images import Gradients

DOUBLE = torch.float64
EYE = torch.eye(3, dtype=DOUBLE)


def test_correlations_are_normalised_sums():
    rng = torch.Generator().manual_seed(0)
    maps, patches = torch.randn(3, 11, 13, generator=rng), torch.randn(4, 3, 5, 5, generator=rng)
    patches -= patches.mean((-2, -1), keepdim=True)
    mask = torch.ones(11, 13)
    mask[8:, 9:] = 0
    found = correlations(patches, maps, mask)
    assert found.shape == (4, 7, 9)
    for p, y, x in np.ndindex(*found.shape):
        window = maps[:, y : y + 5, x : x + 5].double().numpy()
        part = patches[p].double().numpy()
        if mask[y : y + 5, x : x + 5].mean() <= 0.9:
            assert found[p, y, x] == -1
            continue
        spread = ((window - window.mean((1, 2), keepdims=True)) ** 2).sum()
        expected = (part * window).sum() / np.sqrt((part**2).sum() * (spread + 0.1 * 25))
        assert float(found[p, y, x]) == pytest.approx(expected, abs=1e-5)


def test_a_patch_is_found_where_it_was_cut():
    """Also under a mask, which takes away the patches it touches."""
    maps = torch.randn(1, 4, 40, 48, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 1, 80, 96)
    mask[..., :16, :] = 0
    patches, middles = cut(maps, mask, normaliser((80, 96)))
    score, place = peaks(correlations(patches, maps[0], torch.ones(40, 48)), patches)
    at = project(normaliser((80, 96)), 2 * place[:, 0] + 0.5)
    assert not score[:5].any() and bool((score[5:, 0] > 0.9).all()) and bool((score[5:, 1] < 0.7).all())
    torch.testing.assert_close(at[5:], middles[5:])


def crowd(share: float, seed: int = 0) -> tuple[Matches, torch.Tensor]:
    """Matches of which some patches have the true one among six, under a strong perspective; and the truth."""
    rng = torch.Generator().manual_seed(seed)
    line = torch.linspace(-0.8, 0.8, 5, dtype=DOUBLE)
    patch = torch.cartesian_prod(line, line)
    truth = torch.tensor([[0.7, 0.1, 0.05], [-0.15, 0.6, -0.1], [0.2, -0.15, 1]], dtype=DOUBLE)
    place = 2 * torch.rand(25, MATCHES, 2, generator=rng, dtype=DOUBLE) - 1
    right = torch.arange(25) < round(25 * share)
    noisy = project(truth, patch) + 0.01 * torch.randn(25, 2, generator=rng, dtype=DOUBLE)
    place[right, 2] = noisy[right]
    score = 0.4 + 0.2 * torch.rand(25, MATCHES, generator=rng, dtype=DOUBLE)
    return Matches(patch, place, score, EYE.expand(25, MATCHES, 3, 3)), truth


@pytest.mark.parametrize("share", [1.0, 0.7, 0.4])
def test_what_agrees_is_found_among_what_does_not(share):
    found, truth = crowd(share)
    answer = agreed(found, (EYE, EYE), 1.5, 12)
    assert len(answer) <= 12
    square = torch.tensor([[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]], dtype=DOUBLE)
    off = (project(torch.linalg.inv(answer), square) - project(truth, square)).norm(dim=-1).mean(-1)
    assert float(off[0]) < 0.03


def test_support_is_the_sum_of_what_agrees_and_nothing_for_what_folds():
    found, truth = crowd(1.0)
    exact = found._replace(place=project(truth, found.patch)[:, None])
    exact = exact._replace(score=exact.score[:, :1])
    mirrored = truth @ torch.diag(torch.tensor([-1.0, 1, 1], dtype=DOUBLE))
    folded = truth.clone()
    folded[2, 0] = 1.2
    total, each, which = support(torch.stack([truth, mirrored, folded, 1e-3 * truth]), exact, (0.1, 10))
    assert float(total[0]) == pytest.approx(float(exact.score.sum())) and total[1:3].tolist() == [0, 0]
    assert float(total[3]) == pytest.approx(float(total[0]))  # a homography has no scale
    assert each.shape == which.shape == (4, 25)
    assert support(truth[None], exact, (5, 10))[0].item() == 0


def test_matches_of_a_patch_are_apart():
    found, _ = crowd(0.5)
    near = found._replace(place=found.place * 0.1)
    for kept in (best_apart(found), best_apart(near)):
        assert float(kept.score[:, 0].min()) > 0.4
        for p in range(25):
            real = kept.place[p][kept.score[p] > 0]
            distance = torch.cdist(real, real) + torch.eye(len(real)) * 9
            assert float(distance.min()) >= APART


def test_homographies_from_many_points():
    truth = torch.tensor([[1.1, 0.2, 3], [-0.1, 0.9, 1], [0.01, 0.02, 1]], dtype=DOUBLE)
    points = torch.rand(2, 9, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    there = project(truth, points)
    weight = torch.ones(2, 9, dtype=DOUBLE)
    torch.testing.assert_close(homography_from_points(points, there, weight), truth.expand(2, 3, 3))
    there[:, 3], weight[:, 3] = 77.0, 0.0
    torch.testing.assert_close(homography_from_points(points, there, weight), truth.expand(2, 3, 3))


def test_the_search_sees_through_a_perspective():
    """Corners off by a third of the side: no similarity is near."""
    size, whole = (96, 96), (144, 144)
    truth = perturbed(size, 20.0, seed=5, offset=24.0)
    template, image = (p.float()[None, None] for p in (picture(size, truth), picture(whole)))
    masks = torch.ones_like(image), torch.ones_like(template)
    places = normaliser(whole), normaliser(size)
    features = Gradients(directions=2, signed=True)
    found = search(lambda x, _: features(x)[1], image, template, masks, places, 30.0, 1.5, 24)
    back = torch.linalg.inv(places[1]) @ found @ places[0]
    error = corner_error(torch.linalg.inv(back), truth.expand_as(back), size)
    assert 1 < len(found) <= 25 and float(error[:3].min()) < 6


def test_without_texture_the_start_is_the_middle():
    flat = torch.zeros(1, 1, 40, 40)
    features = Gradients(directions=2, signed=True)
    places = normaliser((40, 40)), normaliser((40, 40))
    found = search(lambda x, _: features(x)[1], flat, flat, (flat + 1, flat + 1), places, 0.0, 1.0, 24)
    torch.testing.assert_close(found, EYE[None])


def test_distinct_keeps_the_first_of_those_alike():
    moved = EYE.expand(4, 3, 3).clone()
    moved[:, 0, 2] = torch.tensor([0.0, 0.05, 0.5, 0.52])
    assert distinct(moved, 9, apart=0.1) == [0, 2] and distinct(moved, 1, apart=0.1) == [0]


def test_the_grid_of_similarities_reaches_as_far_as_asked():
    grid = similarities(30, 1.5)
    assert max(math.degrees(a) for a, _ in grid) == pytest.approx(30) and max(s for _, s in grid) == pytest.approx(1.5)
    assert (0.0, 1.0) in [(round(a, 9), round(s, 9)) for a, s in grid] and similarities(0, 1) == [(0.0, 1.0)]
