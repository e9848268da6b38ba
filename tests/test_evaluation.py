"""Evaluation: methods without a way to the truth, and figures by hand."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from learning import SMALL, Tiny, block, blocks
from scipy.spatial.transform import Rotation

from dlc_reg import evaluation
from dlc_reg._baselines import polished, principal_axes
from dlc_reg._methods import orthonormal
from dlc_reg._tables import published
from dlc_reg.errors import InputError
from dlc_reg.evaluation import REFINEMENTS, Clouds, Learned, OneByOne, Polished, evaluate, method
from dlc_reg.protocols import Pair, PairDataset, protocol
from dlc_reg.registration.learned import ARCHITECTURES
from dlc_reg.registration.learned.weights import save_model


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


@pytest.fixture(scope="module")
def shapes():
    return blocks(6, 600)


def pose(degrees: float, axis=(0, 0, 1), shift=(0, 0, 0)) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * np.array(axis)).as_matrix()
    T[:3, 3] = shift
    return T


# --- what a method can see -------------------------------------------------------------------------------------------
def test_clouds_hold_the_points_and_nothing_else():
    pair = Pair(torch.rand(5, 3), torch.rand(4, 3), torch.eye(4), 7)
    clouds = evaluation.blind(pair)
    assert set(vars(clouds)) == {"source", "target"}
    assert clouds.source.shape == (5, 3) and clouds.target.shape == (4, 3)


def test_other_truths_change_no_estimate(shapes, monkeypatch):
    """Each pair's clouds beside the truth of another pair: the errors change, the estimates do not."""
    methods = ["identity", "principal_axes", "icp", Polished("tiny", Learned("tiny", Tiny()))]
    honest = evaluate(shapes, protocol("full-10-40"), methods, pairs=4, chamfer=False)
    original = PairDataset.__getitem__
    monkeypatch.setattr(
        PairDataset,
        "__getitem__",
        lambda self, i: replace(original(self, i), truth=original(self, (i + 1) % len(self)).truth),
    )
    lied = evaluate(shapes, protocol("full-10-40"), methods, pairs=4, chamfer=False)
    assert not np.allclose(honest.truths, lied.truths)
    for name in honest.estimates:
        np.testing.assert_array_equal(honest.estimates[name], lied.estimates[name])
        assert not np.allclose(honest.errors(name)[0], lied.errors(name)[0])


def test_all_methods_get_the_same_pairs_and_each_row_keeps_its_place(shapes):
    seen: dict[str, list[np.ndarray]] = {"a": [], "b": []}

    def recorder(name):
        def run(source, target):
            seen[name].append(source)
            return pose(float(source[0, 0]), shift=source[1])

        return OneByOne(name, run)

    results = evaluate(shapes, "dcp-resampled", [recorder("a"), recorder("b")], pairs=5, seed=3)
    for a, b in zip(seen["a"], seen["b"], strict=True):
        np.testing.assert_array_equal(a, b)
    clouds = seen["a"][1:]  # the first is to warm up
    np.testing.assert_allclose(results.estimates["a"][:, :3, 3], [c[1] for c in clouds])


def test_a_network_is_in_eval_and_without_gradients(shapes):
    seen = []

    class Watched(Tiny):
        def encode(self, *clouds):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().encode(*clouds)

    evaluate(shapes, "dcp", [Learned("watched", Watched().train())], pairs=2, chamfer=False)
    assert set(seen) == {(False, False)}


