"""`tools/evaluate.py` on scenes and pairs: figures against closed forms, protocols, hostile lists, files, Open3D."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from commanding import TURN, surface
from conftest import PACKAGE, ROOT
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dlc_reg.errors import InputError
from dlc_reg.geometry import apply_transform
from dlc_reg.io import write
from dlc_reg.metrics import inlier_ratio, mean_over_groups

sys.path[:0] = [str(ROOT / "datasets"), str(ROOT / "tools")]

import _fragments  # noqa: E402
import comparison  # noqa: E402
import evaluate_scenes  # noqa: E402
import scene_methods  # noqa: E402
from comparison import Problem, Row, Rule  # noqa: E402
from fragments import Fragments  # noqa: E402
from scene_methods import Answer, Given, Method  # noqa: E402

RULE = Rule(15, 0.3, 15, 1)


def pose(degrees: float, *translation: float, axis: str = "z") -> np.ndarray:
    made = np.eye(4)
    made[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    made[:3, 3] = translation or (0, 0, 0)
    return made


def method(name: str, answer: np.ndarray, trusted: bool | None = True) -> Method:
    return Method(name, lambda given: Answer(answer, "said", trusted))


def problem(scene: str = "a", truth: np.ndarray | None = None, **more) -> Problem:
    cloud = surface(50)
    truth = np.eye(4) if truth is None else truth
    return Problem(f"{scene} pair", scene, Given(cloud, cloud, 0.1), truth, RULE, **more)


# --- figures ---------------------------------------------------------------------------------------------------------
def test_redwood_is_the_rmse_of_the_true_correspondences(rng):
    """gt.info sums over correspondences q = T p: with its matrix the judge's figure is their distance, first order."""
    p = rng.normal([0, 0, 2], 1, (400, 3))
    truth, estimate = pose(40, 1, 2, 3), pose(40.8, 1.02, 1.97, 3.01)
    information = sum(g.T @ g for g in (np.hstack([np.eye(3), -2 * np.cross(np.eye(3), x)]) for x in p))
    moved = apply_transform(estimate, p) - apply_transform(truth, p)
    explicit = np.sqrt((moved**2).sum(1).mean())
    row = comparison.attempt(problem(truth=truth, information=information), method("m", estimate))
    assert row.redwood_rmse == pytest.approx(explicit, rel=0.03) and row.counts_for_redwood


def test_errors_thresholds_and_near_misses():
    truth = pose(30, 1, 0, 0)
    for degrees, shift, right, near in (
        (14.9, 0.29, True, True),
        (15.1, 0.0, False, False),
        (0.0, 0.31, False, True),
        (14.0, 0.99, False, True),
        (14.0, 1.01, False, False),
    ):
        row = comparison.attempt(problem(truth=truth), method("m", pose(30 + degrees, 1 + shift, 0, 0)))
        assert row.rotation_deg == pytest.approx(degrees, abs=1e-9) and row.translation == pytest.approx(shift)
        assert (row.right, row.near) == (right, near), (degrees, shift)


def test_translation_is_measured_where_the_source_is():
    """Turning by 1 degree about a point 1000 away from the origin moves nothing there, and the origin by 17."""
    center = np.array([1000.0, 0, 0])
    turn = pose(1)
    turn[:3, 3] = center - turn[:3, :3] @ center
    row = comparison.attempt(problem(center=center), method("m", turn))
    assert row.translation == pytest.approx(0, abs=1e-9) and row.rotation_deg == pytest.approx(1)
    assert comparison.attempt(problem(), method("m", turn)).translation == pytest.approx(17.45, abs=0.01)


def rows_of(*entries: tuple[str, float, bool | None]) -> list[Row]:
    """Scene, translation error, trusted."""
    return [
        Row(f"{k}", scene, "m", "", trusted, 1.0 + k, np.eye(4), rotation_deg=1.0 + k, translation=shift, known=True,
            redwood_rmse=shift, counts_for_redwood=k != 0, right=shift < 0.3, near=shift < 1)
        for k, (scene, shift, trusted) in enumerate(entries)
    ]  # fmt: skip


