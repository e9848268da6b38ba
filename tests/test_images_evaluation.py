"""Figures of image alignment: counts against hand-made errors, and that no truth can reach an answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture

from dlc_reg._image_evaluation import (
    LIMITS,
    PUBLISHED,
    ImageFigures,
    evaluate_images,
    image_method,
    image_table,
    middle,
)
from dlc_reg._image_pairs import ImagePairs, Pictures
from dlc_reg.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


def pictures() -> Pictures:
    grey = np.stack([np.clip(128 + 100 * picture((72, 80), seed=k).numpy(), 0, 255).astype(np.uint8) for k in range(3)])
    colour = np.repeat(grey[..., None], 3, axis=-1)
    names = np.array(["a", "b", "c"])
    return Pictures(colour, None, names, np.array(["train", "train", "val"]), np.full(3, "formula"))


class FalseTruths(ImagePairs):
    """The same images, with other truths."""

    def __getitem__(self, item: int):
        pair = super().__getitem__(item)
        object.__setattr__(pair, "truth", torch.diag(torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)))
        return pair


def test_the_truth_cannot_reach_the_answer():
    """The answers are the same whatever the truth is said to be; only their errors differ."""
    answers: dict[type, list[np.ndarray]] = {}
    errors = {}
    for kind in (ImagePairs, FalseTruths):
        given: list[np.ndarray] = answers.setdefault(kind, [])
        ours = image_method("gradients")

        def watched(source, target, ours=ours, given=given):
            answer = ours(source, target)
            given.append(answer[0])
            return answer

        errors[kind] = evaluate_images(kind(pictures(), 1, 2, size=48), {"ours": watched})["ours"].errors
    for first, second in zip(answers[ImagePairs], answers[FalseTruths], strict=True):
        np.testing.assert_array_equal(first, second)
    assert (errors[ImagePairs] != errors[FalseTruths]).any()


def test_errors_are_told_at_the_protocol_s_size():
    pairs = ImagePairs(pictures(), 1, 3, size=48)

    def off(source, target):
        answer = truths.pop(0).numpy().copy()
        answer[:2] += 3 * answer[2:]  # a shift by 3 pixels each way after it
        return answer, ""

    truths = [pairs[k].truth for k in range(3)]
    errors = evaluate_images(pairs, {"off": off})["off"].errors
    np.testing.assert_allclose(errors, 4 * 3 * 2**0.5, rtol=1e-9)


def test_no_answer_is_infinitely_wrong():
    figures = evaluate_images(ImagePairs(pictures(), 1, 2, size=48), {"none": lambda source, target: (None, "")})
    assert np.isinf(figures["none"].errors).all() and figures["none"].shares == [0.0] * len(LIMITS)


def test_unrelated_pictures_have_no_right_answer():
    pairs, seen = ImagePairs(pictures(), 1, 3, size=48), []

    def answer(source, target):
        seen.append((source, target))
        return middle(source, target)

    figures = evaluate_images(pairs, {"middle": answer}, unrelated=True)
    assert np.isinf(figures["middle"].errors).all()
    evaluate_images(pairs, {"middle": answer})
    for k in range(3):
        np.testing.assert_array_equal(seen[k][0], seen[3 + k][0])  # the source is the pair's own, the target is not
        assert (seen[k][1] != seen[3 + k][1]).any()
    with pytest.raises(InputError, match="pairs: got pairs of one picture"):
        evaluate_images(ImagePairs(pictures(), 1, 1, size=48), {"middle": answer}, unrelated=True)


def test_the_table():
    figures = {"ours": ImageFigures(np.array([0.05, 2.0, 30.0, np.inf]), ["aligned", "doubtful", "aligned", ""], 0.5)}
    text = image_table(figures, "GoogleMap")
    row = next(line for line in text.splitlines() if line.startswith("| ours"))
    assert [c.strip() for c in row.split("|")[2:]] == [
        "25.0", "25.0", "25.0", "50.0", "50.0", "50.0", "50.0", "50.0", "1", "0.500", "",
    ]  # fmt: skip
    assert "*DeepLK*" in text and "61.3" in text and "not run here" in text
    assert all(len(shares) == len(LIMITS) for table in PUBLISHED.values() for shares in table.values())


def test_the_middle():
    answer, _ = middle(np.zeros((32, 32, 3), np.uint8), np.zeros((48, 48, 3), np.uint8))
    np.testing.assert_array_equal(answer, [[1, 0, 8], [0, 1, 8], [0, 0, 1]])


@pytest.mark.parametrize("name", ["ecc", "sift"])
def test_the_peers_align_an_easy_pair(name):
    pytest.importorskip("cv2")
    grey = np.clip(128 + 100 * picture((200, 200)).numpy(), 0, 255).astype(np.uint8)
    image = np.repeat(grey[..., None], 3, axis=-1)
    answer, _ = image_method(name)(image[36:164, 36:164].copy(), image[6:198, 6:198].copy())
    np.testing.assert_allclose(answer / answer[2, 2], [[1, 0, 30], [0, 1, 30], [0, 0, 1]], atol=0.8)


def test_the_tool(tmp_path):
    data = pictures()
    np.savez(tmp_path / "p.npz", **{k: getattr(data, k) for k in ("picture", "name", "split", "licence")})
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), "images", "--data", str(tmp_path / "p.npz")]
    options = ["--method", "middle", "--size", "48", "--out", str(tmp_path / "o.json"), "--published", "MSCOCO"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "| middle" in run.stdout and "*PRISE*" in run.stdout and (tmp_path / "o.json").exists()