# --- figures ---------------------------------------------------------------------------------------------------------
def test_the_figures_of_known_errors(shapes):
    """Estimates that are off by 2, 4 and 12 degrees about z, and by (0, 0, 0.3), (0.4, 0, 0) and nothing."""
    off = [(2, (0, 0, 0.3)), (4, (0.4, 0, 0)), (12, (0, 0, 0))]
    data = PairDataset(shapes, "full-0-0", 0, 3)
    answers = {data[i].source.double().numpy().tobytes(): (data[i].truth.double().numpy(), off[i]) for i in range(3)}

    def cheat(source, target):
        truth, (degrees, shift) = answers[source.tobytes()]
        estimate = truth @ pose(degrees)
        estimate[:3, 3] = truth[:3, 3] + shift
        return estimate

    results = evaluate(shapes, "full-0-0", [OneByOne("off", cheat)], pairs=3)
    figures = results.figures()["off"]
    expected = {
        "rotation_mean": 6.0,
        "rotation_median": 4.0,
        "translation_mean": 0.7 / 3,
        "translation_median": 0.3,
        "euler_rmse": math.sqrt((4 + 16 + 144) / 9),
        "euler_mae": 18 / 9,
        "translation_rmse": math.sqrt(0.25 / 9),
        "translation_mae": 0.7 / 9,
        "recall_1": 0.0,
        "recall_5": 2 / 3,
        "recall_10": 2 / 3,
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=2e-5), name
    assert figures["chamfer"] > 0


def test_the_chamfer_distance_of_the_true_pose_is_the_least(shapes):
    for name in ("dcp-resampled", "rpmnet"):  # the first moves the target, the other the source
        data = PairDataset(shapes, name, 0, 2)
        truths = {data[i].source.double().numpy().tobytes(): data[i].truth.double().numpy() for i in range(2)}
        methods = [
            OneByOne("true", lambda s, t, truths=truths: truths[s.tobytes()]),
            OneByOne("near", lambda s, t, truths=truths: pose(5.0) @ truths[s.tobytes()]),
        ]
        figures = evaluate(shapes, name, methods, pairs=2).figures()
        assert figures["true"]["chamfer"] < 0.01
        assert figures["true"]["chamfer"] < figures["near"]["chamfer"]


def test_an_estimate_that_is_not_finite_counts_as_no_motion(shapes):
    results = evaluate(shapes, "dcp", [OneByOne("nan", lambda s, t: np.full((4, 4), np.nan)), "identity"], pairs=2)
    np.testing.assert_array_equal(results.estimates["nan"], results.estimates["identity"])


def test_a_network_that_answers_nan_counts_as_no_motion_and_spoils_no_other_pair(shapes):
    class Lost(Tiny):
        def forward(self, *clouds, **options):
            solution = super().forward(*clouds, **options)
            omega = torch.where(torch.arange(len(solution.omega))[:, None, None] == 1, torch.nan, solution.omega)
            return replace(solution, omega=omega)

    torch.manual_seed(0)
    lost, sound = Lost(), Tiny()
    sound.load_state_dict(lost.state_dict())
    for polish in (False, True):
        runners = [Learned("lost", lost), Learned("sound", sound)]
        if polish:
            runners = [Polished(runner.name, runner) for runner in runners]
        found = evaluate(shapes, "full-10-40", runners, pairs=3, chamfer=False).estimates
        np.testing.assert_array_equal(found["lost"][[0, 2]], found["sound"][[0, 2]])
        assert np.isfinite(found["lost"]).all()
        assert polish or np.array_equal(found["lost"][1], np.eye(4))


def test_a_chamfer_distance_that_was_not_asked_for_is_shown_nowhere(shapes, tmp_path):
    results = evaluate(shapes, "dcp", ["identity"], pairs=2, chamfer=False)
    row = results.text().splitlines()[2].split("|")[1:-1]
    assert [i for i, cell in enumerate(row) if not cell.strip()] == [9]  # "mod. Chamfer" is column 9 of 13
    document, pairs = results.save(tmp_path)
    assert json.loads(document.read_text())["methods"]["identity"]["chamfer"] is None
    with pairs.open() as file:
        assert [line["chamfer"] for line in csv.DictReader(file)] == ["", ""]


@pytest.mark.parametrize(("name", "sequence"), [("dcp", "zyx"), ("prnet", "zyx"), ("rpmnet", "xyz")])
def test_euler_columns_are_in_the_convention_of_the_protocols_paper(shapes, name, sequence, tmp_path):
    results = evaluate(shapes, name, ["identity"], pairs=6, chamfer=False)
    angles = Rotation.from_matrix(results.truths[:, :3, :3]).as_euler(sequence, degrees=True)
    other = Rotation.from_matrix(results.truths[:, :3, :3]).as_euler(sequence[::-1], degrees=True)
    figures = results.figures()["identity"]
    assert figures["euler_mae"] == pytest.approx(np.abs(angles).mean(), abs=1e-3)
    assert figures["euler_mae"] != pytest.approx(np.abs(other).mean(), abs=1e-2)
    assert json.loads(results.save(tmp_path)[0].read_text())["euler_sequence"] == sequence


