"""benchmarks/large.py: two large clouds are registered rightly, and memory grows by so much a point."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT

pytest.importorskip("resource", reason="the peak of memory is what POSIX systems tell")
pytest.importorskip("scipy")

BYTES = 340  # a point of both clouds: 10 million points below 3.2 GiB, and 0.4 for the interpreter and libraries


def test_memory_a_point_is_bounded(monkeypatch):
    """Of more points than are refined whole; the difference leaves out what is there for any number."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from large import measure

    fewer, more = 400_000, 1_200_000
    small, large = (measure(points, 0, {"num_threads": 1}) for points in (fewer, more))
    assert (large["peak"] - small["peak"]) * 2**30 / (more - fewer) < BYTES
    assert large["peak"] < 1
    for found in (small, large):
        assert found["verdict"] == "aligned"
        assert found["error"] < 0.1


def test_the_two_samplings_are_of_one_town(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from large import truth, write
    from scipy.spatial import cKDTree

    clouds = []
    for which in (0, 1):
        write(tmp_path / "cloud.npy", 20_000, 0, which)
        clouds.append(np.load(tmp_path / "cloud.npy"))
    moved = clouds[0] @ truth()[:3, :3].T + truth()[:3, 3]
    gaps = cKDTree(clouds[1]).query(moved)[0]
    assert np.median(gaps) < 3.0  # 400 m by 400 m and some walls: 20,000 points lie 3 m apart
    assert not np.array_equal(np.sort(moved, axis=0), np.sort(clouds[1], axis=0))
