"""Recipes, and a training loop whose runs depend on recipe and data alone."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import Tiny, blocks

from dlc_reg import _losses
from dlc_reg._around import Around
from dlc_reg._losses import Draw, pose_loss
from dlc_reg._training_pairs import Stretch, make_pairs, split
from dlc_reg.errors import InputError
from dlc_reg.manifold import SE3
from dlc_reg.metrics import rotation_error
from dlc_reg.protocols import PairBatch, PairDataset, collate
from dlc_reg.training import Recipe, load_recipe, make_recipe, train, validate

TABLE = {
    "dlc": "energy",
    "data": {"protocol": "full-0-45", "points": 48},
    "optimizer": {"steps": 12, "batch": 4, "rate": 0.01, "warm_up": 3},
    "loss": {"contrastive": 1.0, "unrolled": 1.0, "matching": 0.1, "start": "truth"},
    "validation": {"every": 6, "pairs": 6},
}


def recipe(**changes: dict) -> Recipe:
    return make_recipe(
        {**TABLE, **{k: {**TABLE.get(k, {}), **v} if isinstance(v, dict) else v for k, v in changes.items()}}
    )


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]


# --- recipes ---------------------------------------------------------------------------------------------------------
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


# --- the terms, against their formulas -------------------------------------------------------------------------------
def draw(total: int = 4, begin: int = 0, end: int | None = None, seed: int = 0) -> Draw:
    return Draw(torch.Generator().manual_seed(seed), total, begin, total if end is None else end)


def test_the_pose_loss_of_a_turn_is_four_times_one_minus_its_cosine():
    xi = torch.tensor([[0.0, 0.3, 0.4, 0, 0, 0], [0, 0, 0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    one = SE3().identity((2,))
    expected = torch.tensor([4 * (1 - math.cos(0.5)), 9.0], dtype=torch.float64)
    torch.testing.assert_close(pose_loss(SE3().retract(one, xi), one), expected)


def around(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Around, PairBatch]:
    """Truths of a batch of pairs whose sources lie beside the origin."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(count, 30, 3, generator=generator, dtype=dtype) + torch.tensor([3.0, -1.0, 0.5], dtype=dtype)
    xi = torch.randn(count, 6, generator=generator, dtype=dtype)
    truth = SE3().retract(SE3().identity((count,), dtype=dtype), xi)
    batch = PairBatch(source, source, None, None, truth, torch.arange(count))
    return Around.truths(batch), batch


def test_poses_are_drawn_within_their_bounds_about_the_middle_of_the_source():
    given, batch = around(400)
    poses = draw(400).poses(given, 40.0, 0.2, 3)
    angles = rotation_error(poses, given.truth).rad2deg()
    assert 39 < angles.max() < 40.01 and angles.mean() == pytest.approx(20, abs=1.5)
    middle = batch.source.mean(1)
    moved = [(T[..., :3, :3] @ middle[..., None])[..., 0] + T[..., :3, 3] for T in (poses, given.truth)]
    shifts = moved[0] - moved[1]
    assert 0.18 < shifts.norm(dim=-1).max() < 0.2001
    assert shifts.mean((0, 1)).abs().max() < 0.01  # every direction alike
    torch.testing.assert_close(given.place @ given.local, given.truth)


def test_each_process_draws_its_rows_of_the_whole_batch():
    given, _ = around(6)
    whole = draw(6).poses(given, 90, 1, 2)
    for i in (0, 3):
        rows = Around(*(part[i : i + 3] for part in (given.truth, given.place, given.local)))
        torch.testing.assert_close(draw(6, i, i + 3).poses(rows, 90, 1, 2), whole[:, i : i + 3])


def at_identity(count: int) -> Around:
    eye = SE3().identity((count,), dtype=torch.float32)
    return Around(eye, eye, eye)


class Known(Tiny):
    """Its energy is the pose's distance from the identity, and its step halves the translation."""

    def value(self, omega, encoded):
        return (omega - torch.eye(4))[..., :3, 3].square().sum(-1)

    def step(self, omega, encoded):
        half = omega.clone()
        half[..., :3, 3] = omega[..., :3, 3] / 2
        return half


