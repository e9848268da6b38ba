"""Recipes: files and settings, and the errors that name what is wrong with them."""

from __future__ import annotations

import pytest

from dlc_reg.errors import InputError
from dlc_reg.training import Recipe, load_recipe, make_recipe


def test_a_recipe_states_what_differs_and_the_rest_is_default(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('dlc = "energy"\n[optimizer]\nrate = 1\n[convexify]\nterms = ["chord", "minimum"]\n')
    given = load_recipe(path, ["optimizer.steps=7", "name=try", "network.width=32"])
    assert given.dlc == "energy" and given.convexify.terms == ("chord", "minimum")
    assert given.optimizer.rate == 1.0 and isinstance(given.optimizer.rate, float)
    assert (given.optimizer.steps, given.name, given.network) == (7, "try", {"width": 32})
    assert given.optimizer.batch == Recipe().optimizer.batch
    assert make_recipe(given.to_dict()) == given


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("stepz = 1", "stepz"),
        ("[optimizer]\nstepz = 1", "optimizer.stepz"),
        ('[optimizer]\nsteps = "many"', "optimizer.steps"),
        ("[optimizer]\nsteps = 1.5", "optimizer.steps"),
        ("[optimizer]\nsteps = true", "optimizer.steps"),
        ("[optimizer]\nbatch = 0", "optimizer.batch"),
        ("[optimizer]\nrate = nan", "optimizer.rate"),
        ('dlc = "both"', "dlc"),
        ("loss = 3", "loss"),
        ("[loss]\nunrolled = 0.0", "loss"),
        ("[loss]\ntemperature = 0", "loss.temperature"),
        ('[data]\nprotocol = "dcq"', "protocol"),
        ('[convexify]\nterms = ["cord"]', "convexify.terms"),
        ("[convexify]\nterms = [1]", "convexify.terms"),
        ("[convexify]\nfractions = [0.9, 0.1]", "convexify.fractions"),
        ("[convexify]\nradius_deg = 270", "convexify.radius_deg"),
        ("a = = 2", "recipe"),
    ],
)
def test_a_bad_recipe_is_an_error_that_names_the_entry(tmp_path, text, named):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert caught.value.argument.startswith(named)


def test_a_missing_recipe_and_a_bad_setting_are_errors(tmp_path):
    with pytest.raises(InputError, match="no-such"):
        load_recipe(tmp_path / "no-such.toml")
    (tmp_path / "a.toml").write_text("seed = 3")
    for setting in ("seed", "seed.deep=1", "=1"):
        with pytest.raises(InputError, match="--set"):
            load_recipe(tmp_path / "a.toml", [setting])


@pytest.mark.parametrize("task", ["poetry", 3])
def test_a_task_that_no_head_has_is_refused(task):
    with pytest.raises(InputError, match=r"task.*registration"):
        make_recipe({"task": task})