def test_means_over_scenes_and_pooled_differ_as_they_should():
    rows = rows_of(("a", 0.1, True), ("a", 0.2, False), ("a", 0.25, True), ("b", 0.9, True), ("b", 5.0, True))
    found = comparison.figures(rows)
    assert found["recall_pooled"] == pytest.approx(3 / 5) and found["recall_scenes"] == pytest.approx((1 + 0) / 2)
    # the first pair is one of consecutive fragments, and 0.25 m is beyond Redwood's 0.2 m; so is 0.2 itself
    assert found["redwood_pairs"] == 4 and found["redwood_pooled"] == 0
    assert (found["rotation_mean"], found["rotation_median"]) == (2.0, 2.0)  # over the three right ones
    assert found["translation_mean"] == pytest.approx(0.55 / 3) and found["translation_median"] == 0.2
    assert found["right_trusted"] == pytest.approx(2 / 3)
    assert (found["wrong_trusted_near"], found["wrong_trusted_gross"]) == (1, 1)
    assert found["seconds"] == 3.0 and found["errors"] == 0


def test_a_method_without_a_verdict_has_no_figures_of_trust():
    found = comparison.figures(rows_of(("a", 0.1, None), ("b", 5.0, None)))
    assert all(math.isnan(found[key]) for key in ("right_trusted", "wrong_trusted_near", "wrong_trusted_gross"))
    assert "trusted" not in comparison.table({"identity": found})
    nothing_right = comparison.figures(rows_of(("a", 5.0, False)))
    assert math.isnan(nothing_right["rotation_mean"]) and nothing_right["recall_pooled"] == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_mean_over_groups_is_that_of_the_groups_in_any_order(entries, random):
    by = {name: [v for n, v in entries if n == name] for name in {n for n, _ in entries}}
    expected = sum(sum(v) / len(v) for v in by.values()) / len(by)
    random.shuffle(entries)
    assert mean_over_groups([v for _, v in entries], [n for n, _ in entries]) == pytest.approx(expected)


def test_inlier_ratio_counts_what_the_truth_brings_together(rng):
    source = rng.normal(size=(100, 3))
    truth = pose(70, 1, 2, 3, axis="x")
    target = apply_transform(truth, source)
    target[:75] += [0.2, 0, 0]
    target[75:] += [0, 0.05, 0]
    assert inlier_ratio(source, target, truth, 0.1) == 0.25
    assert inlier_ratio(source, target, truth, 0.05 - 1e-9) == 0 and inlier_ratio(source[:0], target[:0], truth, 1) == 0
    with pytest.raises(InputError, match="source, target"):
        inlier_ratio(source, target[:5], truth, 0.1)
    with pytest.raises(InputError, match="groups"):
        mean_over_groups([1.0], ["a", "b"])


# --- running ---------------------------------------------------------------------------------------------------------
def test_methods_take_turns_and_a_failure_costs_its_pair_alone():
    calls: list[str] = []

    def solve(name):
        def of(given):
            calls.append(name)
            if name == "b":
                raise RuntimeError("broken\nlibrary")
            return Answer(np.eye(4) if name == "a" else np.full((4, 4), np.nan), "said", True)

        return of

    methods = [Method(name, solve(name)) for name in "abc"]
    found = list(comparison.run([problem(), problem("b")], methods))
    assert calls == list("abcbca") and [[r.method for r in rows] for rows in found] == [list("abc")] * 2
    right = found[0][0]
    assert right.right and not right.error
    for broken in found[1][1:]:
        assert broken.pose is None and not broken.right and broken.known and "\n" not in broken.error
    summary = comparison.summary([r for rows in found for r in rows], methods)
    assert summary["b"]["errors"] == 2 and summary["b"]["recall_pooled"] == 0 and math.isnan(summary["b"]["seconds"])


def test_matches_are_asked_for_only_when_they_are_wanted():
    cloud = surface(50)
    half = np.r_[cloud[:25], cloud[25:] + 1.0]
    exposing = Method("m", lambda given: Answer(np.eye(4)), matches=lambda given: (cloud, half))
    assert comparison.attempt(problem(inlier_distance=0.1), exposing).inlier_ratio == 0.5
    assert math.isnan(comparison.attempt(problem(), exposing).inlier_ratio)

    def breaks(given):
        raise RuntimeError

    broken = Method("m", lambda given: Answer(np.eye(4)), matches=breaks)
    assert comparison.attempt(problem(inlier_distance=0.1), broken).inlier_ratio == 0


