"""Fixtures that several files use: real scans with their truth, seeds, stand-ins, and Hypothesis's profiles."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import dlc_reg

if TYPE_CHECKING:
    from commanding import Library

    from dlc_reg.registration.result import RegistrationResult

pytest.register_assert_rewrite("commanding", "registering", "surfaces")  # or their failures would show no values

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = str(Path(dlc_reg.__file__).parent.parent)  # where the package under test is, installed or not

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


class BunnyPair(NamedTuple):
    source: np.ndarray  # bun045 (N, 3) float64, metres
    target: np.ndarray  # bun000 (M, 3)
    T_target_source: np.ndarray  # (4, 4), good to about 0.5 mm


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data, which is not part of the project."""
    folder = Path(os.environ.get("DLC_REG_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"development data not at {folder} (set DLC_REG_SHARED)")
    return folder


@pytest.fixture(scope="session")
def samples() -> dict[str, Path]:
    """Paths of the samples that ship: source, target and truth of the bunny."""
    folder = ROOT / "datasets" / "samples" / "bunny"
    return {"source": folder / "bun045.ply", "target": folder / "bun000.ply", "truth": folder / "truth.json"}


@pytest.fixture(scope="session")
def bunny_pair(samples: dict[str, Path]) -> BunnyPair:
    from dlc_reg.io import read

    truth = json.loads(samples["truth"].read_text())
    pair = BunnyPair(
        read(samples["source"]).points, read(samples["target"]).points, np.array(truth["T_target_source"], float)
    )
    for array in pair:
        array.setflags(write=False)  # shared by all tests
    return pair


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def thin_source(bunny_pair: BunnyPair) -> np.ndarray:
    """2000 of the source's points."""
    from registering import thin

    return thin(bunny_pair.source, 2000)


@pytest.fixture(scope="module")
def thin_target(bunny_pair: BunnyPair) -> np.ndarray:
    from registering import thin

    return thin(bunny_pair.target, 2000)


@pytest.fixture(scope="module")
def thin_truth(bunny_pair: BunnyPair) -> np.ndarray:
    return bunny_pair.T_target_source


@pytest.fixture(scope="module")
def thin_result(thin_source: np.ndarray, thin_target: np.ndarray) -> RegistrationResult:
    """What `register` makes of the two thin clouds."""
    import dlc_reg

    return dlc_reg.register(thin_source, thin_target)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Takes the place of `dlc_reg.register`."""
    from commanding import Library

    import dlc_reg

    stand_in = Library()
    monkeypatch.setattr(dlc_reg, "register", stand_in, raising=False)
    return stand_in


@pytest.fixture
def one_thread_for_torch() -> Iterator[None]:
    """The twins are many small operations, to which waking threads costs more than the work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
