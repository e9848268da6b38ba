"""`register_many` with a time limit, and the target that a process keeps ready."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
from manyfold import Hangs, Killer, Raises, Talks, clouds, table, write_list

from dlc_reg import _many_work, register_many
from dlc_reg._many_child import DIED, register_pair_within
from dlc_reg.errors import InputError

QUICK = {"method": "point_to_plane", "voxel_size": 0.3}


@pytest.fixture
def scans(tmp_path):
    return [(str(tmp_path / a), str(tmp_path / b)) for a, b in clouds(tmp_path, 3)]


def by_name(results):
    return {result.name: result for result in results}


POOLS = {
    "here": None,
    "processes": partial(ProcessPoolExecutor, 1, mp_context=get_context("spawn")),
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_pair_that_kills_its_process_costs_only_itself(scans, tmp_path, pool, capfd):
    """And one that raises, whatever the executor; what a pair prints is no answer."""
    named = [("good0", (Talks(scans[0][0]), scans[0][1])), ("kills", (Killer(), scans[0][1])), ("good1", scans[1])]
    named += [("raises", (Raises(), scans[0][1])), ("good2", scans[2])]
    pairs = [{"name": name, "source": source, "target": target} for name, (source, target) in named]
    output = tmp_path / "o.csv"
    found = by_name(register_many(pairs, executor=POOLS[pool], output=output, timeout=300, **QUICK))
    assert {name: r.error for name, r in found.items() if r.error is not None} == {
        "kills": DIED,
        "raises": "ZeroDivisionError: of the cloud's own\nmaking",
    }
    expected = by_name(register_many([pair for pair in pairs if "good" in pair["name"]], num_threads=1, **QUICK))
    for name, right in expected.items():
        assert found[name].result.transformation.tobytes() == right.result.transformation.tobytes()
    assert {row["name"] for row in table(output)} == set(found)  # a rerun tries none of them again
    assert "a word of the cloud's own" in capfd.readouterr().err


def test_a_pair_that_hangs_costs_only_itself(scans):
    """On two threads, one of which hangs; the limit leaves a busy machine the time for the others."""
    pairs = [scans[0], (Hangs(), scans[0][1]), scans[1], scans[2]]
    with ThreadPoolExecutor(2) as pool:
        found = by_name(register_many(pairs, executor=pool, timeout=15, **QUICK))
    assert {name for name, r in found.items() if r.error is not None} == {"1"}
    assert found["1"].error == "took longer than the timeout of 15 s, and was ended" and found["1"].seconds >= 15


def test_a_pair_without_end_is_ended(scans, tmp_path):
    """The process itself: after the limit it is gone."""
    mark = tmp_path / "pid"
    _, error, seconds = register_pair_within(10.0, Hangs(mark), scans[0][1], None, {})
    assert error == "took longer than the timeout of 10 s, and was ended" and seconds >= 10
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_what_cannot_be_sent_is_told(scans):
    found = next(register_many([(lambda: 0, scans[0][1])], timeout=60, **QUICK))
    assert "pickle" in found.error and found.result is None


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "soon", True])
def test_limits_that_are_none(scans, timeout):
    with pytest.raises(InputError, match="timeout"):
        register_many(scans, timeout=timeout)


def test_the_command_has_a_limit(scans, tmp_path):
    """Its own list cannot hang, so that here the limit is one that nothing keeps."""
    from click.testing import CliRunner

    from dlc_reg.cli import main

    write_list(tmp_path / "pairs.csv", [(os.path.basename(a), os.path.basename(b)) for a, b in scans[:1]])
    arguments = ["register-many", str(tmp_path / "pairs.csv"), "-o", str(tmp_path / "o.csv"), "--workers", "1"]
    done = CliRunner().invoke(main, [*arguments, "--timeout", "1e-4"])
    assert done.exit_code == 3, done.output
    assert table(tmp_path / "o.csv")[0]["error"].startswith("took longer than the timeout of 0.0001 s")
    refused = CliRunner().invoke(main, [*arguments, "--timeout", "-1"])
    assert refused.exit_code == 64 and "--timeout" in refused.output


# --- pairs that share a target ----------------------------------------------------------------------------------------


@pytest.fixture
def prepared(monkeypatch):
    """The targets that were prepared, in order."""
    made = []

    def prepare(path, **options):
        made.append(os.path.basename(path))
        return real(path, **options)

    real = _many_work.prepare
    _many_work._prepared.cache_clear()
    monkeypatch.setattr(_many_work, "prepare", prepare)
    yield made
    _many_work._prepared.cache_clear()


def test_pairs_that_share_a_target_are_prepared_once(scans, prepared):
    target, other = scans[0][1], scans[1][1]
    pairs = [(scans[i][0], to) for to in (target, other) for i in (0, 1, 2)]
    found = [r.result for r in register_many(pairs, **QUICK)]
    assert prepared == ["target0.npy", "target1.npy"]
    prepared.clear()
    _many_work._prepared.cache_clear()
    alone = [next(register_many([pair], **QUICK)).result for pair in reversed(pairs)][::-1]
    for a, b in zip(found, alone, strict=True):
        assert a.transformation.tobytes() == b.transformation.tobytes()
        assert a.verdict_reasons == b.verdict_reasons and a.settings == b.settings


def test_a_target_that_was_written_since_is_read_again(scans, prepared):
    target = scans[0][1]
    first = next(register_many([scans[0]], **QUICK)).result
    np.save(target, np.load(target) + np.array([0.01, 0, 0]))
    os.utime(target, ns=(time.time_ns(), time.time_ns() + 10**9))
    second = next(register_many([scans[0]], **QUICK)).result
    assert prepared == ["target0.npy"] * 2
    origins = [np.array(result.settings["information_origin"]) for result in (first, second)]
    assert np.allclose(origins[1] - origins[0], [0.01, 0, 0], atol=1e-6)


def test_other_options_prepare_anew(scans, prepared):
    for voxel_size in (0.3, 0.3, 0.4):
        next(register_many([scans[0]], method="point_to_plane", voxel_size=voxel_size))
    assert len(prepared) == 2


def test_options_of_the_source_reach_it(scans):
    found = next(register_many([scans[0]], source_viewpoint=[0, 0, 5], target_viewpoint=[0, 0, 5], **QUICK)).result
    assert found.settings["source_viewpoint"] == [0, 0, 5] and found.settings["viewpoints_used"]


def test_a_missing_target_fails_as_ever(scans):
    found = next(register_many([(scans[0][0], "nowhere.npy")], **QUICK))
    assert "target" in found.error and "nowhere.npy" in found.error
