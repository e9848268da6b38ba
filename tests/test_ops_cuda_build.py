"""What a build says of CUDA where there is no device, and where there are no kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PACKAGE

from dlc_reg import _core
from dlc_reg.ops import _cuda


class OnCuda:
    """As much of a CUDA tensor as is looked at before there is work to do."""

    is_cuda, device = True, torch.device("cuda", 0)


@pytest.mark.parametrize("emulated", [True, False])
def test_cuda_tensors_without_kernels_are_an_error_that_helps(monkeypatch: pytest.MonkeyPatch, emulated: bool) -> None:
    monkeypatch.setattr(_core, "CUDA_BUILT", emulated)
    monkeypatch.setattr(_core, "CUDA_EMULATED", emulated)
    with pytest.raises(RuntimeError, match=r"on cuda:0.*no CUDA kernels.*\.cpu\(\).*DLC_REG_CUDA=ON pip install"):
        _cuda.takes(OnCuda())  # type: ignore[arg-type]


def test_host_tensors_stay_on_the_host() -> None:
    assert not _cuda.takes(torch.zeros(3))


def test_the_state_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    if _core.CUDA_EMULATED:
        assert _cuda.state() == "CUDA kernels emulated on the host"
    elif _core.CUDA_BUILT:
        assert _cuda.state().startswith("CUDA kernels")
        assert (_cuda.state() == "CUDA kernels") == (_core.cuda_device_count() > 0)
    monkeypatch.setattr(_core, "CUDA_BUILT", False)
    assert _cuda.state() == "no CUDA kernels in this build"


@pytest.mark.skipif(not _core.CUDA_BUILT or _core.CUDA_EMULATED, reason="a build without CUDA kernels")
def test_without_a_device_the_module_works_and_says_so(tmp_path: Path) -> None:
    code = """
import torch
from dlc_reg import _core, ops
from dlc_reg.ops import _cuda
assert _core.cuda_device_count() == 0 and _core.cuda_why_no_device()
assert _cuda.state().startswith("CUDA kernels, but ")
assert ops.knn(torch.zeros(1, 3), torch.ones(1, 3))[1].item() == 0
try:
    _core.cuda_morton_order(0, 0, 0, 5, 10, 0, 0, 0)
except RuntimeError as error:
    print(error)
"""
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": PACKAGE}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "no CUDA device" in done.stdout
