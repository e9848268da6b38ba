"""Training of recurrent networks, and the data that datasets/sequences.py prepares, from small archives made here."""

from __future__ import annotations

import gzip
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.nn import functional

from dlc_reg import InputError
from dlc_reg._sequences_data import Adding, Items, Sequences, collate
from dlc_reg._sequences_training import SequenceLosses, task_loss, validate
from dlc_reg._terms import Draw
from dlc_reg.sequence import ARCHITECTURES, RecurrentNetwork
from dlc_reg.training import build_network, load_recipe, make_recipe, task_of, train

sys.path[:0] = [str(ROOT / "datasets")]
import sequences  # noqa: E402

RECIPES = sorted((ROOT / "recipes" / "sequences").glob("*.toml"))


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    torch.manual_seed(0)


def images(count: int = 40) -> Sequences:
    """Bright in one quarter of four."""
    rng = np.random.default_rng(0)
    target = np.arange(count) % 4
    values = rng.integers(0, 60, (count, 6, 6), np.uint8)
    for image, quarter in zip(values, target, strict=True):
        image[3 * (quarter // 2) :][:3, 3 * (quarter % 2) :][:, :3] += 150
    split = np.array(["train", "train", "val", "test"])[(np.arange(count) // 4) % 4]
    return Sequences(values, target.astype(np.int64), split, np.array(list("abcd")), "quarters")


def recipe(**changes):
    table = {
        "task": "sequences",
        "network": {"inputs": 6, "outputs": 4, "hidden": 8},
        "data": {"order": "rows"},
        "optimizer": {"steps": 6, "batch": 8, "rate": 0.02, "warm_up": 1},
        "validation": {"every": 3},
    }
    return make_recipe({**table, **{k: {**table.get(k, {}), **v} if isinstance(v, dict) else v
                                    for k, v in changes.items()}})  # fmt: skip


def draw(count: int = 8) -> Draw:
    return Draw(torch.Generator().manual_seed(0), count, 0, count)


def batch():
    return collate([Items(images(), 0, order="rows")[i] for i in range(8)])


def test_the_adding_problem():
    item = Adding(10, 3)[7]
    numbers, marks = item.values.T
    assert item.values.shape == (10, 2) and marks[:5].sum() == marks[5:].sum() == 1 and set(marks.tolist()) == {0, 1}
    assert torch.isclose(item.truth[0], (numbers * marks).sum())
    assert torch.equal(Adding(10, 3)[7].values, item.values) and not torch.equal(Adding(10, 4)[7].values, item.values)
    truths = torch.stack([Adding(10, 0)[i].truth for i in range(3000)])
    assert abs(truths.var().item() - 1 / 6) < 0.01  # two independent uniform numbers: 2 / 12


def test_images_are_read_by_rows_by_pixels_and_in_one_order_for_all():
    data = images()
    rows, pixels, permuted = (Items(data, 0, order=o, shuffle=False)[3].values for o in ("rows", "pixels", "permuted"))
    image = torch.from_numpy(data.values[3] / np.float32(255))
    assert torch.equal(rows, image) and torch.equal(pixels, image.reshape(36, 1))
    assert not torch.equal(permuted, pixels) and torch.equal(permuted.sort(0).values, pixels.sort(0).values)
    order = [Items(data, seed, order="permuted", shuffle=False) for seed in (0, 5)]
    assert torch.equal(order[0][3].values, order[1][3].values)
    small = Items(data, 0, order="pixels", shrink=2, shuffle=False)[3].values
    torch.testing.assert_close(small, image.reshape(3, 2, 3, 2).mean((1, 3)).reshape(9, 1))
    with pytest.raises(InputError, match=r"data\.shrink: got 5 for 6 x 6"):
        Items(data, 0, order="pixels", shrink=5)


def test_every_epoch_has_each_sequence_once_in_another_order():
    items = Items(images(), 1, order="rows")
    epochs = [[items._row(i) for i in range(k * 40, (k + 1) * 40)] for k in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40)) and epochs[0] != epochs[1]
    backwards = Items(images(), 1, order="rows")
    assert [backwards._row(i) for i in reversed(range(80))] == [*epochs[0], *epochs[1]][::-1]


def test_noise_comes_behind_and_is_new_for_each_item():
    target = np.zeros(4, np.int64)
    data = Sequences(np.ones((4, 5, 2), np.float32), target, np.array(["train"] * 4), np.array(["a"]))
    items = Items(data, 0, length=400)
    one, other = items[0].values, items[1].values
    assert torch.equal(one[:5], torch.ones(5, 2)) and one.shape == (400, 2)
    assert abs(one[5:].mean()) < 0.1 and abs(one[5:].std() - 1) < 0.1 and not torch.equal(one[5:], other[5:])
    assert torch.equal(items[0].values, one)
    with pytest.raises(InputError, match=r"data\.length"):
        Items(data, 0, length=4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_plain_loss_is_cross_entropy(smoothing):
    given, network = batch(), RecurrentNetwork(6, 4, hidden=8)
    losses = SequenceLosses(network, recipe(loss={"smoothing": smoothing}))
    total, figures = losses(given, draw())
    wanted = functional.cross_entropy(network(given.values), given.truth.argmax(-1), label_smoothing=smoothing)
    assert torch.isclose(total, wanted) and figures == {"task": pytest.approx(wanted.item())}


def test_a_margin_lowers_the_true_logit():
    network, omega, truth = RecurrentNetwork(6, 4), torch.randn(8, 4), torch.eye(4).repeat(2, 1)
    lowered = omega - 0.5 * truth
    wanted = functional.cross_entropy(lowered, truth.argmax(-1), reduction="none")
    assert torch.allclose(task_loss(network, omega, truth, True, 0.5), wanted, atol=1e-6)


def test_the_label_side_is_a_margin_and_its_chord_nothing():
    """By algebra: the chord of cross-entropy is 0 on straight rays; the minimum pushes the logits on."""
    given, network = batch(), RecurrentNetwork(6, 4, hidden=8)
    table = {"sampler": "softmax", "radius": 1.0, "mu": 0.0, "rho": 1.0}
    for terms, moved in ((["chord"], False), (["minimum"], True)):
        network.zero_grad()
        losses = SequenceLosses(network, recipe(dlc="label", loss={"task": 0.0}, convexify={**table, "terms": terms}))
        losses(given, draw())[0].backward()
        largest = max(p.grad.abs().max().item() for p in network.parameters() if p.grad is not None)
        assert (largest > 1e-5) is moved, terms


def test_processes_share_rays_and_starts():
    """Two halves of a batch, drawn for the whole of it, average to what one process has."""
    given = batch()
    halves = [slice(0, 4), slice(4, 8)]
    for dlc, sampler in (("energy", "ball"), ("label", "softmax")):
        chosen = recipe(
            dlc=dlc,
            loss={"contrastive": 1.0, "start_radius": 0.5},
            convexify={"sampler": sampler, "terms": ["minimum"]},
        )
        network = RecurrentNetwork(6, 4, hidden=8, head="mlp")
        whole = SequenceLosses(network, chosen)(given, draw())[0]
        parts = [
            SequenceLosses(network, chosen)(
                type(given)(given.values[rows], given.truth[rows], True),
                Draw(torch.Generator().manual_seed(0), 8, rows.start, rows.stop),
            )[0]
            for rows in halves
        ]
        assert torch.isclose(whole, torch.stack(parts).mean(), rtol=1e-5)


def test_a_run_learns_resumes_and_is_written(tmp_path):
    chosen = recipe(network={"head": "mlp"}, dlc="energy", optimizer={"steps": 60}, validation={"every": 30})
    trained = train(chosen, images(), tmp_path / "a", device="cpu")
    assert trained.figures["success"] > 0.7 and set(trained.costs) == {"forward", "step", "task", "dlc"}
    train(chosen, images(), tmp_path / "b", device="cpu", stop_at=11)
    again = train(chosen, images(), tmp_path / "b", device="cpu", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(trained.network.parameters(), again.network.parameters(), strict=True))
    from dlc_reg.networks.files import load_network

    path = tmp_path / "w.safetensors"
    task_of(chosen).save(path, trained.network, {"recipe": chosen.to_dict()})
    read = load_network(path, ARCHITECTURES)
    x = torch.randn(3, 6, 6)
    assert torch.equal(read(x), trained.network(x)) and make_recipe(read.card["recipe"]) == chosen


def test_success_of_values_is_the_variance_explained():
    values = np.random.default_rng(0).random((50, 3, 1), np.float32)
    data = Sequences(values, values.sum((1, 2)), np.array(["val"] * 50), np.zeros(0, "<U1"))
    network = RecurrentNetwork(1, 1, hidden=4)
    with torch.no_grad():
        network.head.minimiser.weight.zero_()
        network.head.minimiser.bias.fill_(float(data.target.mean()))
    figures = validate(network, Items(data, 0, shuffle=False))
    assert abs(figures["success"]) < 1e-5 and figures["loss"] == pytest.approx(data.target.var(), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"network": {"inputs": 5}}, "network.inputs, outputs"),
        ({"network": {"outputs": 3}}, "network.inputs, outputs"),
        ({"network": {"width": 3}}, "network"),
        ({"data": {"order": "stored"}}, "data.order"),
        ({"loss": {"task": 0.0}}, "loss"),
        ({"loss": {"smoothing": 1.0}}, "loss.smoothing, temperature"),
        ({"convexify": {"radius": 0.0}}, "convexify.radius"),
        ({"architecture": "elman"}, "architecture"),
    ],
)
def test_wrong_recipes_are_named(changes, argument, tmp_path):
    with pytest.raises(InputError) as caught:
        train(recipe(**changes), images(), tmp_path, device="cpu")
    assert caught.value.argument == argument


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_build_what_they_say(path):
    chosen = load_recipe(path)
    assert chosen.task == "sequences" and chosen.name == path.stem
    network = build_network(chosen)
    assert network(torch.zeros(2, 3, chosen.network["inputs"])).shape == (2, chosen.network["outputs"])


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return gzip.compress(head + array.tobytes())


def test_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "train": rng.integers(0, 256, (30, 28, 28), np.uint8),
        "t10k": rng.integers(0, 256, (20, 28, 28), np.uint8),
    }
    for half, array in values.items():
        (tmp_path / f"{half}-images-idx3-ubyte.gz").write_bytes(idx(array))
        (tmp_path / f"{half}-labels-idx1-ubyte.gz").write_bytes(idx((np.arange(len(array)) % 10).astype(np.uint8)))
    arguments = ["fashion-mnist", "--archive", str(tmp_path), "--output", str(tmp_path / "f.npz")]
    sequences.main(arguments)
    made = Sequences.load(tmp_path / "f.npz")
    assert np.array_equal(made.values[made.split == "test"], values["t10k"]) and made.outputs == 10
    assert made.target[:12].tolist() == [*range(10), 0, 1] and made.title == "Fashion-MNIST"
    training, validating = made.halves()
    assert len(training) == 27 and len(validating) == 3 and validating.outputs == 10
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx(values["t10k"])[:-9])
    with pytest.raises((SystemExit, EOFError, OSError)):
        sequences.main(arguments)


