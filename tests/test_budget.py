"""A budget of time, by a clock that the test turns: what it leaves out is told; one not reached changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from registering import NEAR, SHAPED, distance, move, pose, same_bytes, scaling

import dlc_reg
from dlc_reg.iterate import Status
from dlc_reg.registration import budget as module


class Clock:
    """Says 0, 1, 2, ... as it is asked."""

    def __init__(self):
        self.asked = -1

    def __call__(self):
        self.asked += 1
        return float(self.asked)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(module, "clock", made)
    return made


METHODS = ("auto", "global", "learned", *SHAPED)


@pytest.mark.parametrize("method", METHODS)
def test_there_is_always_an_answer(thin_source, thin_target, method, clock):
    """A budget that is spent before anything: the start, with its evidence."""
    start = pose([0.2, 0.1, 1.0], 20, (0.01, 0.0, 0.02))
    r = dlc_reg.register(thin_source, thin_target, method=method, init=start, budget=1e-9)
    assert distance(r.transformation, start, thin_source) < 1e-6
    assert r.verdict in ("doubtful", "failed", "ambiguous")
    assert r.iterations == 0 and r.history == []
    assert any("1e-09 s" in reason and "refinement from level 1" in reason for reason in r.verdict_reasons)
    assert r.settings["budget"] == 1e-9 and len(r.settings["budget_skipped"]) >= 2
    assert {"gap", "overlap"} <= r.settings["evidence"].keys()
    r.to_json()


@pytest.mark.parametrize("method", ["auto", "point_to_plane"])
def test_a_budget_that_is_not_reached_changes_no_bit(thin_source, thin_target, thin_truth, method, clock):
    options = {"method": method, "init": thin_truth}
    plain = dlc_reg.register(thin_source, thin_target, **options)
    assert clock.asked == -1  # without a budget nobody looks at the clock
    same_bytes(dlc_reg.register(thin_source, thin_target, budget=1e6, **options), plain)
    assert clock.asked > 5


def test_every_budget_gives_an_answer_and_says_what_it_left_out(thin_source, thin_target, thin_truth, clock):
    """The clock runs out at one place after another: none raises, none is `aligned` with a search cut short."""
    whole = dlc_reg.register(thin_source, thin_target, budget=1e6)
    last, told = clock.asked, set()
    for seconds in (1, 2, 3, 5, 7, 9, 12, last - 2, last + 1):
        clock.asked = -1
        r = dlc_reg.register(thin_source, thin_target, budget=seconds)
        skipped = r.settings["budget_skipped"]
        assert np.isfinite(r.transformation).all()
        if seconds > last:
            same_bytes(r, whole)
        else:
            assert skipped and skipped[0] in " ".join(r.verdict_reasons)
        if any("the search" in what for what in skipped):
            assert r.verdict != "aligned"
        elif r.verdict == "aligned":
            assert distance(r.transformation, thin_truth, thin_source) < 3 * NEAR
        told |= {" ".join(what.split()[-3:]) for what in skipped}
    assert len(told) >= 3


def test_an_iteration_is_cut_short(thin_source, thin_target, thin_truth, clock):
    seen = []
    budget = 4  # the level's beginning, and a few of its iterations
    r = dlc_reg.register(
        thin_source, thin_target, init=pose([0, 0, 1], 8) @ thin_truth, method="point_to_plane", budget=budget,
        callback=seen.append,
    )  # fmt: skip
    assert r.status is Status.OUT_OF_TIME
    assert 0 < r.iterations == len(seen) - 1 < 5
    assert "refinement within level 1" in r.settings["budget_skipped"][0]


def test_the_callback_still_stops(thin_source, thin_target, thin_truth, clock):
    r = dlc_reg.register(
        thin_source, thin_target, init=thin_truth, method="point_to_plane", budget=1e6, callback=lambda _: True
    )
    assert r.status is Status.STOPPED and r.settings["budget_skipped"] == []


def test_prepared_targets_count_from_each_scan(thin_source, thin_target, clock):
    prepared = dlc_reg.prepare(thin_target, budget=1e-9)
    for _ in range(2):
        assert prepared.register(thin_source).settings["budget_skipped"]


def test_scales_are_left_out_too(thin_source, thin_target, clock):
    moved = move(scaling(0.5) @ pose([0, 0, 1], 30), thin_source)
    r = dlc_reg.register(moved, thin_target, with_scaling=True, budget=1e-9)
    assert len(r.settings["scales_tried"]) == 3
    assert [what for what in r.settings["budget_skipped"] if "scale" in what]
    assert r.verdict != "aligned"
