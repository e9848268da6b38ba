"""The study of recurrent networks and their evaluation, from beginning to end, on a small network."""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_sequences_training import images

from dlc_reg.errors import InputError
from dlc_reg.training import load_recipe

ROWS = ROOT / "recipes" / "sequences" / "rows.toml"
SMALL = ["network.inputs=6", "network.outputs=4", "network.hidden=8", "optimizer.steps=4", "validation.every=2"]


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


@pytest.fixture
def study(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_sequences

    return study_sequences


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    made, path = images(), tmp_path_factory.mktemp("data") / "quarters.npz"
    columns = {"values": made.values, "target": made.target, "split": made.split, "classes": made.classes}
    np.savez(path, title=np.array(made.title), **columns)
    return path


def test_columns_differ_in_what_they_say_and_in_nothing_else(study):
    class Options:
        recipe, set = ROWS, ()

    recipes = {c: study.recipe_of(Options, c, 0).to_dict() for c in study.COLUMNS}
    base = recipes["none"]
    differs = {c: {k for k in base if r[k] != base[k]} - {"name"} for c, r in recipes.items()}
    assert differs == {
        "none": set(), "label": {"dlc", "convexify"}, "quadratic": {"network"}, "mlp": {"network"},
        "energy": {"network", "dlc"}, "contrastive": {"network", "loss"}, "rate-x2": {"optimizer"},
        "contrastive-energy": {"network", "loss", "dlc"}, "smoothing": {"loss"}, "margin": {"loss"},
    }  # fmt: skip
    assert recipes["rate-x2"]["optimizer"]["rate"] == 2 * base["optimizer"]["rate"]


def test_cells_are_run_skipped_tabulated_and_evaluated(study, data, tmp_path, monkeypatch, capsys):
    import cells

    commands = []

    def here(command, output):
        commands.append(command[-2:])
        return study.main(command[2:])

    monkeypatch.setattr(cells, "start", here)
    settings = [part for setting in SMALL for part in ("--set", setting)]
    arguments = [str(ROWS), "--data", str(data), "--out", str(tmp_path), "--seeds", "0", *settings]
    arguments += ["--columns", "none", "energy"]
    assert study.main(arguments) == 0 and commands == [["none", "0"], ["energy", "0"]]
    shown = capsys.readouterr().out
    assert "| none (1)" in shown and "quarters, 4 steps" in shown
    cell = json.loads((tmp_path / "energy" / "seed-0" / "cell.json").read_text())
    assert cell["recipe"]["dlc"] == "energy" and [step for step, _ in cell["curve"]] == [2, 4]
    assert 0 <= cell["figures"]["violated"] <= 1 and 0 <= cell["figures"]["start 1.5"] <= 1
    commands.clear()
    assert study.main(arguments) == 0 and commands == []
    assert study.main([*arguments, "--set", "optimizer.rate=0.5"]) == 64

    import evaluate_sequences
    import study_pictures

    study_pictures.main([str(tmp_path), "--data", str(data), "--out", str(tmp_path / "drawn")])
    assert all((tmp_path / "drawn" / name).stat().st_size > 10_000 for name in ("curves.png", "landscape.png"))
    with pytest.raises(InputError, match="descend an energy"):  # a plain readout has none
        study_pictures.main([str(tmp_path), "--data", str(data), "--columns", "none", "--out", str(tmp_path / "drawn")])
    capsys.readouterr()
    weights = [str(tmp_path / c / "seed-0" / "weights.safetensors") for c in ("none", "energy")]
    evaluate_sequences.main(
        ["--data", str(data), "--weights", *weights, "--published", "pixel-MNIST", "--iterations", "1"]
    )
    shown = capsys.readouterr().out
    assert "IndRNN (published)" in shown and "99.0" in shown and "not comparable" in shown and "1 steps [%]" in shown
    assert f"{100 * cell['figures']['success']:.1f}" in shown


def test_a_perfect_energy_violates_nothing(study, data):
    """E = |omega - label|^2 / 2 of a network that knows the label."""
    import evaluate_sequences

    from dlc_reg._sequences_data import Items
    from dlc_reg.sequence import SequenceModel

    class Oracle(SequenceModel):
        def encode(self, x, lengths=None):
            quarters = x.reshape(len(x), 2, 3, 2, 3).mean((2, 4)).flatten(1)
            return torch.eye(4)[quarters.argmax(-1)]

        def value(self, omega, encoded):
            return 0.5 * (omega - encoded).square().sum(-1)

    network = Oracle(torch.nn.GRU(6, 4, batch_first=True), 4, "mlp")
    found = evaluate_sequences.landscape_of(network, Items(images(), 0, order="rows", shuffle=False), load_recipe(ROWS))
    assert found == {"violated": 0.0, "basin": pytest.approx(1.5)}