def test_methods_are_chosen_once_and_by_name(monkeypatch):
    assert [m.name for m in scene_methods.choose(["identity", "register", "identity"])] == ["identity", "register"]
    with pytest.raises(InputError, match="ransac"):
        scene_methods.choose(["teaser"])
    monkeypatch.setitem(sys.modules, "kiss_matcher", None)
    with pytest.raises(InputError, match="pip install kiss-matcher"):
        scene_methods.choose(["kiss"])


@pytest.mark.parametrize("name", ["register", "register-viewpoints", "ransac", "fgr", "kiss", "small_gicp"])
def test_every_method_finds_a_small_motion_far_from_the_origin(name):
    """Matches expose the same motion; what each is given less of its origin comes back to it."""
    library = scene_methods.METHODS[name].library
    if library is not None:
        pytest.importorskip(library)
    far = np.array([3e5, -2e5, 1e3])
    cloud = surface(6000)
    truth = pose(2, 0.01, -0.02, 0.015)
    there, back = pose(0, *far), pose(0, *-far)
    absolute = there @ truth @ back
    source, target = cloud + far, apply_transform(truth, cloud) + far
    told = Given(source, target, 0.05, origin=far)
    answer = scene_methods.METHODS[name].solve(told)
    moved = apply_transform(answer.pose, source) - apply_transform(absolute, source)
    if name != "register-viewpoints":  # whose viewpoint, the origin, is a wrong one here
        assert np.abs(moved).max() < 0.02
    expose = scene_methods.METHODS[name].matches
    if expose is not None:
        p, q = expose(told)
        assert len(p) == len(q) > 20 and inlier_ratio(p, q, absolute, 0.1) > 0.1


# --- scenes, as a command --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two scenes of three fragments: pairs (0, 1), consecutive, and (0, 2)."""
    path, motion = tmp_path_factory.mktemp("scenes") / "f.npz", pose(8, 0.1, 0.05, 0)
    clouds = []
    for scene, seed in (("one", 0), ("two", 1)):
        first = surface(1500, seed=seed)
        clouds.append(_fragments.Cloud(scene, 0, first))
        clouds += [_fragments.Cloud(scene, k, apply_transform(np.linalg.inv(motion), first)) for k in (1, 2)]
    pairs = np.array([(0, 1), (0, 2), (3, 4), (3, 5)])
    information = np.broadcast_to(np.eye(6) * 10, (4, 6, 6))
    arrays = {"3dmatch_pairs": pairs, "3dmatch_T": np.stack([motion] * 4), "3dmatch_info": information}
    arrays |= {"kitti_pairs": pairs, "kitti_T": np.stack([motion] * 4)}
    _fragments.save_fragments(path, clouds, scale=1e-4, compress=False, arrays=arrays)
    return path


def test_consecutive_fragments_are_left_out_of_redwoods_recall_alone(scenes):
    fragments = Fragments(scenes)
    options = type("Options", (), {"num_threads": 1, "matches": False})
    tasks = list(fragments.pairs("3dmatch", None, np.random.default_rng(0)))
    made = list(evaluate_scenes.make_problems(fragments, tasks, evaluate_scenes.PROTOCOLS["3dmatch"], options))
    assert {p.name: p.information is not None for p in made} == {
        "one 0 1": False, "one 0 2": True, "two 0 1": False, "two 0 2": True
    }  # fmt: skip
    found = comparison.figures([comparison.attempt(p, method("m", np.eye(4))) for p in made])
    assert found["pairs"] == 4 and found["redwood_pairs"] == 2


