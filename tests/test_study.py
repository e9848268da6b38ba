"""The study: cells that are trained and evaluated alike, skipped when finished, and a table over seeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from learning import blocks

from dlc_reg.training import load_recipe

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["optimizer.steps=4", "optimizer.batch=4", "network.widths=[8,16]", "data.points=48", "validation.pairs=4"]


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


@pytest.fixture
def study(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study

    return study


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    shapes = blocks(12, 1024)
    path = tmp_path_factory.mktemp("data") / "blocks.npz"
    columns = {"category": shapes.category, "name": shapes.name, "split": shapes.split}
    np.savez(path, points=shapes.points, **columns)
    return path


def options(data: Path, out: Path, *more: str) -> list[str]:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    chosen = ["--architectures", "pointnetlk", "--columns", "none", "energy", "--seeds", "0"]
    return ["--data", str(data), "--out", str(out), "--pairs", "3", *chosen, *settings, *more]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_loads_and_builds(path):
    from dlc_reg.training import build_network

    recipe = load_recipe(path)
    assert recipe.budget, "a recipe says what it takes"
    assert sum(p.numel() for p in build_network(recipe).parameters()) > 1000


def test_there_is_a_recipe_for_every_architecture(study):
    assert {p.stem for p in study.RECIPES.glob("*.toml")} == set(study.ARCHITECTURES)


def test_columns_differ_in_what_they_say_and_in_nothing_else(study, data, tmp_path):
    class Options:
        set = ()

    recipes = {c: study.recipe_of(Options, "pointnetlk", c, 0).to_dict() for c in study.COLUMNS}
    base = recipes["none"]
    for column, recipe in recipes.items():
        differs = {key for key in base if recipe[key] != base[key]} - {"name"}
        assert differs <= {"dlc", "loss"}, column
        assert {**recipe["loss"], "contrastive": 0, "unrolled": 0} == {**base["loss"], "contrastive": 0, "unrolled": 0}
    assert [recipes[c]["dlc"] for c in ("none", "label", "energy", "contrastive", "unrolled")] == [
        "none", "label", "energy", "none", "none",
    ]  # fmt: skip
    assert recipes["contrastive"]["loss"]["unrolled"] == 0 and recipes["unrolled"]["loss"]["contrastive"] == 0


def test_cells_are_run_skipped_and_tabulated(study, data, tmp_path, monkeypatch, capsys):
    commands = []

    def here(command, output):
        """The cell in this process: starting another takes longer than the cell."""
        commands.append(command[-3:])
        return study.main(command[2:])

    monkeypatch.setattr(study, "start", here)
    monkeypatch.setattr(study, "BINS", ((0, 30), (150, 180)))
    monkeypatch.setattr(study, "PROTOCOLS", ("rpmnet-independent",))
    monkeypatch.setattr(study, "provenance", lambda: {"hardware": {"processor": "a processor"}})
    assert study.main(options(data, tmp_path)) == 0
    wanted = [["baselines", "none", "0"], ["pointnetlk", "none", "0"], ["pointnetlk", "energy", "0"]]
    assert commands == wanted
    cell = json.loads((tmp_path / "pointnetlk" / "energy" / "seed-0" / "cell.json").read_text())
    assert cell["recipe"]["dlc"] == "energy" and set(cell["methods"]) == {"learned", "polished"}
    assert set(cell["methods"]["learned"]) >= {"0-30 within_5", "150-180 within_10", "rpmnet-independent rotation_mean"}
    assert 0 <= cell["landscape"]["violation_rate_60"] <= 1 and cell["landscape"]["iterations"] >= 0
    shown = capsys.readouterr().out
    assert "| energy (1)" in shown and "| icp" in shown and "a processor" in shown

    commands.clear()  # the second run finds all of it
    assert study.main(options(data, tmp_path)) == 0
    assert commands == []

    monkeypatch.setattr(
        study, "PROTOCOLS", ("rpmnet-independent", "dcp")
    )  # a third lacks a protocol, and trains nothing
    monkeypatch.setattr(study, "train", None)  # which is not called again
    assert study.main(options(data, tmp_path)) == 0
    assert commands == wanted
    completed = json.loads((tmp_path / "pointnetlk" / "energy" / "seed-0" / "cell.json").read_text())
    learned, before = completed["methods"]["learned"], cell["methods"]["learned"]
    assert learned.items() > before.items() and "dcp rotation_mean" in learned and "completed" in completed
    assert {**completed, "methods": 0, "completed": 0} == {**cell, "methods": 0, "completed": 0}
    assert study.main(options(data, tmp_path, "--set", "optimizer.rate=0.5")) == 64  # not what is there


def test_a_cell_that_fails_does_not_stop_the_others(study, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "start", lambda command, output: int("energy" in command))
    assert study.main(options(data, tmp_path)) == 1
    assert "pointnetlk/energy/0 FAILED" in capsys.readouterr().out
    assert study.main(["--data", str(data), "--out", str(tmp_path), "--table"]) == 0


def test_the_table_shows_mean_and_spread_over_seeds(study, tmp_path):
    figures = dict.fromkeys([f"{low}-{high} within_{d}" for low, high in study.BINS for d in (5, 10)], 0.5)
    figures |= {f"{p} rotation_mean": 2.0 for p in study.PROTOCOLS}
    for seed, share in enumerate((0.2, 0.4)):
        folder = study.folder_of(tmp_path, "pointnetlk", "none", seed)
        folder.mkdir(parents=True)
        learned = {**figures, "60-90 within_5": share}
        landscape = {"violation_rate_60": 0.1, "basin_radius": 40.0, "iterations": 5.0}
        cell = {"methods": {"learned": learned}, "landscape": landscape, "pairs": 3, "data": "x" * 20}
        cell |= {"hardware": {"processor": "p"}, "training": {"seconds_per_step": 1.0}}
        (folder / "cell.json").write_text(json.dumps(cell))
    shown = study.table(tmp_path, ["pointnetlk"], ["none", "energy"], [0, 1])
    assert "| none (2)" in shown and "energy" not in shown
    assert "30 ± 14 / 50 ± 0" in shown  # of 20 and 40: standard deviation 14.1


def test_without_a_test_split_half_of_the_validation_shapes_are_it(study, tmp_path):
    shapes = blocks(24, 1024)
    split = np.where(shapes.split == "test", "val", shapes.split)
    np.savez(tmp_path / "b.npz", points=shapes.points, category=shapes.category, name=shapes.name, split=split)

    class Options:
        data, out = tmp_path / "b.npz", tmp_path

    training, held_out = study.shapes_of(Options)
    names = {part: set(training.name[training.split == part]) for part in ("train", "val", "test")}
    assert len(names["val"]) == len(names["test"]) == 4 and names["test"] == set(held_out.name)
    assert not names["val"] & names["test"]


def test_a_cell_is_a_process_whose_output_is_kept(study, tmp_path):
    code = study.start([sys.executable, "-c", "print('as told'); raise SystemExit(3)"], tmp_path / "output.txt")
    assert code == 3 and (tmp_path / "output.txt").read_text() == "as told\n"
