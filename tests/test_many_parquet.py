"""`register_many` into Parquet: what a row holds, restarts, kills, and folders of something else."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest
from commanding import run
from manyfold import clouds, write_list

from dlc_reg import InputError, _many_output, register_many
from dlc_reg._many_output import COLUMNS, ENTRIES, open_output

parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")

QUICK = {"method": "point_to_point"}


@pytest.fixture
def pairs(tmp_path):
    return write_list(tmp_path / "pairs.csv", clouds(tmp_path, 3))


@pytest.fixture
def at_once(monkeypatch):
    """Each row a part."""
    monkeypatch.setattr(_many_output, "PART_SECONDS", 0.0)


def parts(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def rows(folder):
    return parquet.read_table(folder).to_pylist()


def test_rows_hold_the_result_to_the_last_bit(pairs, tmp_path):
    output = tmp_path / "results.parquet"
    write_list(pairs, [*clouds(tmp_path, 3), ("source0.npy", "missing.npy")])
    found = list(register_many(pairs, output=output))
    assert parts(output) == ["part-000000.parquet"]
    for r, row in zip(found[:3], rows(output), strict=False):
        assert list(row) == COLUMNS
        np.testing.assert_array_equal([row[name] for name in ENTRIES], r.result.transformation.ravel())
        assert row["verdict"] == r.result.verdict.value and row["fitness"] == r.result.fitness
        assert row["inlier_rmse"] == r.result.inlier_rmse and row["error"] is None and row["seconds"] > 0
    last = rows(output)[3]
    assert "does not exist" in last["error"] and last["verdict"] is None and last["t00"] is None
    assert open_output(output).counts == {"aligned": 3, "error": 1}


def test_each_part_is_complete_and_a_restart_does_the_rest(pairs, tmp_path, at_once):
    output = tmp_path / "o.parquet"
    results = register_many(pairs, output=output, **QUICK)
    assert not output.exists()  # nothing before it is asked
    for count in (1, 2):
        next(results)
        assert len(rows(output)) == count
    results.close()
    (output / ".part-000002.77.part.parquet").write_bytes(b"PAR1 cut off")  # as a kill leaves it
    assert len(rows(output)) == 2 and len(open_output(output).done) == 2
    again = list(register_many(pairs, output=output, **QUICK))
    assert [r.name for r in again] == ["source2.npy -> target2.npy"]
    assert parts(output) == [f"part-00000{n}.parquet" for n in range(3)]
    assert [row["name"] for row in rows(output)] == [f"source{n}.npy -> target{n}.npy" for n in range(3)]
    assert list(register_many(pairs, output=output, **QUICK)) == []


def test_two_runs_into_one_folder_lose_nothing(pairs, tmp_path, at_once):
    output = tmp_path / "o.parquet"
    first, second = (register_many(pairs, output=output, **QUICK) for _ in range(2))
    for results in (first, second):
        next(results)
    assert len(rows(output)) == 2
    (output / ".part-of-mine.txt").write_text("kept")
    assert (len(list(first)), len(list(second))) == (2, 1)
    assert len(rows(output)) == 5 and (output / ".part-of-mine.txt").exists()


def test_what_took_long_is_written_at_once(pairs, tmp_path, monkeypatch):
    output = tmp_path / "o.parquet"
    with open_output(output) as kept:
        row = ["a", "s", "t", "aligned", "", *[1.0] * (len(COLUMNS) - 7), _many_output.PART_SECONDS, None]
        kept.add(row)
        assert len(rows(output)) == 1


def test_rows_are_kept_until_a_part_is_due(pairs, tmp_path, monkeypatch):
    output = tmp_path / "o.parquet"
    results = register_many(pairs, output=output, **QUICK)
    list(islice(results, 2))
    assert parts(output) == []
    results.close()  # an interruption: what was kept is written
    assert len(rows(output)) == 2
    monkeypatch.setattr(_many_output, "PART_ROWS", 1)
    results = register_many(pairs, output=output, **QUICK)
    next(results)
    assert len(rows(output)) == 3
    results.close()


def test_a_wrong_item_does_not_lose_the_rows_before_it(tmp_path):
    good = [(tmp_path / a, tmp_path / b) for a, b in clouds(tmp_path, 2)]
    with pytest.raises(InputError, match="item 2"):
        list(register_many([*good, 5], output=tmp_path / "o.parquet", **QUICK))
    assert len(rows(tmp_path / "o.parquet")) == 2


@pytest.mark.parametrize("kind", ["file", "other name", "other columns", "cut off"])
def test_what_holds_something_else_is_left_alone(pairs, tmp_path, kind):
    import pyarrow

    output, part = tmp_path / "o.parquet", tmp_path / "o.parquet" / "part-000000.parquet"
    if kind == "file":
        output.write_bytes(b"precious")
    elif kind == "other name":
        output.mkdir()
        (output / "notes.txt").write_text("precious")
    elif kind == "other columns":
        output.mkdir()
        parquet.write_table(pyarrow.table({"name": ["a"]}), part)
    else:
        list(register_many(pairs, output=output, **QUICK))
        part.write_bytes(part.read_bytes()[:-20])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        list(register_many(pairs, output=output, **QUICK))
    assert caught.value.argument == "output" and "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_without_pyarrow_the_extra_is_named(pairs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError) as caught:
        register_many(pairs, output=tmp_path / "o.parquet")
    assert caught.value.argument == "output" and "dlc_reg[parquet]" in str(caught.value)
    assert not (tmp_path / "o.parquet").exists()


def test_the_command(pairs, tmp_path):
    output = tmp_path / "o.parquet"
    done = run("register-many", pairs, "-o", output, "--method", "point-to-plane", "--voxel-size", "0.2")
    assert done.exit_code in (0, 2) and str(output) in done.stdout, done.output
    assert len(rows(output)) == 3
    assert "3 of them done before" in run("register-many", pairs, "-o", output).stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_leaves_what_was_complete(tmp_path):
    pairs, output = write_list(tmp_path / "pairs.csv", clouds(tmp_path, 30)), tmp_path / "o.parquet"
    code = (
        "from dlc_reg import _many_output, register_many\n_many_output.PART_SECONDS = 0.0\n"
        f"for _ in register_many({str(pairs)!r}, output={str(output)!r}, method='point_to_point'): pass"
    )
    # not in the checkout, whose package may have no native module
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    until = time.monotonic() + 60
    while len(list(output.glob("part-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait(30)
    assert 2 <= len(rows(output)) < 30
    list(register_many(pairs, output=output, **QUICK))
    names = [row["name"] for row in rows(output)]
    assert len(names) == len(set(names)) == 30
