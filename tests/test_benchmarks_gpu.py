"""benchmarks/gpu.py without a GPU: that all of it runs, on emulated kernels where they are, and that its checks see."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import PACKAGE, ROOT

from dlc_reg import _core

pytest.importorskip("scipy")

FOLDER = ROOT / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def dry(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--dry", "--repeats", "3", "--budget", "0.05", *arguments]
    environment = os.environ | {"PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_everything_runs_and_is_right(tmp_path):
    from gpu_cases import DRY, cases

    done = dry("--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {"commit", "hardware", "versions", "settings"} <= found["about"].keys()
    assert {"kernels", "bytes_per_s", "float32_per_s"} <= found["about"]["hardware"].keys()
    if (ROOT / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}( with changes)?", found["about"]["commit"])
    assert [r["case"] for r in found["results"]] == list(cases(CPU, DRY, 10**9))
    for result in found["results"]:
        assert result["rows"][0]["name"] == "dlc_reg" and result["rows"][0]["right"]
        assert all(row["right"] for row in result["rows"] if row["name"] in ("plain torch", "torch.cdist"))
        assert result["roofline"]["times_bound"] > 0
    assert any("soft energy and gradient" in r["case"] for r in found["results"]) == _core.CUDA_EMULATED
    assert "1-NN surface near" in found["notes"][0]  # the exponents


def test_what_time_does_not_allow_is_said():
    done = dry("--seconds", "0", "--only", "voxels*")
    assert done.returncode == 1 and "left out, 0 s are over" in done.stdout


def test_a_failure_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    import gpu
    from harness import Checked, Work

    def cases(*_):
        right, wrong = (lambda *_, right=right: Checked(right, "remark") for right in (True, False))
        return {
            "wrong, 1 points": lambda: Work(1, {"dlc_reg": lambda: 0}, wrong),
            "right, 1 points": lambda: Work(1, {"dlc_reg": lambda: 0}, right),
        }

    monkeypatch.setattr(gpu, "cases", cases)
    monkeypatch.setattr(gpu._cuda, "takes", gpu._cuda.takes)  # as it was, afterwards
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry", "--budget", "0.1", "--out", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit) as exit:
        gpu.main()
    assert exit.value.code == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [r["case"] for r in found["results"]] == ["right, 1 points"]
    assert found["notes"][-1].startswith("FAILED: wrong, 1 points")
    assert "gpu: right, 1 points" in capsys.readouterr().out


def test_targets_are_judged():
    from gpu import BOUND, TARGETS, targets
    from harness import Result, Row

    _, case, limit = TARGETS[1]
    assert targets([Result("gpu", case, 1, 1, "wall", [Row("dlc_reg", [limit * 0.9])])])[0].endswith(": reached")
    assert targets([Result("gpu", case, 1, 1, "wall", [Row("dlc_reg", [limit * 1.1])])])[0].endswith(": missed")
    bound = Result("gpu", BOUND[1], 1, 1, "wall", [Row("dlc_reg", [3.0])], {"memory_s": 1.0})
    assert targets([bound]) == [f"{BOUND[0]}: 3.00 times the memory traffic's, target 2: missed"]


def test_targets_are_of_cases_that_there_are():
    from gpu import BOUND, TARGETS
    from gpu_cases import FULL, cases

    assert {case for _, case, _ in (*TARGETS, BOUND)} <= cases(CPU, FULL, 10**9).keys()


def test_a_missing_library_is_said_once_and_ours_may_not_miss(capsys, monkeypatch):
    import gpu_peers

    monkeypatch.setattr(gpu_peers, "_missing", set())

    def absent():
        raise ImportError("No module named 'nobody'")

    for _ in range(2):
        assert gpu_peers.gather({"dlc_reg": lambda: 1, "nobody": absent}) == {"dlc_reg": 1}
    assert capsys.readouterr().out.count("without nobody") == 1
    with pytest.raises(ImportError):
        gpu_peers.gather({"dlc_reg": absent})


def test_checks_notice_wrong_answers():
    import gpu_cases as cases

    work = cases.linearisation(CPU, 300, "near")
    found = work.contenders["dlc_reg"]()
    assert work.check("", found).right
    assert not work.check("", replace(found, totals=found.totals * (1 + 1e-6), _host=None)).right
    assert not work.check("", replace(found, indices=found.indices.roll(1))).right
    none = found.indices.clone()
    none[7] = -1
    assert "1 of 300 neighbours wrong" in work.check("", replace(found, indices=none)).remark

    work = cases.sampled(CPU, "uniform", 300, "near")
    indices = work.contenders["dlc_reg"]()
    assert work.check("", indices).right and not work.check("", indices.roll(1, 0)).right

    work = cases.soft_steps(CPU, 3, 16)
    poses = work.contenders["dlc_reg"]()
    shifted = poses.clone()
    shifted[0, 1, 0, 3] += 0.01
    assert work.check("", poses).right and not work.check("", shifted).right

    work = cases.soft_gradient(CPU, 2, 16)
    gradient = work.contenders["plain torch"]()
    assert work.check("", gradient).right and not work.check("", gradient * 1.001).right

    work = cases.batch(CPU, 2, 1024, "point_to_plane")
    answer = work.contenders["dlc_reg"]()
    assert work.check("", answer).right
    assert not work.check("", answer.transformations.roll(1, 0) * 0 + torch.eye(4).double()).right
