"""`align_images`: known homographies, every kind of input, bad input, and answers that must not be trusted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pictures import perturbed, picture

from dlc_reg.alignment import align_images, corner_error
from dlc_reg.errors import InputError

SIZE, WHOLE = (96, 112), (144, 160)


@pytest.fixture(scope="module")
def pair():
    """(source, target, truth): the source is seen through a homography that is 12 pixels off a shift."""
    truth = perturbed(SIZE, 12.0, seed=3, offset=22.0)
    return picture(SIZE, truth).numpy(), picture(WHOLE).numpy(), truth


def bytes_of(image):
    low, high = image.min(), image.max()
    return np.rint((image - low) / (high - low) * 255).astype(np.uint8)


def error(result, truth) -> float:
    return float(corner_error(torch.from_numpy(result.homography), truth, SIZE))


def test_it_finds_the_homography_under_a_change_of_tones(pair):
    source, target, truth = pair
    result = align_images(3 - 0.1 * np.exp(-source), target)
    assert error(result, truth) < 0.5 and result.verdict == "aligned", result
    assert result.homography[2, 2] == 1 and result.homography.dtype == np.float64
    assert result.evidence["overlap"] > 0.99 and result.history and result.correlation > 0.5
    warped, covered = result.warped, result.covered
    assert warped.shape == WHOLE and covered.shape == WHOLE and not warped[~covered].any()
    json.loads(result.to_json())
    assert "aligned" in str(result)


def test_the_other_way_round_is_the_inverse(pair):
    source, target, truth = pair
    result = align_images(target, source)
    assert float(corner_error(torch.linalg.inv(torch.from_numpy(result.homography)), truth, SIZE)) < 0.5
    assert result.settings["template"] == "target"


def test_a_negative_is_the_same_edges(pair):
    source, target, truth = pair
    result = align_images(-source, target)
    assert error(result, truth) < 0.5
    assert result.settings["method"] == "gradients" and result.settings["tried"] == ["signed", "gradients"]


def test_init_is_the_start(pair):
    source, target, truth = pair
    off = truth.clone()
    off[:2, 2] += 3.0
    result = align_images(source, target, init=off, method="intensity")
    assert error(result, truth) < 0.5 and result.verdict == "aligned", result
    assert result.settings["init"] is True


def test_kinds_of_input_give_one_answer(pair):
    source, target, _ = pair
    grey = bytes_of(source), bytes_of(target)
    first = align_images(*grey, init=pair[2])
    colour = [np.repeat(image[..., None], 3, axis=-1) for image in grey]
    others = [
        [torch.from_numpy(np.moveaxis(image, -1, 0).copy()) for image in colour],
        [image.astype(np.uint16) * 257 for image in grey],
        [image.astype(np.float32) / 255 for image in colour],
        [np.dstack([image, np.full(image.shape, 255, np.uint8)]) for image in grey],
    ]
    for images in others:
        result = align_images(*images, init=pair[2])
        assert error(result, torch.from_numpy(first.homography)) < 0.01
        assert result.warped.dtype == (images[0].numpy().dtype if torch.is_tensor(images[0]) else images[0].dtype)


def test_files(pair, tmp_path):
    image = pytest.importorskip("PIL.Image")
    paths = []
    for name, pixels in zip(("a.png", "b.png"), pair[:2], strict=True):
        image.fromarray(bytes_of(pixels)).save(tmp_path / name)
        paths.append(tmp_path / name)
    result = align_images(str(paths[0]), paths[1], init=pair[2])
    assert error(result, pair[2]) < 0.5
    with pytest.raises(InputError, match="does not exist"):
        align_images(tmp_path / "no.png", paths[1])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match="no image that Pillow"):
        align_images(paths[0], tmp_path / "text.png")
    paths[0].write_bytes(paths[0].read_bytes()[:200])
    with pytest.raises(InputError, match="source"):
        align_images(*paths)


def test_masks_leave_out_what_is_wrong(pair):
    source, target, truth = pair
    spoilt, mask = source.copy(), np.ones(SIZE, bool)
    spoilt[20:50, 30:70], mask[20:50, 30:70] = np.nan, False
    result = align_images(spoilt, target, init=truth, source_mask=mask)
    assert error(result, truth) < 0.5
    with pytest.raises(InputError, match="NaN or infinite"):
        align_images(spoilt, target)


def test_other_pictures_are_not_aligned(pair):
    other = picture((96, 112), seed=77).numpy()
    assert align_images(other, pair[1]).verdict != "aligned"


def test_no_texture_is_not_aligned(pair):
    assert align_images(np.zeros((64, 64)), pair[1]).verdict == "failed"


def test_stripes_leave_a_direction_free():
    rows = np.sin(np.arange(96) / 3.0)[:, None].repeat(96, axis=1)
    assert align_images(rows, rows, init=np.eye(3)).verdict != "aligned"


def test_the_same_bits_each_time():
    images = [picture((48, 48), seed=seed).numpy() for seed in (0, 0)]
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            results.append(align_images(*images, init=np.eye(3)).homography)
        finally:
            torch.set_num_threads(before)
    np.testing.assert_array_equal(*results)


BAD = {
    "a list": ([1, 2, 3], "source"),
    "words": (np.array([["a"] * 20] * 20), "source"),
    "complex": (np.ones((20, 20), complex), "source"),
    "small": (np.ones((8, 20)), "source: got 20 x 8"),
    "five channels": (np.ones((20, 20, 5)), "source: got shape"),
    "a batch": (torch.ones(1, 3, 20, 20), "source: got shape"),
    "transparent": (np.zeros((20, 20, 4)), "source_mask"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images(name):
    image, message = BAD[name]
    with pytest.raises(InputError, match=message):
        align_images(image, np.random.default_rng(0).random((32, 32)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": np.eye(4)}, "init"),
        ({"init": "here"}, "init"),
        ({"init": np.zeros((3, 3))}, "init"),
        ({"init": np.diag([-1.0, 1, 1])}, "mirrors"),
        ({"init": np.full((3, 3), np.nan)}, "finite"),
        ({"method": "magic"}, "method"),
        ({"max_rotation_deg": -1}, "max_rotation_deg"),
        ({"max_scale": 0.5}, "max_scale"),
        ({"max_size": 3}, "max_size"),
        ({"source_mask": np.ones((3, 3), bool)}, "source_mask"),
    ],
)
def test_bad_options(options, message):
    image = np.random.default_rng(0).random((32, 32))
    with pytest.raises(InputError, match=message):
        align_images(image, image, **options)


def test_the_picture(pair, tmp_path):
    pytest.importorskip("matplotlib")
    result = align_images(pair[0], pair[1], init=pair[2])
    result.plot(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("source", "target", "options"),
    [((48, 900), (200, 200), {}), ((30, 1400), (200, 200), {}), ((190, 160), (170, 170), {"max_scale": 4.0})],
)
def test_narrow_and_shrunk_images_hold_no_patch_but_raise_nothing(source, target, options):
    images = picture(source, seed=3).numpy(), picture(target, seed=4).numpy()
    assert align_images(*images, method="signed", **options).verdict != "aligned"
