"""tools/train.py, tools/landscape.py and `dlc-reg evaluate` from beginning to end, on a small network."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from commanding import run
from learning import blocks

from dlc_reg.registration.learned.weights import load_model

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
architecture = "pointnetlk"
dlc = "energy"
[network]
widths = [8, 16]
[data]
protocol = "full-0-60"
points = 48
[optimizer]
steps = 6
batch = 4
[validation]
every = 3
pairs = 4
"""


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    shapes = blocks(12, 1024)
    path = tmp_path_factory.mktemp("data") / "blocks.npz"
    columns = {"category": shapes.category, "name": shapes.name, "split": shapes.split}
    np.savez(path, points=shapes.points, licence=np.array(["CC0-1.0"] * 12), **columns)
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def train() -> ModuleType:
    import train

    return train


def test_a_run_leaves_weights_and_a_card_and_is_not_overwritten_unasked(train, recipe, data, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = [str(recipe), "--data", str(data), "--out", str(out), "--device", "cpu"]
    assert train.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "forward passes" in shown and "dlc" in shown
    card = json.loads((out / "card.json").read_text())
    assert card["recipe"]["dlc"] == "energy" and card["data"]["licences"] == ["CC0-1.0"] and card["seed"] == 0
    assert set(card) >= {"commit", "versions", "hardware", "command", "figures", "costs", "seconds_per_step"}
    network = load_model(str(out / "weights.safetensors"))
    assert network.card["recipe"] == card["recipe"] and not network.training

    before = (out / "weights.safetensors").read_bytes()
    assert train.main(arguments) == 64
    assert "--resume or --overwrite" in capsys.readouterr().err
    assert train.main([*arguments, "--resume"]) == 0  # nothing is left to do
    assert load_and_compare(before, out)
    (out / "mine.txt").write_text("not of the run")
    assert train.main([*arguments, "--overwrite", "--set", "seed=3"]) == 0
    assert not load_and_compare(before, out) and (out / "mine.txt").exists()


def load_and_compare(before: bytes, out: Path) -> bool:
    """Whether the weights are the same; the card holds times."""
    (out / "before.safetensors").write_bytes(before)
    a, b = (load_model(str(out / f"{name}.safetensors")).state_dict() for name in ("before", "weights"))
    return all(torch.equal(a[k], b[k]) for k in a)


def test_bad_input_is_one_line_and_64(train, recipe, data, tmp_path, capsys):
    arguments = [str(recipe), "--data", str(data), "--out", str(tmp_path / "run")]
    assert train.main([*arguments, "--set", "optimizer.stepz=3"]) == 64
    assert "optimizer.stepz" in capsys.readouterr().err
    assert train.main([str(recipe), "--data", str(tmp_path / "none.npz"), "--out", str(tmp_path / "run")]) == 64
    assert "none.npz" in capsys.readouterr().err


def test_the_symmetric_shapes_are_looked_for_once(train, recipe, data, tmp_path, monkeypatch):
    from dlc_reg import _symmetry

    calls = []
    original = _symmetry.symmetric_shapes
    monkeypatch.setattr(_symmetry, "symmetric_shapes", lambda *a, **k: calls.append(1) or original(*a, **k))
    for name in ("a", "b"):
        assert train.main([str(recipe), "--data", str(data), "--out", str(tmp_path / name), "--device", "cpu"]) == 0
    assert len(calls) == 1


def test_weights_are_evaluated_and_drawn(train, recipe, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main([str(recipe), "--data", str(data), "--out", str(out), "--device", "cpu"]) == 0
    weights = out / "weights.safetensors"
    done = run(
        "evaluate", "--data", data, "--protocol", "rpmnet-independent", "--weights", weights, "--method", "identity",
        "--pairs", "2", "--out", tmp_path / "figures", "-q", "--asymmetric",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "RegTR" in done.output and f"learned:{weights}+polish" in done.output and "identity" in done.output
    document = json.loads((tmp_path / "figures" / "results.json").read_text())
    about = document["about_methods"][f"learned:{weights}"]
    assert about["weights_checksum"] == hashlib.sha256(weights.read_bytes()).hexdigest() and document["split"] == "test"
    for left in ("results.json", "pairs.csv"):  # one of them is enough, and is found before anything is run
        kept = tmp_path / "figures" / left
        folder = tmp_path / f"only-{left}"
        folder.mkdir()
        shutil.copy(kept, folder)
        again = run("evaluate", "--data", "none.npz", "--pairs", "2", "--out", folder, "-q")
        assert again.exit_code == 64 and "--overwrite" in again.output

    pytest.importorskip("matplotlib")
    import landscape

    assert landscape.name(str(weights)) == "run"
    picture = tmp_path / "landscape.png"
    landscape.main(
        [str(weights), "--data", str(data), "--pairs", "1", "--out", str(picture), "--protocol", "full-0-60"]
    )
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_evaluate_needs_shapes_and_a_known_protocol(data, tmp_path):
    unknown = run("evaluate", "--data", data, "--protocol", "rpmnot", "-q")
    assert unknown.exit_code == 64 and "rpmnot" in unknown.output
    missing = run("evaluate", "--data", tmp_path / "none.npz", "-q")
    assert missing.exit_code == 64 and "none.npz" in missing.output
    method = run("evaluate", "--data", data, "--method", "icq", "-q")
    assert method.exit_code == 64 and "icp_restarts" in method.output


def test_results_say_which_shipped_weights_were_used(data, tmp_path):
    names = ["--method", "register", "--weights", "softicp", "--no-polish"]
    done = run("evaluate", "--data", data, *names, "--pairs", "1", "--out", tmp_path, "-q")
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "results.json").read_text())["about_methods"]
    shipped = ROOT / "dlc_reg" / "weights" / "softicp.safetensors"
    expected = {"weights": "softicp", "weights_checksum": hashlib.sha256(shipped.read_bytes()).hexdigest()}
    assert about == {"register": expected, "learned:softicp": expected}


def test_evaluate_shows_success_against_rotation_and_register(data):
    done = run("evaluate", "--data", data, "--protocol", "dcp", "--method", "register", "--pairs", "1", "-q")
    assert done.exit_code == 0, done.output
    assert "| register" in done.output
    by = run(
        "evaluate", "--data", data, "--protocol", "dcp", "--method", "identity", "--pairs", "1", "-q", "--by-rotation"
    )
    assert "initial rotation [deg]" in by.output and "150-180" in by.output