def test_a_table_and_files_are_left_and_not_overwritten(scenes, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(scenes), "--method", "identity", "--method", "register", "--matches", "--out", str(out)]
    evaluate_scenes.main("3dmatch", arguments)
    shown = capsys.readouterr().out
    for text in ("below 15 deg", "0.3 m", "j = i + 1", "2 pairs remain", "*GeoTransformer*", "do not use the viewpoint",
                 "seed 0", "mean over scenes / pooled", "No inlier ratio and no FMR of identity"):  # fmt: skip
        assert text in shown, text
    document = json.loads((out / "results.json").read_text())
    ours = document["methods"]["register"]
    assert ours["recall_pooled"] == ours["redwood_scenes"] == 1 and 0 < ours["inlier_ratio"] <= 1
    assert document["methods"]["identity"]["right_trusted"] is None
    assert document["seed"] == 0 and document["versions"]["dlc_reg"] and document["hardware"]["processor"]
    assert document["data_checksum"] == Fragments(scenes).checksum()
    with (out / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {row["method"] for row in rows} == {"identity", "register"}
    assert all(float(row["t03"]) == pytest.approx(0.1, abs=0.02) for row in rows if row["method"] == "register")
    before = (out / "results.json").read_bytes()
    with pytest.raises(SystemExit, match="--overwrite"):
        evaluate_scenes.main("3dmatch", arguments)
    assert (out / "results.json").read_bytes() == before
    evaluate_scenes.main("3dmatch", [*arguments, "--overwrite", "--pairs", "1"])
    assert json.loads((out / "results.json").read_text())["pairs"] == 1


def test_kittis_protocol_has_no_redwood_and_thresholds_can_be_given(scenes, capsys):
    evaluate_scenes.main("kitti", [str(scenes), "--method", "identity"])
    shown = capsys.readouterr().out
    assert "below 5 deg and translation below 2 m (FCGF" in shown and "Redwood's rule does not apply" in shown
    assert "| identity |  0.0 / 0.0 |" in shown  # 8 degrees off
    evaluate_scenes.main("kitti", [str(scenes), "--method", "identity", "--max-rotation-deg", "9"])
    shown = capsys.readouterr().out
    assert "below 9 deg and translation below 2 m (given thresholds)" in shown and "100.0 / 100.0" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "--pairs"),
        (["--voxel-size", "nan"], "--voxel-size"),
        (["--method", "magic"], "--method"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_bad_options_are_named(scenes, arguments, message):
    with pytest.raises(SystemExit, match=message):
        evaluate_scenes.main("3dmatch", [str(scenes), *arguments])
    with pytest.raises(SystemExit, match="no pairs"):
        evaluate_scenes.main("eth", [str(scenes), "--method", "identity"])


# --- pairs, as a command ---------------------------------------------------------------------------------------------
WHERE = {"PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1"}


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), *map(str, arguments)]
    env = {**os.environ, **WHERE, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.fixture
def scans(tmp_path):
    cloud = surface(1500)
    write(tmp_path / "a.ply", cloud)
    write(tmp_path / "b.ply", apply_transform(TURN, cloud))
    (tmp_path / "truth.txt").write_text("\n".join(" ".join(map(str, row)) for row in TURN))
    (tmp_path / "twelve.txt").write_text(" ".join(["1"] * 12))
    return tmp_path


def test_pairs_from_beginning_to_end(scans):
    numbers = " ".join(map(str, np.linalg.inv(TURN).ravel()))
    lines = ["source,target,T_target_source,name", "a.ply,b.ply,truth.txt,there", f"b.ply,a.ply,{numbers},back"]
    (scans / "pairs.csv").write_text("\n".join([*lines, "a.ply,missing.ply,truth.txt,lost", "a.ply,b.ply,,unknown"]))
    done = run("pairs", scans / "pairs.csv", "--method", "register", "--method", "identity", "--out", scans / "out")
    assert done.returncode == 0, done.stderr
    assert "4 pairs, 3 of them with a truth" in done.stdout and "right: rotation below 5 deg" in done.stdout
    assert "lost, register: target: got" in done.stdout and "lost, identity" in done.stdout
    found = json.loads((scans / "out" / "results.json").read_text())["methods"]
    assert found["register"]["recall_pooled"] == pytest.approx(2 / 3) and found["register"]["errors"] == 1
    assert found["identity"]["recall_pooled"] == 0
    with (scans / "out" / "pairs.csv").open(newline="") as file:
        rows = {(row["name"], row["method"]): row for row in csv.DictReader(file)}
    assert len(rows) == 8 and rows["lost", "register"]["error"] and rows["unknown", "register"]["rotation_deg"] == ""
    assert float(rows["there", "register"]["rotation_deg"]) < 1 and rows["there", "register"]["right"] == "True"


def test_pairs_without_truth_give_verdicts_only(scans):
    (scans / "pairs.csv").write_text("source,target\na.ply,b.ply\n")
    done = run("pairs", scans / "pairs.csv", "--method", "register", "--method", "identity")
    assert done.returncode == 0, done.stderr
    assert "No truth: verdicts only." in done.stdout and "recall" not in done.stdout
    assert "register: 1 " in done.stdout and "identity: 1 no verdict" in done.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.ply,b.ply,1 2 3", "16 numbers"),
        ("a.ply,b.ply," + " ".join(["nan"] * 16), "16 numbers"),
        ("a.ply,b.ply," + " ".join(["2"] * 16), "a rotation and a translation"),
        ("a.ply,b.ply," + " ".join(map(str, np.diag([1, 1, -1, 1]).ravel())), "a rotation and a translation"),
        ("a.ply,b.ply,twelve.txt", "16 numbers"),
        ("a.ply,b.ply,a.ply", "16 numbers"),
        ("a.ply,b.ply,nothing.txt", "nothing.txt"),
        ("a.ply,b.ply,../../etc/passwd", "leads out"),
        ("../x.ply,b.ply,truth.txt", "leads out"),
        ("a.ply,b.ply,truth.txt,more", "4 cells for 3 columns"),
        ('"a.ply,b.ply,truth.txt', "cannot be read"),
        ("a.ply,b.ply,truth.txt\na.ply,b.ply,truth.txt", "twice"),
        ("", "without a pair"),
    ],
)
def test_hostile_lines_are_refused_before_any_work(scans, line, message):
    import evaluate_pairs

    (scans / "pairs.csv").write_text(f"source,target,T_target_source\n{line}\n")
    with pytest.raises(SystemExit, match="PAIRS") as caught:
        evaluate_pairs.main([str(scans / "pairs.csv"), "--out", str(scans / "out")])
    assert message in str(caught.value) and not (scans / "out").exists()


