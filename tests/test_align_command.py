"""`dlc-reg align-images`: files in, files out, exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pictures import perturbed, picture

from dlc_reg.alignment import corner_error
from dlc_reg.cli import main

image = pytest.importorskip("PIL.Image")
SIZE = (64, 72)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    truth = perturbed(SIZE, 5.0, seed=2, offset=12.0)
    for name, pixels in (("a", picture(SIZE, truth)), ("b", picture((96, 104)))):
        grey = np.clip(128 + 90 * pixels.numpy(), 0, 255).astype(np.uint8)
        image.fromarray(grey).save(folder / f"{name}.png")
    np.savetxt(folder / "init.txt", truth.numpy())
    return folder, truth


def run(*arguments):
    result = CliRunner().invoke(main, ["align-images", *map(str, arguments)])
    return result.exit_code, result.output


def test_it_aligns_and_writes(files, tmp_path):
    folder, truth = files
    outputs = "-o", tmp_path / "o.png", "--save-homography", tmp_path / "h.txt"
    code, text = run(folder / "a.png", folder / "b.png", "--init", folder / "init.txt", *outputs)
    assert code == 0 and "VERDICT" in text and "aligned" in text and "nan" not in text, text
    assert image.open(tmp_path / "o.png").size == (104, 96)
    assert float(corner_error(torch.from_numpy(np.loadtxt(tmp_path / "h.txt")), truth, SIZE)) < 1
    code, text = run(folder / "a.png", folder / "b.png", "-o", tmp_path / "o.png")
    assert code == 64 and "--overwrite" in text


def test_json(files):
    folder, _ = files
    code, text = run(folder / "a.png", folder / "b.png", "--init", folder / "init.txt", "--json")
    answer = json.loads(text)
    assert code == answer["exit_code"] == 0 and answer["verdict"] == "aligned" and answer["written"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.png", "b.png"], "SOURCE"),
        (["a.png", "init.txt"], "TARGET"),
        (["a.png", "b.png", "--init", "a.png"], "--init"),
        (["a.png", "b.png", "--max-scale", "0"], "--max-scale"),
        (["a.png", "b.png", "--method", "magic"], "--method"),
        (["a.png", "b.png", "-o", "x.gif"], "--output"),
        (["a.png", "b.png", "-o", "a.png", "--overwrite"], "--output"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(files, arguments, message):
    folder, _ = files
    given = [folder / a if "." in a and not a[0].isdigit() else a for a in arguments]
    before = sorted(folder.iterdir())
    code, text = run(*given)
    assert code == 64 and message in text, text
    assert sorted(folder.iterdir()) == before


def test_a_failed_alignment_is_withheld(files, tmp_path):
    folder, _ = files
    image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "flat.png")
    code, text = run(tmp_path / "flat.png", folder / "b.png", "-o", tmp_path / "o.png")
    assert code == 3 and "withheld" in text and not (tmp_path / "o.png").exists()