def test_contrastive_is_the_cross_entropy_of_the_energies():
    one = at_identity(3)
    given = recipe(loss={"negatives": 5, "temperature": 0.2, "negative_angle_deg": 0.0})
    value = _losses.contrastive(Known(), None, one, given, draw(3))
    moved = draw(3).poses(one, 0.0, 0.5, 5)
    energies = torch.cat([torch.zeros(1, 3), moved[..., :3, 3].square().sum(-1)]).numpy() / 0.2
    expected = np.mean([-np.log(np.exp(-e[0]) / np.exp(-e).sum()) for e in energies.T])
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_unrolled_term_weighs_later_steps_more():
    one = at_identity(1)
    given = recipe(loss={"unrolled_steps": 3, "start_angle_deg": 0.0, "start_translation": 1.0})
    start = draw(1).poses(one, 0.0, 1.0)[0, :3, 3].square().sum().item()
    value = _losses.unrolled(Known(), None, one, given, draw(1))
    assert value.item() == pytest.approx(start * (1 / 4 + 2 / 16 + 3 / 64) / 6, rel=1e-5)


class Cosine(Tiny):
    """Its energy is 1 - cos of the pose's angle: star-convex up to 2.33112 rad = 133.56 degrees, and not beyond."""

    def value(self, omega, encoded):
        return (3 - omega[..., :3, :3].diagonal(dim1=-2, dim2=-1).sum(-1)) / 2 + 0 * self.log_beta


@pytest.mark.parametrize(("radius", "violated"), [(133.0, False), (150.0, True)])
def test_dlc_of_the_energy_sees_where_an_energy_stops_being_star_convex(radius, violated):
    table = {"radius_deg": radius, "samples": 200, "mu": 0.0, "fractions": [0.5, 0.99]}
    losses = _losses.Losses(
        Cosine(), recipe(dlc="energy", loss={"contrastive": 0.0, "unrolled": 0.0, "matching": 0.0}, convexify=table)
    )
    value, figures = losses.term("dlc", None, at_identity(8), draw(8))
    assert (value.item() > 1e-4) == violated
    assert (figures["dlc_violation"] > 0) == violated


def test_on_the_label_side_the_chord_has_no_gradient_to_the_network_where_the_label_moves_in_a_straight_line():
    """By algebra it is -lam (1 - lam) |xi|^2 whatever was predicted (and mu / 2 times that beside it)."""
    network = tiny()
    only = {"contrastive": 0.0, "unrolled": 0.0, "matching": 0.0}
    table = {"space": "entries", "mu": 4.0, "terms": ["chord"], "rho": 1.0}
    given = recipe(dlc="label", loss=only, convexify=table)
    pairs = PairDataset(blocks(), given.data.make(), 0, 4)
    batch = collate([pairs[i] for i in range(4)])
    total, figures = _losses.Losses(network, given)(batch, draw(4))
    total.backward()
    assert figures["dlc_chord"] > 1e-4  # (mu / 2 - 1) lam (1 - lam) |xi|^2
    assert max(p.grad.abs().max().item() for p in network.parameters() if p.grad is not None) < 1e-5
    with_minimum = recipe(dlc="label", loss=only, convexify={**table, "terms": ["minimum"]})
    total, _ = _losses.Losses(network, with_minimum)(batch, draw(4))
    total.backward()
    assert network.log_beta.grad.abs() > 1e-3


def test_what_dlc_learns_itself_is_trained_and_resumed(tmp_path):
    table = {"learn_mu": True, "mu": 0.3, "learn_fraction": True, "terms": ["minimum", "chord"]}
    given = recipe(dlc="energy", convexify=table)
    train(given, blocks(), tmp_path, network=tiny(), stop_at=3)
    learned = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["losses"]
    assert len(learned) == 2 and all(value.item() != pytest.approx(0.3, abs=1e-6) for value in learned.values())


# --- the loop --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from beginning to end: its folder and what it returned."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    network = tiny()
    before = torch.random.get_rng_state()
    trained = train(recipe(), blocks(), folder, network=network)
    torch.set_num_threads(threads)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's random numbers go on as they would have
    return folder, trained