def test_the_list_of_register_many_does_not_take_truths(scans):
    from dlc_reg._many_list import read_entries

    (scans / "pairs.csv").write_text("source,target,T_target_source\na.ply,b.ply,truth.txt\n")
    with pytest.raises(InputError, match="header"):
        list(read_entries(scans / "pairs.csv"))
    (entry,) = read_entries(scans / "pairs.csv", truths=True)
    np.testing.assert_array_equal(entry.truth, TURN)


# --- against Open3D --------------------------------------------------------------------------------------------------
@pytest.mark.shared
def test_ransac_is_what_open3d_alone_finds(shared_data, tmp_path):
    """The same poses on one thread, where Open3D nearly always repeats itself, and the same recall by both rules."""
    pytest.importorskip("open3d")
    data, count = shared_data / "3dmatch_dev.npz", 4
    done = run("3dmatch", data, "--pairs", count, "--method", "ransac", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    alone = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "open3d_alone.py"), str(data), "--pairs", str(count)],
        capture_output=True, text=True, env={**os.environ, **WHERE}, check=True,
    )  # fmt: skip
    *lines, last = [line for line in alone.stdout.splitlines() if "WARNING" not in line]
    expected = np.array([[float(x) for x in line.split()[2:14]] for line in lines])
    with (tmp_path / "out" / "pairs.csv").open(newline="") as file:
        found = np.array([[float(row[key]) for key in comparison.ENTRIES] for row in csv.DictReader(file)])
    np.testing.assert_allclose(found, expected, atol=0.01)  # of 50 pairs one was 2 mm off, the others the same digits
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["methods"]["ransac"]
    words = last.replace(",", "").split()
    assert (float(words[1]), float(words[5])) == pytest.approx(
        (figures["recall_pooled"], figures["redwood_pooled"]), abs=1e-4
    )
    assert (int(words[3]), int(words[7])) == (figures["pairs"], figures["redwood_pairs"])