def test_files_and_the_table(shapes, tmp_path):
    results = evaluate(shapes, "rpmnet-independent", ["identity", "principal_axes"], pairs=3, seed=5)
    document_path, pairs_path = results.save(tmp_path / "out")
    document = json.loads(document_path.read_text())
    assert document["data_checksum"] == shapes.checksum and document["seed"] == 5
    assert document["protocol"]["name"] == "rpmnet-independent" and document["pairs"] == 3
    assert set(document) >= {"commit", "versions", "hardware", "about_methods", "methods"}
    with pairs_path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["method"] for row in rows} == {"identity", "principal_axes"}
    mean = np.mean([float(row["rotation_deg"]) for row in rows if row["method"] == "identity"])
    assert mean == pytest.approx(document["methods"]["identity"]["rotation_mean"], rel=1e-5)
    with pytest.raises(InputError, match="exists"):
        results.save(tmp_path / "out")
    text = results.text()
    assert "RegTR" in text and "1.470" in text and "not run here" in text and "harder" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1  # Markdown whose source is aligned


def test_published_values_stand_beside_their_protocols_only():
    assert published("modelonet").rows[-1].figures == {"rotation_mean": 3.93, "translation_mean": 0.087}
    assert published("dcp").rows[0].figures["euler_rmse"] == pytest.approx(3.975, abs=1e-3)
    assert published("dcp-resampled") is not None and published("full-0-30") is None


def test_success_by_rotation_knows_the_bins(shapes):
    table = evaluation.success_by_rotation(shapes, ["identity"], bins=((0, 4), (6, 9), (30, 60)), pairs=4, points=100)
    within = [table["identity"][b] for b in ((0, 4), (6, 9), (30, 60))]
    assert [w["within_5"] for w in within] == [1, 0, 0] and [w["within_10"] for w in within] == [1, 1, 0]