def test_training_lowers_the_loss_and_betters_the_validation(whole):
    steps = {"steps": 60, "rate": 0.03}
    given = recipe(optimizer=steps, validation={"every": 20, "pairs": 12}, loss={"contrastive": 0.0, "matching": 0.0})
    fresh = validate(tiny(), PairDataset(blocks().select(split="val"), given.data.make(), 1_000_003, 12))
    folder = whole[0].parent / "longer"
    trained = train(given, blocks(), folder, network=tiny())
    losses = [float(row["loss"]) for row in rows(folder)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert trained.figures["rotation_deg"] < fresh["rotation_deg"]
    again = validate(trained.network, PairDataset(blocks().select(split="val"), given.data.make(), 1_000_003, 12))
    assert again["rotation_deg"] == pytest.approx(trained.figures["rotation_deg"])  # the best weights came back
    assert not trained.network.training


def test_an_interrupted_run_resumes_to_the_same_bits(whole, tmp_path):
    folder, trained = whole
    train(recipe(), blocks(), tmp_path, network=tiny(), stop_at=8, checkpoint_every=5)
    # the machine dies after the checkpoint of step 8 and one more row of the log
    with (tmp_path / "log.csv").open("a") as log:
        log.write("9" + ",0" * 15 + "\n")
    torch.manual_seed(99)
    resumed = train(recipe(), blocks(), tmp_path, network=Tiny(), resume=True)
    for name, weight in trained.network.state_dict().items():
        assert torch.equal(weight, resumed.network.state_dict()[name]), name
    assert rows(tmp_path) == rows(folder)
    figures = [{k: v for k, v in t.figures.items() if k != "seconds"} for t in (trained, resumed)]
    assert figures[0] == figures[1]


def test_another_seed_gives_another_run(whole, tmp_path):
    train(recipe(seed=1), blocks(), tmp_path, network=tiny(), stop_at=2)
    assert rows(tmp_path)[0]["loss"] != rows(whole[0])[0]["loss"]


def test_an_existing_run_is_not_overwritten_nor_continued_with_another_recipe(whole):
    with pytest.raises(InputError, match="checkpoint"):
        train(recipe(), blocks(), whole[0], network=tiny())
    with pytest.raises(InputError, match="recipe"):
        train(recipe(optimizer={"rate": 0.5}), blocks(), whole[0], network=tiny(), resume=True)
    with pytest.raises(InputError, match="shapes"):
        train(recipe(), blocks(seed=5), whole[0], network=tiny(), resume=True)


def test_the_rate_warms_up_and_falls_as_a_cosine(whole):
    rates = [float(row["rate"]) for row in rows(whole[0])]
    np.testing.assert_allclose(rates[:3], [0.01 / 3, 0.02 / 3, 0.01], rtol=1e-6)
    expected = [0.01 * (0.01 + 0.99 * (1 + math.cos(math.pi * k / 9)) / 2) for k in range(9)]
    np.testing.assert_allclose(rates[3:], expected, rtol=1e-6)


def test_the_log_has_every_term_and_the_validation(whole):
    log = rows(whole[0])
    assert [row["step"] for row in log] == [str(i) for i in range(1, 13)]
    parts = [float(log[3][name]) for name in ("contrastive", "unrolled", "dlc")] + [0.1 * float(log[3]["matching"])]
    assert float(log[3]["dlc"]) == pytest.approx(5 * float(log[3]["dlc_chord"]), rel=1e-5)  # rho, and no weight else
    assert float(log[3]["loss"]) == pytest.approx(sum(parts), rel=1e-5)
    seen = [row["step"] for row in log if row["validation_success"]]
    assert seen == ["6", "12"]


def test_tensorboard_gets_what_the_log_gets_and_may_be_missing(tmp_path, monkeypatch, caplog):
    written: dict[str, list[float]] = {}

    class Writer:
        def __init__(self, folder):
            pass

        def add_scalar(self, name, value, step):
            written.setdefault(name, []).append(value)

        def close(self):
            written["closed"] = []

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(recipe(), blocks(), tmp_path / "a", network=tiny(), stop_at=6, tensorboard=True)
    losses = [float(row["loss"]) for row in rows(tmp_path / "a")]
    np.testing.assert_allclose(written["loss"], losses, rtol=1e-6)
    assert len(written["validation/success"]) == 1 and "closed" in written
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # then its import fails
    train(recipe(), blocks(), tmp_path / "b", network=tiny(), stop_at=1, tensorboard=True)
    assert "not installed" in caplog.text and len(rows(tmp_path / "b")) == 1


def test_costs_are_told_in_forward_passes(whole):
    costs = whole[1].costs
    assert set(costs) == {"forward", "step", "contrastive", "unrolled", "matching", "dlc"}
    assert costs["forward"]["passes"] == 1 and costs["step"]["passes"] > 1
    assert costs["step"]["seconds"] > costs["forward"]["seconds"] > 0


def test_a_gradient_that_is_not_finite_is_left_out(tmp_path):
    class Broken(Tiny):
        def value(self, omega, encoded):
            return super().value(omega, encoded) * math.nan

    torch.manual_seed(0)
    network = Broken()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    train(recipe(dlc="none", loss={"unrolled": 0.0}), blocks(), tmp_path / "a", network=network, stop_at=3)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, before[name])
    with pytest.raises(FloatingPointError):
        train(
            recipe(dlc="none", loss={"unrolled": 0.0}, optimizer={"steps": 40}),
            blocks(),
            tmp_path / "b",
            network=network,
        )


