"""`dlc-reg register-many`: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from commanding import run, surface
from manyfold import clouds, table, write_list

from dlc_reg import _many_command, register
from dlc_reg._many_output import open_output
from dlc_reg.registration.result import Verdict


@pytest.fixture
def pairs(tmp_path):
    return write_list(tmp_path / "pairs.csv", clouds(tmp_path, 2))


def append(path, *rows):
    with path.open("a") as file:
        file.writelines(",".join(row) + "\n" for row in rows)


def test_results_summary_and_a_rerun(pairs, tmp_path):
    output = tmp_path / "results.csv"
    options = ["--method", "point-to-plane", "--voxel-size", "0.2", "--max-correspondence-distance", "1"]
    done = run("register-many", pairs, "-o", output, *options)
    assert done.exit_code == 0 and done.stderr == ""
    assert f"2 in {pairs}\n" in done.stdout and str(output) in done.stdout
    assert done.stdout.splitlines()[-1] == "VERDICTS 2 aligned"
    given = {"method": "point_to_plane", "voxel_size": 0.2, "max_correspondence_distance": 1.0}
    expected = register(tmp_path / "source0.npy", tmp_path / "target0.npy", **given)
    assert float(table(output)[0]["t03"]) == expected.transformation[0, 3]

    append(pairs, ("source0.npy", "missing.npy"))
    again = run("register-many", pairs, "-o", output, *options)
    assert again.exit_code == 3
    assert "3 in" in again.stdout and "2 of them done before" in again.stdout
    assert "VERDICTS 2 aligned, 1 without a result" in again.stdout
    assert "source0.npy -> missing.npy: target: got" in again.stderr
    assert len(table(output)) == 3
    quiet = run("register-many", pairs, "-o", output, "-q")  # nothing is left to do, but one had failed
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (3, "", "")


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ({}, 0),
        ({"aligned": 2}, 0),
        ({"aligned": 2, "ambiguous": 1}, 2),
        ({"doubtful": 1}, 2),
        ({"doubtful": 1, "failed": 1}, 3),
        ({"aligned": 5, "error": 1}, 3),
    ],
)
def test_exit_codes(pairs, tmp_path, monkeypatch, counts, code):
    """For what the output has in the end, whoever wrote it."""
    output = tmp_path / "o.csv"

    def write(*_, **__):
        with open_output(output) as file:
            for verdict, count in counts.items():
                for i in range(count):
                    row = [f"{verdict}{i}", "", "", verdict if verdict in set(Verdict) else "", *[""] * 21]
                    file.add(row)
        return iter(())

    monkeypatch.setattr(_many_command, "register_many", write)
    assert run("register-many", pairs, "-o", output).exit_code == code


def test_processes(pairs, tmp_path):
    output = tmp_path / "o.csv"
    done = run("register-many", pairs, "-o", output, "--workers", "1", "--method", "point-to-point")
    assert done.exit_code in (0, 2) and len(table(output)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_command_leaves_no_processes_and_is_taken_up_again(tmp_path):
    pairs, output = write_list(tmp_path / "pairs.csv", clouds(tmp_path, 30)), tmp_path / "o.csv"
    command = [sys.executable, "-m", "dlc_reg", "register-many", str(pairs), "-o", str(output), "--workers", "1"]
    # not in the checkout, whose package has no native module
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path)
    until = time.monotonic() + 60
    while (not output.exists() or output.read_bytes().count(b"\n") < 3) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=30)  # it returns when the last process that holds the pipe has ended
    assert 2 <= output.read_bytes().count(b"\n") - 1 < 30
    assert run("register-many", pairs, "-o", output).exit_code == 0
    names = [row["name"] for row in table(output)]
    assert len(names) == len(set(names)) == 30


def test_non_finite_points_are_dropped_unless_strict(tmp_path):
    points = surface(300)
    np.save(tmp_path / "b.npy", points)
    points[7] = np.nan
    np.save(tmp_path / "a.npy", points)
    pairs = write_list(tmp_path / "pairs.csv", [("a.npy", "b.npy")])
    assert run("register-many", pairs, "-o", tmp_path / "o.csv").exit_code == 0
    strict = run("register-many", pairs, "-o", tmp_path / "strict.csv", "--strict")
    assert strict.exit_code == 3 and "1 of 300 points with NaN" in strict.stderr


def test_options_reach_the_library(pairs, tmp_path, monkeypatch):
    calls = []

    def keep(pairs, **options):
        calls.append(options)
        open_output(options["output"]).__enter__()
        return iter(())

    monkeypatch.setattr(_many_command, "register_many", keep)
    run("register-many", pairs, "-o", tmp_path / "o.csv", "--sensor-frame", "--seed", "3", "--with-scaling")
    here = calls[0]
    assert here["executor"] is None and here["num_threads"] is None and here["remove_non_finite"] is True
    assert here["source_viewpoint"] == here["target_viewpoint"] == (0.0, 0.0, 0.0)
    assert here["dof"] == "rigid" and here["source_gravity"] is None and here["budget"] is None
    assert here["seed"] == 3 and here["with_scaling"] is True and here["allow_outside"] is False
    run("register-many", pairs, "-o", tmp_path / "o.csv", "--workers", "3")
    run("register-many", pairs, "-o", tmp_path / "o.csv", "--workers", "3", "--num-threads", "2")
    assert "num_threads" not in calls[1] and calls[2]["num_threads"] == 2
    assert calls[1]["in_flight"] == 6 and calls[1]["executor"].args == (3,)


def test_bad_input(pairs, tmp_path):
    output = tmp_path / "o.csv"
    outside = write_list(tmp_path / "outside.csv", [("../a.npy", "b.npy")])
    text = tmp_path / "something.csv"
    text.write_text("a,b\n")
    for arguments, says in (
        ([pairs], "--output"),
        ([tmp_path / "none.csv", "-o", output], "PAIRS: got"),
        ([outside, "-o", output], "--allow-outside"),
        ([pairs, "-o", text], "--output: got"),
        ([pairs, "-o", tmp_path / "o.txt"], "--output: got"),
        ([pairs, "-o", output, "--method", "nonsense"], "--method: got"),
        ([pairs, "-o", output, "--voxel-size", "-1"], "--voxel-size: got"),
        ([pairs, "-o", output, "--workers", "0"], "--workers"),
        ([pairs, "-o", output, "--sensor-frame", "--source-viewpoint", "0", "0", "0"], "--sensor-frame"),
    ):
        done = run("register-many", *arguments)
        assert done.exit_code == 64 and says in done.stderr, done.stderr
    assert not output.exists() and text.read_text() == "a,b\n"
    assert run("register-many", outside, "-o", output, "--allow-outside").exit_code == 3
