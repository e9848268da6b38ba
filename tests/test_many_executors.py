"""`register_many` on executors: threads, processes that die, and a Dask cluster whose worker is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from commanding import surface
from manyfold import Killer, KillsOnce, Raises, clouds, exit_at_once, table, write_list
from registering import same_bytes

from dlc_reg import many, register_many
from dlc_reg._many_output import open_output

QUICK = {"method": "point_to_point"}


@pytest.fixture
def folder(tmp_path):
    write_list(tmp_path / "pairs.csv", clouds(tmp_path, 6))
    return tmp_path


@pytest.fixture
def processes():
    """Makes pools of two new processes."""
    return partial(ProcessPoolExecutor, 2, mp_context=multiprocessing.get_context("spawn"))


def by_name(results):
    found = {}
    for r in results:
        assert r.name not in found
        found[r.name] = r
    return found


def test_threads(folder):
    expected = by_name(register_many(folder / "pairs.csv", num_threads=1))
    with ThreadPoolExecutor(4) as pool:
        found = by_name(register_many(folder / "pairs.csv", executor=pool, output=folder / "o.csv"))
        assert pool.submit(int).result() == 0  # it is the caller's to shut down
    assert found.keys() == expected.keys() == open_output(folder / "o.csv").done
    for name, r in found.items():
        same_bytes(r.result, expected[name].result)


def test_processes_and_failing_pairs(folder, processes):
    points = np.load(folder / "target0.npy")
    pairs = [(folder / s, folder / t) for s, t in clouds(folder, 3)]
    pairs[1:1] = [(folder / "missing.npy", points), (Raises(), points), (lambda: None, points)]
    expected = by_name(register_many([pairs[0], *pairs[4:]], **QUICK))
    with processes() as pool:
        found = by_name(register_many(pairs, executor=pool, output=folder / "o.csv", **QUICK))
    assert len(found) == 6 and found.keys() == open_output(folder / "o.csv").done
    for name, r in expected.items():
        same_bytes(found[name].result, r.result)
    errors = [r.error for r in found.values() if r.error]
    assert len(errors) == 3 and all(any(word in e for e in errors) for word in ("exist", "ZeroDivision", "pickle"))


def test_a_pair_that_kills_its_process_costs_only_itself(folder, processes):
    pairs = [(folder / s, folder / t) for s, t in clouds(folder, 5)]
    pairs.insert(1, (Killer(), np.load(folder / "target0.npy")))
    found = by_name(register_many(pairs, executor=processes, output=folder / "o.csv", in_flight=4, **QUICK))
    assert len(found) == 6
    assert {r.name: r.error for r in found.values() if r.error} == {"1": many.DIED}
    assert Counter(row["name"] for row in table(folder / "o.csv")) == Counter(found.keys())


def test_pairs_beside_a_killed_process_are_tried_again(folder, processes):
    pairs = [(folder / s, folder / t) for s, t in clouds(folder, 3)]
    pairs.insert(1, (KillsOnce(folder / "source1.npy", folder / "mark"), np.load(folder / "target1.npy")))
    found = by_name(register_many(pairs, executor=processes, **QUICK))
    assert (folder / "mark").exists()
    assert len(found) == 4 and {r.error for r in found.values()} == {None}


def test_an_executor_that_cannot_be_replaced(folder, processes):
    points = np.load(folder / "target0.npy")
    pairs = [(Killer(), points), *((folder / s, folder / t) for s, t in clouds(folder, 6))]
    found = []
    with processes() as pool, pytest.raises(BrokenExecutor, match="a function that makes"):
        for r in register_many(pairs, executor=pool, output=folder / "o.csv", in_flight=2, **QUICK):
            found.append(r)
    assert "0" in {r.name for r in found}
    assert {r.error for r in found if r.result is None} == {many.BROKE}
    done = {r.name for r in found if r.result is not None}
    assert open_output(folder / "o.csv").done == done  # what was in flight was not tried, and another run shall
    rest = by_name(register_many(pairs[1:], output=folder / "o.csv", **QUICK))
    assert rest.keys() == {f"{folder / s} -> {folder / t}" for s, t in clouds(folder, 6)} - done


def test_pairs_of_an_executor_that_is_shut_down_are_not_in_the_output(folder):
    class Closed(Executor):
        def submit(self, fn, /, *args, **kwargs):
            future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    pairs = [(folder / s, folder / t) for s, t in clouds(folder, 2)]
    with pytest.raises(BrokenExecutor):
        list(register_many(pairs, executor=Closed(), output=folder / "o.csv", **QUICK))
    assert not open_output(folder / "o.csv").done


def test_processes_that_cannot_start_are_not_blamed_on_the_pairs(folder, processes):
    with pytest.raises(BrokenExecutor, match="__main__"):
        stillborn = partial(processes, initializer=exit_at_once)
        list(register_many(folder / "pairs.csv", executor=stillborn, output=folder / "o.csv"))
    assert open_output(folder / "o.csv").done == set()


class Held(Executor):
    """Keeps what is submitted until `most` are there."""

    def __init__(self, most):
        self.most, self.held, self.largest = most, [], 0

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.held.append((future, partial(fn, *args, **kwargs)))
        self.largest = max(self.largest, len(self.held))
        if len(self.held) == self.most:
            future, work = self.held.pop()  # the last one first
            future.set_result(work())
        return future


def test_a_bounded_number_is_in_flight_and_results_come_as_they_are_done():
    executor, taken = Held(3), []

    def endless():
        while True:
            taken.append(1)
            yield surface(300), surface(300)

    results = register_many(endless(), executor=executor, in_flight=3, **QUICK)
    assert [next(results).name for _ in range(4)] == ["2", "3", "4", "5"]
    assert executor.largest == 3 and len(taken) == 6
    results.close()
    assert all(future.cancelled() for future, _ in executor.held)


def test_each_pair_has_one_thread_on_an_executor(folder):
    with ThreadPoolExecutor(1) as pool:
        for given, expected in (({}, 1), ({"num_threads": 2}, 2), ({"num_threads": None}, None)):
            found = next(register_many(folder / "pairs.csv", executor=pool, **QUICK, **given))
            assert found.result.settings["num_threads"] == expected
    assert next(register_many(folder / "pairs.csv", **QUICK)).result.settings["num_threads"] is None


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_dask_cluster_whose_worker_is_killed(folder):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    pairs = write_list(folder / "pairs.csv", clouds(folder, 24))
    kwargs = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**kwargs) as cluster, distributed.Client(cluster) as client:
        results = register_many(pairs, executor=client.get_executor(), output=folder / "o.csv", in_flight=8)
        found = [next(results), next(results)]
        before = set(client.run(os.getpid).values())
        os.kill(next(iter(before)), signal.SIGKILL)
        found += results
        until = time.monotonic() + 30
        while (after := set(client.run(os.getpid).values())) <= before and time.monotonic() < until:
            time.sleep(0.2)
        assert not before <= after  # one of them is gone indeed
    assert [r.error for r in found] == [None] * 24
    assert Counter(row["name"] for row in table(folder / "o.csv")) == Counter(r.name for r in found)
    assert len({r.name for r in found}) == 24
    assert list(register_many(pairs, output=folder / "o.csv")) == []
