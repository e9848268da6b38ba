"""Training of image features: pairs that are what they say, terms against formulas, and short runs of every column."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import picture

from dlc_reg._image_pairs import ImagePairs, Pictures, collate_images, draw_homography
from dlc_reg._images_losses import (
    MANIFOLD,
    CornerBox,
    ImageLosses,
    corner_loss,
    encode_pairs,
    label_loss,
    moved,
    tangents_of,
)
from dlc_reg._images_training import TASK
from dlc_reg._rays import Neighbourhood
from dlc_reg._terms import Draw
from dlc_reg._warping import corners, normaliser, project, warp
from dlc_reg.errors import InputError
from dlc_reg.networks.images import LEVELS, FeatureEncoder, Gradients, Intensity
from dlc_reg.training import build_network, make_recipe, train

TINY = {
    "task": "images",
    "network": {"widths": [4, 6, 8], "out": 3},
    "data": {"size": 48, "zoom": 1.0},
    "optimizer": {"steps": 2, "batch": 2, "warm_up": 1},
    "loss": {"contrastive": 1.0, "negatives": 2, "unrolled_steps": 2},
    "convexify": {"samples": 1},
    "validation": {"every": 2, "pairs": 2, "iterations": 3},
}


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    grey = [picture((72, 80), seed=seed).numpy() for seed in range(4)]
    stack = np.stack([np.clip(128 + 100 * image, 0, 255).astype(np.uint8) for image in grey])
    colour = np.repeat(stack[..., None], 3, axis=-1)
    names = np.array([f"p{k}" for k in range(4)])
    return Pictures(colour, None, names, np.array(["train", "train", "train", "val"]), np.full(4, "formula"))


def pairs(pictures: Pictures, **options) -> ImagePairs:
    return ImagePairs(pictures, 5, 6, **{"size": 48, "photometric": 0.0, **options})


def draw() -> Draw:
    return Draw(torch.Generator().manual_seed(0), 3, 0, 3)


def test_the_truth_maps_the_template_onto_the_input(pictures):
    for item in (0, 3):
        pair = pairs(pictures)[item]
        seen, covered = warp(pair.source[None].double(), pair.truth[None], (48, 48))
        difference = (seen[0] - pair.target.double()).abs()[:, covered[0]]
        assert covered.float().mean() > 0.2 and difference.median() < 0.02


@pytest.mark.parametrize("zoom", [1.0, 1.5])
def test_zooming_keeps_places(pictures, zoom):
    pair = pairs(pictures, zoom=zoom)[1]
    seen, covered = warp(pair.source[None].double(), pair.truth[None], (48, 48))
    assert (seen[0] - pair.target.double()).abs()[:, covered[0]].median() < 0.03


def test_corners_are_off_by_at_most_a_sixth(pictures):
    rng = np.random.default_rng(0)
    square = corners((128, 128)) + 32
    off = torch.stack([project(draw_homography(192, rng), corners((128, 128))) - square for _ in range(200)])
    assert 30 < off.abs().max() <= 32.0 + 1e-9 and off.mean().abs() < 1.5


def test_a_pair_is_determined_by_seed_and_item(pictures):
    first, second = (pairs(pictures, photometric=1.0)[4] for _ in range(2))
    assert torch.equal(first.source, second.source) and torch.equal(first.truth, second.truth)
    assert not torch.equal(first.truth, pairs(pictures)[3].truth)
    assert first.source.min() >= 0 and first.source.max() <= 1


def test_the_answer_is_not_in_the_images(pictures):
    """Where the corners were is not told by the template's frame: its border is the picture's own."""
    pair = pairs(pictures)[2]
    assert (pair.source[:, 0] == 0).float().mean() < 0.5 and (pair.target[:, 0] == 0).float().mean() < 0.5


def test_splits_are_by_picture(pictures, tmp_path):
    training, held_out = TASK.sets(make_recipe(TINY), pictures)
    assert not set(training.pictures.name) & set(held_out.pictures.name)
    with pytest.raises(InputError, match="name"):
        replace(pictures, name=np.full(4, "one"))
    np.savez(tmp_path / "p.npz", **{k: getattr(pictures, k) for k in ("picture", "name", "split", "licence")})
    assert Pictures.load(tmp_path / "p.npz").checksum == pictures.checksum
    with pytest.raises(InputError, match="path"):
        Pictures.load(tmp_path / "none.npz")


def test_tangents_move_corners():
    displacement = 1e-4 * torch.randn(5, 8, dtype=torch.float64)
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    there = project(torch.linalg.matrix_exp(MANIFOLD.hat(tangents_of(displacement))), square)
    torch.testing.assert_close((there - square).flatten(1), displacement, atol=1e-7, rtol=1e-3)


def test_rays_stay_in_the_box_of_corners():
    near = Neighbourhood(torch.eye(3).expand(6, 3, 3), MANIFOLD, torch.full((8,), 0.3))
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    from dlc_reg._alignment_objective import motion

    displaced = CornerBox(0.1)(50, near) @ motion(square).reshape(8, 8).mT
    assert displaced.abs().max() <= 0.3 + 1e-6 and displaced.abs().amax(-1).min() < 0.06


def test_encoded_truths_are_the_pairs(pictures):
    batch = collate_images([pairs(pictures)[k] for k in range(3)])
    encoded = encode_pairs(FeatureEncoder((4, 6, 8), 3), batch)
    assert len(encoded.levels) == LEVELS
    points = corners((32, 32))
    there = project(batch.truth, points)
    whole, template = normaliser((48, 48)), normaliser((32, 32))
    back = project(torch.linalg.inv(template) @ encoded.truth.double() @ whole, there)
    torch.testing.assert_close(back, points.expand_as(back), atol=1e-3, rtol=0)


def test_losses_vanish_at_the_truth(pictures):
    batch = collate_images([pairs(pictures)[k] for k in range(3)])
    truth = encode_pairs(Gradients(), batch).truth  # type: ignore[arg-type]
    assert corner_loss(truth, truth).max() < 1e-5
    others = moved(truth, 0.5, draw(), 4)
    assert others.shape == (4, 3, 3, 3) and corner_loss(others, truth).min() > 0.01
    torch.testing.assert_close(label_loss(others, truth), corner_loss(others, truth), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dlc", ["none", "energy", "label"])
def test_every_column_trains(pictures, tmp_path, dlc):
    recipe = make_recipe({**TINY, "dlc": dlc})
    result = train(recipe, pictures, tmp_path / dlc)
    assert np.isfinite(list(result.figures.values())).all() and set(TASK.figures) < set(result.figures)
    assert {"contrastive", "unrolled"} < set(result.costs)
    path = tmp_path / "w.safetensors"
    TASK.save(path, result.network, {})
    from dlc_reg.alignment import load_features

    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_features(path)(image, 1), result.network(image, 1))


def test_terms_have_gradients_and_processes_share_them(pictures):
    recipe = make_recipe({**TINY, "dlc": "energy"})
    batch = collate_images([pairs(pictures)[k] for k in range(2)])
    parts = []
    for rows in ((0, 2), (0, 1), (1, 2)):
        losses = ImageLosses(build_network(recipe), recipe)
        part = collate_images([pairs(pictures)[k] for k in range(*rows)])
        total, _ = losses(part, Draw(torch.Generator().manual_seed(1), 2, *rows))
        total.backward()
        parts.append((total, next(losses.network.parameters()).grad))
    assert len(batch.truth) == 2 and parts[0][1].abs().max() > 0
    # unrolled steps magnify the rounding that another batch size brings
    torch.testing.assert_close((parts[1][0] + parts[2][0]) / 2, parts[0][0], rtol=3e-3, atol=0)
    both, whole = ((parts[1][1] + parts[2][1]) / 2).flatten(), parts[0][1].flatten()
    assert torch.nn.functional.cosine_similarity(both, whole, dim=0) > 0.99


def test_the_shipped_size_of_the_encoder():
    assert sum(p.numel() for p in FeatureEncoder().parameters()) < 150_000


@pytest.mark.parametrize("features", [FeatureEncoder((4, 6, 8), 3), Gradients(), Intensity()])
def test_levels_halve(features):
    image = torch.rand(2, 3, 45, 38)
    maps = features(image, 0)
    assert [tuple(m.shape[-2:]) for m in maps] == [(45, 38), (22, 19), (11, 9)]


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("loss", "temperature", 0.0),
        ("loss", "start_reach", [0.0, 0.0]),
        ("convexify", "reach", [0.0, 0.0, 0.0]),
        ("data", "size", 10),
        ("network", "widths", [1, 2]),
    ],
)
def test_bad_recipes(table, key, value):
    with pytest.raises(InputError):
        build_network(make_recipe({**TINY, table: {**TINY[table], key: value}}))