# --- methods ---------------------------------------------------------------------------------------------------------
def pair_of_blocks(degrees: float, points: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = pose(degrees, np.array([2, -1, 2]) / 3, (0.1, -0.2, 0.1))
    source, target = block(rng, points), block(rng, points)
    return source, target @ truth[:3, :3].T + truth[:3, 3], truth


def degrees_off(estimate: np.ndarray, truth: np.ndarray) -> float:
    return float(np.degrees(Rotation.from_matrix(truth[:3, :3].T @ estimate[:3, :3]).magnitude()))


@pytest.mark.parametrize("name", sorted(evaluation.METHODS))
def test_every_method_finds_a_near_pose(name):
    if name not in evaluation.installed():
        pytest.skip(f"{name} needs a library that is not installed")
    source, target, truth = pair_of_blocks(8.0 if name != "identity" else 0.0)
    found = method(name)([Clouds(source, target)])
    assert found.shape == (1, 4, 4) and found.dtype == np.float64
    assert degrees_off(found[0], truth) < (4 if name not in ("identity", "principal_axes") else 12)


def test_restarts_find_a_far_pose_that_icp_does_not():
    source, target, truth = pair_of_blocks(150.0)
    clouds = [Clouds(source, target)]
    assert degrees_off(method("icp")(clouds)[0], truth) > 20
    assert degrees_off(method("icp_restarts")(clouds)[0], truth) < 4


def test_principal_axes_are_exact_on_the_same_points_up_to_the_choice_of_signs():
    rng = np.random.default_rng(1)
    source = block(rng, 400)
    truth = pose(130, np.array([1, 2, 2]) / 3, (0.3, 0.1, -0.2))
    assert degrees_off(principal_axes(source, source @ truth[:3, :3].T + truth[:3, 3]), truth) < 1e-4


def test_the_polish_reaches_the_noise():
    source, target, truth = pair_of_blocks(30.0, points=800)
    start = truth @ pose(4.0, (1, 0, 0))
    assert degrees_off(polished(source, target, start), truth) < 0.6


def test_the_polish_takes_a_far_step_only_where_the_clouds_then_lie_on_each_other():
    """Plates of which half overlaps could slide anywhere; whole blocks have no such choice."""
    rng = np.random.default_rng(0)
    plates = [np.column_stack([rng.uniform(-1, 1, (400, 2)), 0.01 * rng.normal(size=400)]) for _ in range(2)]
    plates[1][:, 0] += 1.0
    start = pose(20.0, (1, 0, 0), (0.0, 0.1, 0.0))
    np.testing.assert_array_equal(polished(*plates, start), start)
    source, target, truth = pair_of_blocks(30.0, points=800)
    assert degrees_off(polished(source, target, truth @ pose(9.0, (1, 0, 0))), truth) < 0.6


def test_icp_may_follow_a_learned_model_to_its_end():
    """As DLC's authors have it: on the same points it is exact, from a pose that is not."""
    source, _, truth = pair_of_blocks(30.0, points=800)
    target = source @ truth[:3, :3].T + truth[:3, 3]
    runner = method("learned:softicp+icp")
    assert runner.name == "learned:softicp+icp" and degrees_off(runner([Clouds(source, target)])[0], truth) < 0.01
    near = truth @ pose(4.0, (1, 0, 0))
    assert degrees_off(REFINEMENTS["icp"](source, target, near), truth) < 0.01


def test_passes_are_for_networks_that_have_them(tmp_path):
    torch.manual_seed(0)
    save_model(tmp_path / "dcp+small.safetensors", ARCHITECTURES["dcp"](**SMALL["dcp"]), {})
    runner = method(f"learned:{tmp_path / 'dcp+small.safetensors'}", passes=4)
    assert runner.network.passes == 4 and runner.about["passes"] == 4
    with pytest.raises(InputError, match="passes"):
        method("learned:softicp", passes=4)


def test_a_method_is_not_run_again_for_its_polish(shapes):
    calls = []

    def still(source, target):
        calls.append(len(source))
        return np.eye(4)

    plain = OneByOne("still", still)
    together = evaluate(shapes, "full-0-5", [plain, Polished("polished", plain)], pairs=3, chamfer=False)
    assert len(calls) == 1 + 3  # one that warms up
    alone = evaluate(shapes, "full-0-5", [Polished("polished", plain)], pairs=3, chamfer=False)
    np.testing.assert_array_equal(together.estimates["polished"], alone.estimates["polished"])
    assert (together.estimates["polished"] != np.eye(4)).any()
    assert together.seconds["polished"] > together.seconds["still"]


def test_orthonormal_poses_are_rotations_to_the_last_digit():
    rough = pose(50, (0, 1, 0)).astype(np.float32).astype(np.float64) + 1e-6
    exact = orthonormal(torch.from_numpy(rough[None]))[0]
    np.testing.assert_allclose(exact[:3, :3] @ exact[:3, :3].T, np.eye(3), atol=1e-14)
    assert degrees_off(exact, rough) < 1e-3


def test_ragged_clouds_are_masked():
    seen = []

    class Watched(Tiny):
        def encode(self, source, target, source_mask=None, target_mask=None):
            seen.append((source.shape, source_mask, target_mask))
            return super().encode(source, target)

    rng = np.random.default_rng(0)
    Learned("watched", Watched())([Clouds(block(rng, 50), block(rng, 60)), Clouds(block(rng, 40), block(rng, 60))])
    shape, source_mask, target_mask = seen[0]
    assert shape == (2, 50, 3) and source_mask.sum(1).tolist() == [50, 40] and target_mask is None


def test_an_unknown_method_and_one_name_twice_are_errors(shapes):
    with pytest.raises(InputError, match="learned:WEIGHTS"):
        method("icq")
    with pytest.raises(InputError, match="different names"):
        evaluate(shapes, "dcp", ["identity", "identity"])