def test_half_precision_is_the_encoders_alone(tmp_path):
    seen = {}

    class Watched(Tiny):
        def _features(self, cloud):
            features = super()._features(cloud)
            seen["features"] = self.feature(cloud[..., :1]).dtype
            return features

        def value(self, omega, encoded):
            energy = super().value(omega, encoded)
            seen["energy"] = energy.dtype
            return energy

    torch.manual_seed(0)
    given = recipe(optimizer={"precision": "bf16"}, loss={"contrastive": 1.0, "unrolled": 0.0, "matching": 0.0})
    train(given, blocks(), tmp_path, network=Watched(), stop_at=1)
    assert seen == {"features": torch.bfloat16, "energy": torch.float32}
    assert math.isfinite(float(rows(tmp_path)[0]["loss"]))


PARALLEL = """
import sys
sys.path.insert(0, {tests!r})
import torch
from learning import Tiny, blocks
from dlc_reg.training import make_recipe, train
torch.set_num_threads(1)
torch.manual_seed(0)
train(make_recipe({table!r}), blocks(), {out!r}, network=Tiny(), stop_at=6)
"""


def test_two_processes_learn_what_one_learns_with_the_double_batch(whole, tmp_path):
    root = Path(__file__).resolve().parent
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL.format(tests=str(root), table=TABLE, out=str(tmp_path / "out")))
    environment = {**os.environ, "PYTHONPATH": str(root.parent), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    shared, alone = rows(tmp_path / "out"), rows(whole[0])
    for name in ("loss", "contrastive", "unrolled", "matching", "dlc", "gradient"):
        values = [[float(row[name]) for row in log[:6]] for log in (shared, alone)]
        np.testing.assert_allclose(*values, rtol=2e-4, err_msg=name)


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    from dlc_reg import training
    from dlc_reg._parallel import Processes

    group = Processes(0, 3, torch.device("cpu"))
    with pytest.raises(InputError, match="3 processes"):
        training._Run(recipe(), blocks(), tmp_path, tiny(), group)


def test_validation_never_shows_the_network_the_truth():
    """Other truths beside the same clouds change the figures, never the estimates."""
    pairs = PairDataset(blocks().select(split="val"), recipe().data.make(), 3, 4)
    given = collate([pairs[i] for i in range(4)])
    network = tiny().eval()
    seen = []
    network.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    validate(network, pairs)
    (args, kwargs) = seen[0]
    assert len(args) == 4 and torch.equal(args[0], given.source) and set(kwargs) == {"iterations"}


def test_shapes_without_a_validation_split_lend_some_of_the_training_ones():
    shapes = blocks(48)
    shapes = replace(shapes, split=np.where(shapes.split == "test", "test", "train"))
    training, held_out = split(shapes, "all")
    assert len(training) == 38 and len(held_out) == 2
    assert not set(training.name) & set(held_out.name) and not set(shapes.name[shapes.split == "test"]) & {
        *training.name,
        *held_out.name,
    }
    assert len(split(blocks(48), "all")[1]) == 8


def test_protocols_take_turns_a_batch_each(whole):
    given = recipe(data={"also": ["full-150-180"]})
    training, _ = make_pairs(given, blocks())
    angles = [rotation_error(training[i].truth, torch.eye(4)).rad2deg().item() for i in range(16)]
    assert max(angles[0:4] + angles[8:12]) < 45.1 and min(angles[4:8] + angles[12:16]) > 149.9
    alone, _ = make_pairs(recipe(), blocks())
    assert torch.equal(alone[1].source, training[1].source)


def test_stretched_shapes_stay_in_the_unit_sphere_and_keep_their_pose():
    rng = np.random.default_rng(0)
    points = blocks(1).points[0]
    stretched = Stretch(0.4)(points, None, rng)
    assert np.linalg.norm(stretched, axis=1).max() == pytest.approx(1, abs=1e-6)
    factors = stretched / points
    np.testing.assert_allclose(factors.std(axis=0), 0, atol=1e-4)  # a factor an axis
    assert np.ptp(factors.mean(axis=0)) > 0.05
