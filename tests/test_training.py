"""A training loop whose runs depend on recipe and data alone."""

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
from conftest import PACKAGE
from learning import TABLE, Tiny, blocks, recipe, tiny

from dlc_reg import training
from dlc_reg._checkpoint import packed, unpacked
from dlc_reg._parallel import Processes
from dlc_reg._training_pairs import Stretch, make_pairs, split
from dlc_reg._validation import validate
from dlc_reg.errors import InputError
from dlc_reg.manifold import SE3
from dlc_reg.metrics import rotation_error
from dlc_reg.protocols import PairDataset
from dlc_reg.training import train


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]


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


def test_what_dlc_learns_itself_is_trained_and_resumed(tmp_path):
    table = {"learn_mu": True, "mu": 0.3, "learn_fraction": True, "terms": ["minimum", "chord"]}
    given = recipe(dlc="energy", convexify=table)
    train(given, blocks(), tmp_path, network=tiny(), stop_at=3)
    learned = unpacked((tmp_path / "checkpoint.safetensors").read_bytes())["losses"]
    assert len(learned) == 2 and all(value.item() != pytest.approx(0.3, abs=1e-6) for value in learned.values())


def test_another_seed_gives_another_run(whole, tmp_path):
    train(recipe(seed=1), blocks(), tmp_path, network=tiny(), stop_at=2)
    assert rows(tmp_path)[0]["loss"] != rows(whole[0])[0]["loss"]


def test_an_existing_run_is_not_overwritten_nor_continued_with_another_recipe(whole):
    with pytest.raises(InputError, match="checkpoint"):
        train(recipe(), blocks(), whole[0], network=tiny())
    with pytest.raises(InputError, match="recipe"):
        train(recipe(optimizer={"rate": 0.5}), blocks(), whole[0], network=tiny(), resume=True)
    with pytest.raises(InputError, match="data"):
        train(recipe(), blocks(seed=5), whole[0], network=tiny(), resume=True)


def test_a_checkpoint_that_lacks_an_entry_is_refused(whole, tmp_path):
    state = unpacked((whole[0] / "checkpoint.safetensors").read_bytes())
    for name in state:
        rest = {key: value for key, value in state.items() if key != name}
        (tmp_path / "checkpoint.safetensors").write_bytes(packed(rest))
        with pytest.raises(InputError, match=r"out: .*a whole checkpoint"):
            train(recipe(), blocks(), tmp_path, network=tiny(), resume=True)


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
import os, sys
sys.path.insert(0, {tests!r})
import torch
from learning import Tiny, blocks
from dlc_reg.training import make_recipe, train
torch.set_num_threads(1)
torch.manual_seed(0)
out = {out!r} + os.environ["RANK"]  # a machine each: the second sees no checkpoint
train(make_recipe({table!r}), blocks(), out, network=Tiny(), stop_at=3)
train(make_recipe({table!r}), blocks(), out, network=Tiny(beta=1.0), resume=True, stop_at=6)
"""


def test_two_processes_without_a_common_folder_learn_and_resume_as_one_with_the_double_batch(whole, tmp_path):
    root = Path(__file__).resolve().parent
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL.format(tests=str(root), table=TABLE, out=str(tmp_path / "out")))
    environment = {**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "out1").exists()
    shared, alone = rows(tmp_path / "out0"), rows(whole[0])
    for name in ("loss", "contrastive", "unrolled", "matching", "dlc", "gradient"):
        values = [[float(row[name]) for row in log[:6]] for log in (shared, alone)]
        np.testing.assert_allclose(*values, rtol=2e-4, err_msg=name)


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    group = Processes(0, 3, torch.device("cpu"))
    with pytest.raises(InputError, match="3 processes"):
        training._Run(recipe(), blocks(), tmp_path, tiny(), group)


def test_the_worst_ray_of_all_is_not_the_mean_of_the_processes_worst(tmp_path):
    given, group = recipe(convexify={"aggregate": "max"}), Processes(0, 2, torch.device("cpu"))
    with pytest.raises(InputError) as caught:
        training._Run(given, blocks(), tmp_path, tiny(), group)
    assert caught.value.argument == "convexify.aggregate"
    training._Run(given, blocks(), tmp_path, tiny(), replace(group, count=1))
    training._Run(replace(given, dlc="none"), blocks(), tmp_path, tiny(), group)


def test_validation_never_shows_the_network_the_truth(monkeypatch):
    """Other truths beside the same clouds change the figures, never the estimates."""
    pairs = PairDataset(blocks().select(split="val"), recipe().data.make(), 3, 4)
    network = tiny().eval()
    seen = []
    network.register_forward_hook(lambda module, given, solution: seen.append(solution.omega))
    honest = validate(network, pairs)
    original = PairDataset.__getitem__
    other = SE3().retract(torch.eye(4), torch.tensor([0.3, -0.5, 0.2, 0.1, 0.2, 0.3]))
    monkeypatch.setattr(
        PairDataset,
        "__getitem__",
        lambda self, i: replace(original(self, i), truth=other @ original(self, i).truth),
    )
    lied = validate(network, pairs)
    assert torch.equal(*seen)
    assert honest["rotation_deg"] != pytest.approx(lied["rotation_deg"], abs=0.1)


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