def test_har_merges_six_activities_to_two(tmp_path):
    rng, files, tables = np.random.default_rng(0), {}, {}
    for half, count in (("train", 12), ("test", 6)):
        for channel in sequences.CHANNELS:
            tables[half, channel] = rng.normal(3, 2, (count, 128)).astype(np.float32)
            text = "\n".join(" ".join(f"{v:.9e}" for v in row) for row in tables[half, channel])
            files[f"UCI HAR Dataset/{half}/Inertial Signals/{channel}_{half}.txt"] = text
        files[f"UCI HAR Dataset/{half}/y_{half}.txt"] = "\n".join(str(1 + i % 6) for i in range(count))
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as inner:
        for name, text in files.items():
            inner.writestr(name, text)
    with zipfile.ZipFile(tmp_path / "har.zip", "w") as outer:
        outer.write(tmp_path / "inner.zip", "UCI HAR Dataset.zip")
    for archive in ("har.zip", "inner.zip"):
        sequences.main(["har-2", "--archive", str(tmp_path / archive), "--output", str(tmp_path / "h.npz")])
    made = Sequences.load(tmp_path / "h.npz")
    assert made.values.shape == (18, 128, 9)
    # walking, upstairs, downstairs, sitting, standing, laying
    assert made.target[:6].tolist() == [1, 0, 1, 0, 1, 0]
    training = made.values[made.split == "train"]
    assert np.allclose(training.mean((0, 1)), 0, atol=1e-5) and np.allclose(training.std((0, 1)), 1, atol=1e-5)
    raw = tables["test", "total_acc_z"]
    assert np.corrcoef(raw.ravel(), made.values[12:, :, 8].ravel())[0, 1] > 0.99999


