"""What `datasets/images.py` and `datasets/leaves.py` prepare, from small folders made here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "datasets"))

import images  # noqa: E402
import leaves  # noqa: E402

from dlc_reg._image_pairs import ImagePairs, Pictures  # noqa: E402

TERMS = ["--licence", "CC0", "--height", "60", "--width", "90"]


def folder(path: Path, shape: tuple[int, int], count: int, suffix: str = "png") -> Path:
    path.mkdir(parents=True)
    for k in range(count):
        pixels = np.random.default_rng(k).integers(256, size=(*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{k}.{suffix}")
    return path


def test_photographs_without_val_hold_out_some_of_train(tmp_path):
    train, test = folder(tmp_path / "a", (80, 120), 24), folder(tmp_path / "b", (120, 80), 2)
    common = ["photographs", "--train", str(train), *TERMS]
    images.main([*common, "--test", str(test), "--output", str(tmp_path / "p.npz")])
    pictures = Pictures.load(tmp_path / "p.npz")
    counts = {split: int((pictures.split == split).sum()) for split in ("train", "val", "test")}
    assert counts["test"] == 2 and counts["train"] + counts["val"] == 24 and 0 < counts["val"] < 9
    assert pictures.picture.shape[1:] == (60, 90, 3) and pictures.partner is None and pictures.licences == ["CC0"]
    images.main([*common, "--val", str(test), "--output", str(tmp_path / "q.npz")])
    assert (Pictures.load(tmp_path / "q.npz").split == "train").sum() == 24


def test_pairs_are_the_two_halves(tmp_path):
    train = folder(tmp_path / "a", (60, 180), 3)
    images.main(["pairs", "--train", str(train), "--val", str(train), *TERMS, "--output", str(tmp_path / "p.npz")])
    pictures = Pictures.load(tmp_path / "p.npz")
    first = np.asarray(Image.open(train / "0.png"))
    assert pictures.partner is not None
    np.testing.assert_array_equal(pictures.picture[0], first[:, :90])
    np.testing.assert_array_equal(pictures.partner[0], first[:, 90:])


def test_google_s_crops_of_a_picture_stay_together(tmp_path):
    for kind in ("input", "template"):
        for official in ("train", "val"):
            path = tmp_path / "g" / f"{official}2014_{kind}"
            path.mkdir(parents=True)
            for picture in range(8):
                for crop in range(2):
                    Image.fromarray(np.full((60, 60, 3), picture, np.uint8)).save(path / f"{picture}_{crop}.png")
    images.main(["google", "--archive", str(tmp_path / "g"), "--output", str(tmp_path / "g.npz")])
    pictures = Pictures.load(tmp_path / "g.npz")
    number = pictures.picture[:, 0, 0, 0]
    assert len(pictures) == 32
    assert all(len(set(pictures.split[number == k])) == 1 for k in range(8))
    (tmp_path / "g" / "train2014_template" / "0_0.png").unlink()
    with pytest.raises(SystemExit, match=r"0_0\.png: missing"):
        images.main(["google", "--archive", str(tmp_path / "g"), "--output", str(tmp_path / "h.npz")])


@pytest.mark.parametrize("arguments", [["photographs"], ["google"], ["pairs", "--licence", "CC0"]])
def test_what_is_missing_is_said(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        images.main([*arguments, "--output", str(tmp_path / "x.npz")])
    assert "needs" in capsys.readouterr().err


def test_leaves_are_the_same_shapes_in_other_colours(tmp_path):
    leaves.main(["--output", str(tmp_path / "l.npz"), "--count", "3"])
    pictures = Pictures.load(tmp_path / "l.npz")
    assert pictures.partner is not None and pictures.picture.shape == (3, leaves.HEIGHT, leaves.WIDTH, 3)
    again = leaves.pair(np.random.default_rng([0, 1]))
    np.testing.assert_array_equal(pictures.picture[1], again[0])
    np.testing.assert_array_equal(pictures.partner[1], again[1])
    # where the partner changes from one pixel to the next, the picture does so more than elsewhere
    step = [np.abs(np.diff(p[0].astype(float), axis=1)).sum(-1) for p in (pictures.picture, pictures.partner)]
    edge = step[1] > np.quantile(step[1], 0.95)
    assert step[0][edge].mean() > 1.5 * step[0][~edge].mean()
    assert len(ImagePairs(pictures, zoom=1.0)) == 3
