"""`dlc-reg register-multiway`: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commanding import files, run, surface
from graphs import Answers, poses
from registering import move

from dlc_reg import io, multiway
from dlc_reg.registration.result import Verdict


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """Three files of 3000 points, the truth, and the stand-in that knows it."""
    truth = poses(np.random.default_rng(0), 3)
    clouds = [move(np.linalg.inv(pose), surface(3000)) for pose in truth]
    paths = [tmp_path / f"scan{n}.ply" for n in range(3)]
    for path, cloud in zip(paths, clouds, strict=True):
        io.write(path, cloud)
    answers = Answers(truth, clouds)
    monkeypatch.setattr(multiway, "register_many", answers)
    return paths, truth, answers


def test_poses_and_the_merged_cloud(scans, tmp_path):
    paths, truth, _ = scans
    output, merged = tmp_path / "poses.json", tmp_path / "merged.ply"
    done = run("register-multiway", *paths, "-o", output, "--save-merged", merged)
    assert done.exit_code == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "read     3 clouds, 9,000 points" and lines[1].startswith("pairs    3 of 3 used")
    assert lines[-1].startswith("VERDICT  aligned: 3 trusted pairs connect all 3 clouds")
    assert f"wrote    {output}, {merged}" in lines
    document = json.loads(output.read_text())
    np.testing.assert_allclose(document["poses"], truth, atol=1e-9)
    assert document["clouds"] == [str(path) for path in paths] and document["exit_code"] == 0
    assert document["verdict"] == "aligned" and len(document["edges"]) == 3
    np.testing.assert_allclose(io.read(merged).points, np.tile(surface(3000), (3, 1)), atol=1e-5)
    quiet = run("register-multiway", *paths, "-o", output, "--overwrite", "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_a_folder(scans, tmp_path):
    paths, _, answers = scans
    (tmp_path / "notes.md").write_text("not a cloud")
    done = run("register-multiway", tmp_path, "-o", tmp_path / "poses.json")
    assert done.exit_code == 0 and sorted(answers.asked) == [(1, 0), (2, 0), (2, 1)]
    assert json.loads((tmp_path / "poses.json").read_text())["clouds"] == [str(path) for path in paths]


def test_a_cloud_without_a_pose(scans, tmp_path):
    paths, _, answers = scans
    answers.verdicts = {(2, 0): Verdict.DOUBTFUL, (2, 1): "it broke"}
    done = run("register-multiway", *paths, "-o", tmp_path / "p.json", "--save-merged", tmp_path / "m.npy")
    assert done.exit_code == 2 and "no trusted pair connects scan2.ply" in done.stdout.splitlines()[-1]
    assert "scan2.ply -> scan1.ply: it broke" in done.stdout
    assert json.loads((tmp_path / "p.json").read_text())["poses"][2] is None
    assert len(np.load(tmp_path / "m.npy")) == 6000


def test_a_failure_writes_no_cloud(scans, tmp_path):
    paths, _, answers = scans
    answers.verdicts = {(1, 0): Verdict.FAILED, (2, 0): Verdict.FAILED}
    done = run("register-multiway", *paths, "-o", tmp_path / "p.json", "--save-merged", tmp_path / "m.ply")
    assert done.exit_code == 3 and "withheld" in done.stdout
    assert (tmp_path / "p.json").exists() and not (tmp_path / "m.ply").exists()


def test_options_reach_the_library(scans, tmp_path, monkeypatch):
    paths, _, _ = scans
    calls = []
    truth = Answers(scans[1], [io.read(path).points for path in paths])

    def keep(given, **options):
        calls.append((given, options))
        monkeypatch.setattr(multiway, "register_many", truth)
        return multiway.register_multiway(given)

    monkeypatch.setattr("dlc_reg._multiway_command.register_multiway", keep)
    output = tmp_path / "p.json"
    run("register-multiway", *paths, "-o", output, "--sensor-frame", "--method", "point-to-plane", "--tolerance", "0.5")
    run("register-multiway", *paths, "-o", output, "--overwrite", "--workers", "3", "--strict")
    (given, first), (_, second) = calls
    assert given == paths and first["viewpoints"] == [(0.0, 0.0, 0.0)] * 3
    assert first["method"] == "point_to_plane" and first["tolerance"] == 0.5 and first["executor"] is None
    assert first["remove_non_finite"] is True and first["num_threads"] is None
    assert second["viewpoints"] is None and second["executor"].args == (3,) and second["in_flight"] == 6
    assert second["remove_non_finite"] is False and "num_threads" not in second


def test_bad_input(scans, tmp_path):
    paths, _, answers = scans
    output, kept = tmp_path / "p.json", tmp_path / "kept.json"
    kept.write_text("precious")
    (tmp_path / "empty").mkdir()
    broken = surface(300)
    broken[3] = np.nan
    np.save(tmp_path / "broken.npy", broken)
    before = files(tmp_path)
    for arguments, says in (
        ([*paths], "--output"),
        ([paths[0], "-o", output], "CLOUDS"),
        ([tmp_path / "empty", "-o", output], "CLOUDS: got the folder"),
        ([*paths, tmp_path / "none.ply", "-o", output], "CLOUDS: got"),
        ([*paths, tmp_path / "broken.npy", "--strict", "-o", output], "broken.npy"),
        ([*paths, "-o", kept], "--overwrite"),
        ([*paths, "-o", tmp_path / "p.txt"], "--output"),
        ([*paths, "-o", output, "--save-merged", paths[0], "--overwrite"], "--save-merged"),
        ([*paths, "-o", output, "--save-merged", tmp_path / "m.las"], "--save-merged"),
        ([*paths, "-o", output, "--tolerance", "-1"], "--tolerance: got"),
        ([*paths, "-o", output, "--with-scaling"], "--with-scaling"),
    ):
        done = run("register-multiway", *arguments)
        assert done.exit_code == 64 and says in done.stderr, (arguments, done.stderr)
        assert done.stderr.startswith(("error: ", "Usage: ")), done.stderr
    assert files(tmp_path) == before and kept.read_text() == "precious" and not answers.asked


def test_for_real_with_processes(tmp_path):
    truth = poses(np.random.default_rng(1), 2)
    for n, pose in enumerate(truth):
        np.save(tmp_path / f"{n}.npy", move(np.linalg.inv(pose), surface(3000)))
    done = run("register-multiway", tmp_path, "-o", tmp_path / "p.json", "--workers", "1")
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(json.loads((tmp_path / "p.json").read_text())["poses"], truth, atol=1e-4)
