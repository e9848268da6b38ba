"""The study of image alignment: cells that are measured alike, skipped when finished, and a table over seeds."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import ROOT
from pictures import picture

from dlc_reg._alignment_objective import motion
from dlc_reg._image_evaluation import ImageFigures, evaluate_images, image_method
from dlc_reg._image_pairs import ImagePairs, Pictures, collate_images
from dlc_reg._images_losses import MANIFOLD, OBJECTIVE, encode_pairs
from dlc_reg._images_training import TASK
from dlc_reg._warping import SQUARE
from dlc_reg.alignment import load_features
from dlc_reg.convexify import star_violation
from dlc_reg.errors import InputError
from dlc_reg.networks.images import FeatureEncoder, Intensity
from dlc_reg.training import load_recipe, make_recipe

PHOTOGRAPHS = ROOT / "recipes" / "images" / "photographs.toml"
SMALL = [
    *("network.widths=[4,6,8]", "network.out=3", "data.size=48", "data.zoom=1.0", "loss.negatives=2"),
    *("optimizer.steps=2", "optimizer.batch=2", "validation.every=1", "validation.pairs=2", "validation.iterations=3"),
]


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


@pytest.fixture
def study(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_images

    return study_images


@pytest.fixture
def commands(study, monkeypatch) -> list[list[str]]:
    """What was run: a cell in this process, since starting another takes longer than the cell."""
    import cells

    run = []

    def here(command, output):
        run.append(command[-2:])
        return study.main(command[2:])

    monkeypatch.setattr(cells, "start", here)
    return run


def pictures(split: tuple[str, ...] = ("train", "train", "val", "test")) -> Pictures:
    grey = [picture((56, 60), seed=seed).numpy() for seed in range(len(split))]
    stack = np.stack([np.clip(128 + 100 * image, 0, 255).astype(np.uint8) for image in grey])
    names = np.array([f"p{k}" for k in range(len(split))])
    return Pictures(np.repeat(stack[..., None], 3, axis=-1), None, names, np.array(split), np.full(len(split), "CC0"))


def saved(made: Pictures, path: Path) -> Path:
    np.savez(path, **{key: getattr(made, key) for key in ("picture", "name", "split", "licence")})
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return saved(pictures(), tmp_path_factory.mktemp("data") / "pictures.npz")


def options(data: Path, out: Path, *more: str) -> list[str]:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    chosen = ["--columns", "none", "energy", "--seeds", "0", "--pairs", "3", "--size", "48"]
    return [str(PHOTOGRAPHS), "--data", str(data), "--out", str(out), *settings, *chosen, *more]


def test_columns_differ_in_what_they_say_and_in_nothing_else(study):
    class Options:
        recipe, set = PHOTOGRAPHS, ()

    recipes = {c: study.recipe_of(Options, c, 0).to_dict() for c in study.COLUMNS}
    base = recipes["energy"]
    said = {c: (r["dlc"], r["loss"]["contrastive"], r["loss"]["unrolled"]) for c, r in recipes.items()}
    assert said == {
        "none": ("none", 1, 1), "label": ("label", 1, 1), "energy": ("energy", 1, 1),
        "contrastive": ("none", 1, 0), "unrolled": ("none", 0, 1),
        "contrastive-energy": ("energy", 1, 0), "unrolled-energy": ("energy", 0, 1),
    }  # fmt: skip
    for recipe in recipes.values():
        loss = {**recipe["loss"], "contrastive": 1.0, "unrolled": 1.0}
        assert {**recipe, "name": base["name"], "dlc": "energy", "loss": loss} == base


def test_cells_are_run_measured_tabulated_and_skipped(study, data, tmp_path, commands, capsys):
    assert study.main(options(data, tmp_path)) == 0 and commands == [["none", "0"], ["energy", "0"]]
    shown = capsys.readouterr().out
    assert "| none (1)" in shown and "| energy (1)" in shown and "3 pairs of the split test, 2 steps" in shown
    folder = tmp_path / "energy" / "seed-0"
    cell = json.loads((folder / "cell.json").read_text())
    recipe = make_recipe(cell["recipe"])
    assert recipe.dlc == "energy" and cell["data"] == pictures().checksum and cell["licences"] == ["CC0"]
    assert [step for step, _ in cell["curve"]] == [1, 2] and set(cell["training"]) >= {"costs", "validation"}
    assert set(cell["convergence"]) == {"1", "2", "5", "10"} and cell["middle"]["iterations"] == 3

    # the weights beside it are those that were measured, as training and `evaluate.py images` measure
    network = load_features(folder / "weights.safetensors")
    held_out = ImagePairs(pictures().select("test"), 0, 3, size=48)
    again = evaluate_images(held_out, {"ours": image_method(f"learned:{folder / 'weights.safetensors'}")})["ours"]
    found, middle = cell["searched"], TASK.validate(network, held_out, recipe, "cpu")
    shares = [found[key] for key in ("below_1", "below_3", "below_10", "trusted", "beyond_20")]
    assert shares == [*again.shares[2:4], again.shares[5], again.trusted.mean(), (again.errors >= 20).mean()]
    assert found["wrong"] == (again.trusted & (again.errors >= 10)).sum()
    assert all(cell["middle"][key] == middle[key] for key in middle if key.startswith("below"))
    capsys.readouterr()

    import study_pictures

    study_pictures.main([str(tmp_path), "--data", str(data), "--columns", "energy", "--out", str(tmp_path / "drawn")])
    assert all((tmp_path / "drawn" / name).stat().st_size > 10_000 for name in ("curves.png", "landscape.png"))
    with pytest.raises(InputError, match="some of energy, none"):
        study_pictures.main(
            [str(tmp_path), "--data", str(data), "--columns", "other", "--out", str(tmp_path / "drawn")]
        )
    with pytest.raises(InputError, match="without a cell"):
        study_pictures.main([str(tmp_path / "drawn"), "--data", str(data)])
    capsys.readouterr()

    commands.clear()
    assert study.main(options(data, tmp_path)) == 0 and commands == []
    assert capsys.readouterr().out == shown.split("...\n")[-1]
    other = saved(pictures(("train", "val", "test")), tmp_path / "other.npz")
    for changed in (["--set", "optimizer.rate=0.5"], ["--pairs", "4"], ["--pair-seed", "1"], ["--data", str(other)]):
        assert study.main(options(data, tmp_path, *changed)) == 64 and commands == []
        assert "--out" in capsys.readouterr().err


def test_what_cannot_be_run_is_refused_before_anything_is(study, data, tmp_path, commands, capsys):
    for changed, named in ((["--size", "100"], "size"), (["--size", "192"], "zoom"), (["--pairs", "0"], "length")):
        assert study.main(options(data, tmp_path, *changed)) == 64
        assert named in capsys.readouterr().err
    rows = str(ROOT / "recipes" / "sequences" / "rows.toml")
    assert study.main([rows, "--data", str(data), "--out", str(tmp_path)]) == 64
    assert "for sequences" in capsys.readouterr().err and commands == []


def test_without_a_test_split_the_validation_pictures_are_measured_on(study):
    class Options:
        pairs, pair_seed, size = 2, 0, 48

    made, recipe = pictures(("train", "val")), load_recipe(PHOTOGRAPHS, SMALL)
    assert study.about(made, recipe, Options)["split"] == "val"
    assert [list(pairs.pictures.name) for pairs in study.pairs_of(made, recipe, Options)] == [["p1"], ["p1"]]


def test_errors_are_those_of_validation_and_iterations_count(study):
    network, pairs = Intensity(), ImagePairs(pictures(), 3, 5, size=48, photometric=0.0, reach=0.2)
    medians = []
    for count in (1, 10):
        recipe = load_recipe(PHOTOGRAPHS, [*SMALL, f"validation.iterations={count}"])
        medians.append(float(np.median(study.errors_from_the_middle(network, pairs, count))))
        assert medians[-1] == pytest.approx(TASK.validate(network, pairs, recipe, "cpu")["median"])
    assert medians[0] > 1.2 * medians[1]


def test_wrong_are_those_that_are_trusted_and_off(study, monkeypatch):
    verdicts = ["aligned", "doubtful", "aligned", "aligned", "failed"]
    figures = ImageFigures(np.array([0.5, 2.0, 10.0, np.inf, 20.0]), verdicts, 0.1)
    monkeypatch.setattr(study, "evaluate_images", lambda pairs, methods: dict.fromkeys(methods, figures))
    found = study.searched(FeatureEncoder((4, 6, 8), 3), ImagePairs(pictures(), 3, 5, size=48))
    shares = {"below_1": 0.2, "below_3": 0.4, "below_10": 0.4, "beyond_20": pytest.approx(0.4)}
    assert found == {**shares, "trusted": 0.6, "wrong": 2, "seconds": 0.1}


@pytest.mark.parametrize(
    ("energy", "violates"),
    [
        (lambda x: x.square() - 1.5 * x, False),  # convex, although its end is lower than the truth
        (lambda x: x.sqrt(), True),
        (lambda x: (x - 0.1).clamp(min=0) - 2 * (x - 0.9).clamp(min=0), True),  # a bend late on the ray
        (lambda x: torch.full_like(x, 1e3), False),
    ],
)
def test_a_ray_violates_where_it_is_above_its_chord(study, monkeypatch, energy, violates):
    monkeypatch.setattr(study, "OBJECTIVE", lambda omega, data: energy(omega[..., 0, 2].clamp(min=0)))
    along_x = torch.eye(8)[:1, None]
    assert study.violated(None, torch.eye(3)[None], along_x).tolist() == [[violates]]


def test_violations_are_those_of_a_direct_computation(study, monkeypatch):
    monkeypatch.setattr(study, "RAYS", 64)
    torch.manual_seed(0)
    network, pairs = FeatureEncoder((4, 6, 8), 3).eval(), ImagePairs(pictures(), 3, 1, size=48)
    found = study.landscape_of(network, pairs, 7)
    with torch.no_grad():
        encoded = encode_pairs(network, collate_images([pairs[0]]))
    box = 2 * torch.rand(study.RAYS, 1, 8, generator=torch.Generator().manual_seed(7)) - 1
    to_tangents = torch.linalg.inv(motion(SQUARE).reshape(8, 8)).float().mT
    fractions = torch.linspace(0, 1, 11)
    for name, level, reach in (("1/2", encoded.levels[1], 0.25), ("1/4", encoded.levels[2], 0.5)):
        rays = (reach * box @ to_tangents)[..., None, :] * fractions[:, None]  # (R, 1, S, 8)
        omegas = torch.linalg.matrix_exp(MANIFOLD.hat(rays)) @ encoded.truth[:, None]
        values = torch.stack([OBJECTIVE.value(omegas[:, :, k], level) for k in range(11)], dim=-1)
        above = star_violation(values, fractions, 0.0)[..., :-1].amax(-1)  # the chord alone
        by_hand = values - (1 - fractions) * values[..., :1] - fractions * values[..., -1:]
        torch.testing.assert_close(above, by_hand.amax(-1).relu(), atol=1e-6, rtol=0)
        share = (above > 1e-5).double().mean().item()
        assert found[name]["violated"] == pytest.approx(share)
        assert len(set(found[name]["shares"])) > 5  # or any reach would do


def test_the_basin_is_the_reach_before_the_first_that_violates(study, monkeypatch):
    """Rays that move a corner by more than 0.3 violate, and those of the level at 1/2 always."""
    to_corners = motion(SQUARE.float()).reshape(8, 8)

    def violated(level, truth, rays):
        always = level.template.shape[1] > 64  # pixels of the template: 16 x 16 at 1/2, 8 x 8 at 1/4
        return ((rays @ to_corners.mT).abs().amax(-1) > 0.3 + 1e-5) | always

    monkeypatch.setattr(study, "violated", violated)
    found = study.landscape_of(FeatureEncoder((4, 6, 8), 3), ImagePairs(pictures(), 3, 2, size=48), 0)
    assert found["1/4"]["basin"] == pytest.approx(0.3) and found["1/4"]["violated"] > 0.9
    assert found["1/2"]["basin"] == 0 and found["1/2"]["violated"] == 1


def test_the_table_shows_mean_and_spread_and_bears_what_is_lacking(study, tmp_path, capsys):
    for seed, share in enumerate((0.2, 0.4)):
        shares = {"below_1": share, "below_3": 0.5, "below_10": 0.75, "beyond_20": 0.1}
        shape = {level: {"violated": 0.125, "basin": 0.4} for level in ("1/2", "1/4")}
        figures = {"middle": shares, "searched": {**shares, "trusted": 0.5, "wrong": seed}, "landscape": shape}
        for column, kept in (("none", figures), ("label", {"middle": {"below_1": share}})):
            cell = {"data": "x" * 20, "pairs": 60, "split": "test", "recipe": {"optimizer": {"steps": 9}}, **kept}
            folder = tmp_path / column / f"seed-{seed}"
            folder.mkdir(parents=True)
            (folder / "cell.json").write_text(json.dumps({**cell, "hardware": {"processor": "a processor"}}))
    assert study.main([str(PHOTOGRAPHS), "--data", "no.npz", "--out", str(tmp_path), "--table"]) == 0
    head, _, _, _, none, label = capsys.readouterr().out.splitlines()
    assert head.startswith("- pictures xxxxxxxxxxxx, 60 pairs of the split test, 9 steps, a processor")
    middle = "30 ± 14 / 50 ± 0 / 75 ± 0 / 10 ± 0"  # of 20 and 40: standard deviation 14.1
    cells = ["none (2)", middle, middle, "50 ± 0 (0.5 ± 0.7)", "12.5 ± 0.0 / 12.5 ± 0.0", "0.40 ± 0.00 / 0.40 ± 0.00"]
    assert [part.strip() for part in none.split("|")[1:-1]] == [*cells, ""]
    assert [part.strip() for part in label.split("|")[1:-1]] == ["label (2)", *[""] * 6]
