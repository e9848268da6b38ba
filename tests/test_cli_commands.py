"""The command line's other commands, and the whole of it as a program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commanding import TURN, Library, files, run, surface

import dlc_reg
from dlc_reg import cli, io
from dlc_reg.geometry import apply_transform

SAMPLES = Path(__file__).resolve().parents[1] / "datasets" / "samples" / "bunny"


def spawn(*arguments: str | Path, cwd: str | Path = "/") -> subprocess.CompletedProcess[str]:
    """Runs the program that is tested, installed or not; in a checkout's root the bare tree would go first."""
    root = Path(dlc_reg.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "dlc_reg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=cwd, env=environment)


# --- the other commands ----------------------------------------------------------------------------------------------
def test_info_tells_what_a_file_holds(tmp_path: Path) -> None:
    points = np.concatenate([surface(), surface()[:4]]) + np.array([0, 0, 5e6])
    points[7] = np.inf
    path = tmp_path / "cloud.npz"
    np.savez(path, points=points, normals=np.tile([0.0, 0, 1], (904, 1)), viewpoint=np.array([0.0, 0, 5e6 + 3]))
    result = run("info", path, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert (facts["points"], facts["non_finite"], facts["duplicates"]) == (904, 1, 4)
    assert facts["kind"] == "points" and facts["normals"] is True and facts["colours"] is False
    assert facts["viewpoint"] == [0, 0, 5e6 + 3]
    finite = points[np.isfinite(points).all(axis=1)]
    np.testing.assert_allclose(facts["extents"], np.ptp(finite, axis=0))
    assert 0.01 < facts["spacing"] < 0.1
    text = run("info", path).stdout
    assert "904" in text and "non-finite    1" in text and "viewpoint     (0, 0, 5,000,003)" in text


def test_info_describes_even_what_cannot_be_registered(tmp_path: Path) -> None:
    path = tmp_path / "point.npy"
    np.save(path, np.zeros((1, 3)))
    result = run("info", path)
    assert result.exit_code == 0 and "unusable" in result.stdout and "at least 3" in result.stdout
    assert run("info", tmp_path / "missing.ply").exit_code == 64


def test_doctor_lists_versions_and_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["dlc_reg"] == dlc_reg.__version__ and facts["numpy"] == np.__version__
    assert facts["extras"].keys() == {"open3d", "viz", "las", "e57", "parquet", "images"}
    monkeypatch.setattr(cli, "EXTRAS", {"viz": ("no-such-distribution",)})
    assert 'not installed: pip install "dlc_reg[viz]"' in run("doctor").stdout


def test_demo_compares_with_the_recorded_pose(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = {"unit": "m", "T_target_source": TURN.tolist()}
    paths = tmp_path / "a.ply", tmp_path / "b.ply"
    io.write(paths[0], surface())
    io.write(paths[1], apply_transform(TURN, surface()))
    (tmp_path / "truth.json").write_text(json.dumps(pair))
    monkeypatch.setattr(io, "sample_pair", lambda: paths)
    result = run("demo")
    assert result.exit_code == 0 and "the recorded pose: 0.000 deg and 0 m from it" in result.stdout
    pair["T_target_source"] = np.eye(4).tolist()
    (tmp_path / "truth.json").write_text(json.dumps(pair))
    wrong = run("demo")
    assert wrong.exit_code == 3 and "NOT the recorded pose: 36.870 deg" in wrong.stdout


def test_demo_of_a_package_without_samples_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "__file__", str(tmp_path / "site-packages" / "dlc_reg" / "io.py"))
    result = run("demo")
    assert result.exit_code == 64 and "no samples" in result.stderr


# --- as a program ----------------------------------------------------------------------------------------------------
def test_program_registers_and_its_exit_code_is_the_verdict(tmp_path: Path) -> None:
    folder = tmp_path / "données 点群 ñ"
    folder.mkdir()
    pair = json.loads((SAMPLES / "truth.json").read_text())
    shutil.copy(SAMPLES / pair["source"], folder / "quelle.ply")
    shutil.copy(SAMPLES / pair["target"], folder / "ziel.ply")
    result = spawn("register", "quelle.ply", "ziel.ply", "--json", "-o", "bewegt ü.ply", cwd=folder)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    document = json.loads(result.stdout)
    np.testing.assert_allclose(document["transformation"], pair["T_target_source"], atol=5e-3)
    assert document["exit_code"] == 0 and document["verdict"] == "aligned"
    assert (folder / "bewegt ü.ply").exists()


def test_program_demo_finds_the_recorded_pose(tmp_path: Path) -> None:
    result = spawn("demo", "--report", tmp_path / "page.html", cwd=tmp_path)
    assert result.returncode == 0 and "the recorded pose" in result.stdout and "NOT" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("VERDICT  aligned")
    assert (tmp_path / "page.html").stat().st_size > 1_000_000


def test_program_fails_on_what_does_not_fit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    np.save(tmp_path / "a.npy", surface(1500))
    np.save(tmp_path / "b.npy", rng.uniform(-1, 1, (1500, 3)))
    result = spawn("register", "a.npy", "b.npy", "-o", "moved.ply", cwd=tmp_path)
    assert result.returncode in (2, 3), result.stdout
    assert "VERDICT" in result.stdout
    assert (tmp_path / "moved.ply").exists() == (result.returncode == 2)


def test_program_exit_codes_without_work(tmp_path: Path) -> None:
    assert spawn("--help").returncode == 0
    assert spawn("--version").stdout.strip().endswith(dlc_reg.__version__)
    assert spawn("register", "only-one.ply").returncode == 64
    missing = spawn("register", "no.ply", "such.ply", cwd=tmp_path)
    assert missing.returncode == 64 and missing.stdout == "" and "Traceback" not in missing.stderr
    assert files(tmp_path) == set()