def test_ts_files_have_channels_apart_by_colons():
    text = "#x\n@classLabel true b a\n@data\n1,2,3:4,5,6:b\n7,8,9:10,11,12:a\n"
    values, labels = sequences.read_ts(text)
    assert labels == ["b", "a"] and values.shape == (2, 3, 2)
    assert values[0].tolist() == [[1, 4], [2, 5], [3, 6]]
    with pytest.raises(SystemExit, match="one length"):
        sequences.read_ts("@data\n1,2:3,4:a\n1,2,3:4,5,6:a\n")


def test_adding_is_prepared_for_holding_out_alone(tmp_path):
    sequences.main(["adding", "--output", str(tmp_path / "a.npz"), "--length", "20"])
    made = Sequences.load(tmp_path / "a.npz")
    assert made.values.shape == (2000, 20, 2) and set(made.split) == {"val", "test"} and made.outputs == 1
    assert np.allclose((made.values[..., 0] * made.values[..., 1]).sum(1), made.target, atol=1e-6)
    small = {"steps": 2, "batch": 4}
    table = {"network": {"inputs": 2, "outputs": 1}, "data": {"order": "stored"}, "optimizer": small}
    with pytest.raises(InputError, match=r"data\.generate"):
        train(recipe(**table), made, tmp_path / "run", device="cpu")
    table["data"]["generate"] = True
    assert train(recipe(**table), made, tmp_path / "run", device="cpu").figures["loss"] > 0


@pytest.mark.shared
def test_mnists_test_half_is_split_and_says_so(tmp_path, shared_data):
    sequences.main(["mnist", "--archive", str(shared_data / "sequences"), "--output", str(tmp_path / "m.npz")])
    made = Sequences.load(tmp_path / "m.npz")
    assert "test half alone" in made.title
    assert [(made.split == s).sum() for s in ("train", "val", "test")] == [8000, 1000, 1000]
    known = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # of MNIST's test half
    assert np.bincount(made.target).tolist() == known
