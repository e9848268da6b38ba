"""`register_many` in this process: the list, the output, and running on after an interruption."""

from __future__ import annotations

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from commanding import TURN, surface
from manyfold import Raises, clouds, table, write_list
from registering import same_bytes

import dlc_reg
from dlc_reg import InputError, PairResult, register_many
from dlc_reg._many_output import COLUMNS, open_output


@pytest.fixture
def scans(tmp_path):
    """Three pairs in the list `pairs.csv` of a folder of its own."""
    folder = tmp_path / "scans"
    folder.mkdir()
    write_list(folder / "pairs.csv", clouds(folder, 3))
    return folder


def by_name(results):
    return {r.name: r for r in results}


def refused(pairs, text, **options):
    with pytest.raises(InputError) as caught:
        list(register_many(pairs, **options))
    assert text in str(caught.value), str(caught.value)
    return caught.value


# --- results ---------------------------------------------------------------------------------------------------------
def test_each_pair_is_what_register_finds(scans):
    found = list(register_many(scans / "pairs.csv", method="global", voxel_size=0.2))
    assert [r.name for r in found] == [f"source{i}.npy -> target{i}.npy" for i in range(3)]
    for i, r in enumerate(found):
        assert isinstance(r, PairResult) and r.error is None and r.seconds > 0
        assert (r.source, r.target) == (scans.resolve() / f"source{i}.npy", scans.resolve() / f"target{i}.npy")
        same_bytes(r.result, dlc_reg.register(r.source, r.target, method="global", voxel_size=0.2))
        assert r.result.clouds is None


def test_kinds_of_pairs(tmp_path):
    source = surface(300)
    target = source @ TURN[:3, :3].T + TURN[:3, 3]
    named = namedtuple("Named", "name source target")("named", source, target)
    pairs = [(source, target), [source, target, TURN], {"source": source, "target": target, "name": "mapped"}, named]
    found = list(register_many(iter(pairs), method="point_to_point"))
    assert [r.name for r in found] == ["0", "1", "mapped", "named"]
    assert found[1].source is source
    same_bytes(found[1].result, dlc_reg.register(source, target, init=TURN, method="point_to_point"))
    same_bytes(found[2].result, found[0].result)
    assert found[1].result.history != found[0].result.history


def test_the_list_is_read_as_it_is_worked_on():
    taken = []

    def endless():
        for i in range(10**9):
            taken.append(i)
            yield surface(300), surface(300)

    results = register_many(endless(), method="point_to_point")
    assert taken == []
    assert [r.name for r in islice(results, 2)] == ["0", "1"] and len(taken) == 2
    results.close()


def test_a_failing_pair_costs_only_itself(scans, tmp_path):
    good = (np.load(scans / "source0.npy"), np.load(scans / "target0.npy"))
    pairs = [
        good,
        (scans / "missing.npy", good[1]),
        (Raises(), good[1]),
        (good[0][:2], good[1]),
        (*good, np.eye(3)),
        good,
    ]
    found = list(register_many(pairs, output=tmp_path / "o.csv", method="point_to_point"))
    assert [r.error is None for r in found] == [True, False, False, False, False, True]
    for r, text in zip(found[1:5], ("does not exist", "making", "2 points", "init"), strict=True):
        assert r.result is None and text in r.error
    rows = table(tmp_path / "o.csv")
    assert [row["name"] for row in rows] == [r.name for r in found]
    assert rows[1]["source"] == str(scans / "missing.npy") and rows[0]["source"] == "ndarray"
    assert rows[2]["verdict"] == "" and rows[2]["t00"] == "" and "own making" in rows[2]["error"]
    assert len((tmp_path / "o.csv").read_bytes().splitlines()) == 7  # one line a pair, whatever the error says


# --- output ----------------------------------------------------------------------------------------------------------
def test_rows_hold_the_result_to_the_last_bit(scans, tmp_path):
    output = tmp_path / "results.csv"
    found = list(register_many(scans / "pairs.csv", output=output))
    for r, row in zip(found, table(output), strict=True):
        assert list(row) == COLUMNS
        assert row["verdict"] == r.result.verdict.value and row["reasons"] == "; ".join(r.result.verdict_reasons)
        matrix = np.array([float(row[f"t{i}{j}"]) for i in range(4) for j in range(4)]).reshape(4, 4)
        np.testing.assert_array_equal(matrix, r.result.transformation)
        assert float(row["fitness"]) == r.result.fitness and float(row["inlier_rmse"]) == r.result.inlier_rmse
        assert row["error"] == "" and float(row["seconds"]) > 0


def test_a_row_is_written_before_its_result_is_given_out(scans, tmp_path):
    results = register_many(scans / "pairs.csv", output=tmp_path / "o.csv")
    assert not (tmp_path / "o.csv").exists()  # nothing before it is asked
    for count, r in enumerate(results, 1):
        rows = table(tmp_path / "o.csv")
        assert len(rows) == count and rows[-1]["name"] == r.name


@pytest.mark.parametrize("torn", [0, 1, 7, 60])
def test_a_restart_does_the_rest(scans, tmp_path, torn):
    """After an interruption that cut the last of two lines by `torn` bytes."""
    output = tmp_path / "o.csv"
    results = register_many(scans / "pairs.csv", output=output)
    first = list(islice(results, 2))
    results.close()
    written = output.read_bytes()
    output.write_bytes(written[: len(written) - torn])
    again = list(register_many(scans / "pairs.csv", output=output))
    assert [r.name for r in again] == [f"source{i}.npy -> target{i}.npy" for i in range(1 if torn else 2, 3)]
    rows = table(output)
    assert [row["name"] for row in rows] == [f"source{i}.npy -> target{i}.npy" for i in range(3)]
    assert float(rows[0]["t03"]) == first[0].result.transformation[0, 3]
    assert list(register_many(scans / "pairs.csv", output=output)) == []
    counted = open_output(output)
    assert sum(counted.counts.values()) == 3 and len(counted.done) == 3


def test_failed_pairs_are_not_tried_again(scans, tmp_path):
    pairs = [(scans / "source0.npy", scans / "missing.npy")]
    for expected in (1, 0):
        assert len(list(register_many(pairs, output=tmp_path / "o.csv"))) == expected
    assert open_output(tmp_path / "o.csv").counts == {"error": 1}


@pytest.mark.parametrize("name", ["a,b", 'a "quoted" one', "two  blanks ", "=1+1", "naïve/雪"])
def test_names_come_back_as_they_were(tmp_path, name):
    pairs = [{"source": surface(300), "target": surface(300), "name": name}]
    for expected in (1, 0):
        assert len(list(register_many(pairs, output=tmp_path / "o.csv", method="point_to_point"))) == expected


@pytest.mark.parametrize("content", [b"x", b"name,source\na,b\n", b"\x00\xff\n", ",".join(COLUMNS).encode()])
def test_a_file_of_something_else_is_left_alone(scans, tmp_path, content):
    output = tmp_path / "o.csv"
    output.write_bytes(content)
    refused(scans / "pairs.csv", "something else", output=output)
    assert output.read_bytes() == content


def test_a_damaged_line_is_not_passed_over(scans, tmp_path):
    output = tmp_path / "o.csv"
    list(register_many(scans / "pairs.csv", output=output))
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join([*lines[:2], b"half a row\n", *lines[2:]]))
    refused(scans / "pairs.csv", "line 3 is damaged", output=output)


def test_outputs_that_cannot_be(scans, tmp_path):
    refused(scans / "pairs.csv", ".csv or .parquet", output=tmp_path / "o.json")
    refused(scans / "pairs.csv", "make", output=tmp_path / "none" / "o.csv")
    (tmp_path / "folder.csv").mkdir()
    refused(scans / "pairs.csv", "may be written", output=tmp_path / "folder.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"scans", "folder.csv"}


# --- lists that are wrong --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path", ["../secret.npy", "/etc/passwd", "a/../../secret.npy", "~root/x", "link.npy", "linked/x"]
)
def test_paths_out_of_the_lists_folder_are_refused(scans, tmp_path, path):
    np.save(tmp_path / "secret.npy", surface(300))
    (scans / "link.npy").symlink_to(tmp_path / "secret.npy")
    (scans / "linked").symlink_to(tmp_path)
    pairs = write_list(scans / "list.csv", [("source0.npy", "target0.npy"), ("source1.npy", path)])
    if path == "~root/x":  # a name like another, below the folder
        assert [r.error is None for r in register_many(pairs)] == [True, False]
        return
    output = tmp_path / "o.csv"
    error = refused(pairs, "leads out of it", output=output)
    assert "line 3" in error.given and "allow_outside" in error.expected
    assert not output.exists()  # before anything was done


def test_paths_may_lead_out_where_that_is_allowed(scans, tmp_path):
    np.save(tmp_path / "outside.npy", surface(300))
    pairs = write_list(scans / "list.csv", [("../outside.npy", tmp_path / "outside.npy")])
    (found,) = register_many(pairs, allow_outside=True)
    assert found.error is None and found.source == (tmp_path / "outside.npy").resolve()


def test_a_list_with_names_and_starts(scans):
    start = " ".join(map(str, TURN.ravel()))
    rows = [("with", start, "target0.npy", "source0.npy"), ("without", " ", "target0.npy", "source0.npy")]
    pairs = write_list(scans / "list.csv", rows, header=("name", " init", "target", "source"))
    found = by_name(register_many(pairs, method="point_to_point"))
    source, target = (np.load(scans / f"{name}0.npy") for name in ("source", "target"))
    for name, init in (("with", TURN), ("without", None)):
        same_bytes(found[name].result, dlc_reg.register(source, target, init=init, method="point_to_point"))
    assert found["with"].result.history != found["without"].result.history


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "header"),
        ("source\na\n", "header"),
        ("source,target,start\na,b,c\n", "header"),
        ("source,target,target\na,b,c\n", "header"),
        ("source,target\na,b\nc\n", "line 3, with 1 cells"),
        ("source,target\na,b,c\n", "with 3 cells"),
        ("source,target,init\na,b,1 2 3\n", "init '1 2 3'"),
        ("source,target,init\na,b," + "nan " * 16 + "\n", "init"),
        ("source,target\na,b\nc,d\na,b\n", "twice"),
        ("source,target,name\na,b,x\nc,d,x\n", "'x' twice"),
        ('source,target,name\na,b,"x\ny"\n', "printable"),
        ("source,target\na,b\x00\n", "line 2"),
        ('source,target\n"a,b\n', "cannot be read"),
        ("source,target\n" + "a" * 200_000 + ",b\n", "cannot be read"),
    ],
)
def test_a_wrong_list_is_refused_before_anything_is_done(scans, text, says):
    (scans / "list.csv").write_text(text, newline="")
    with pytest.raises(InputError) as caught:
        register_many(scans / "list.csv")
    assert caught.value.argument == "pairs" and says in str(caught.value), str(caught.value)


def test_files_that_are_no_list(scans, tmp_path):
    for path in (tmp_path / "missing.csv", tmp_path, scans / "source0.npy"):
        refused(path, "pairs: got")


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (("a",), "item 1, a tuple"),
        ("ab", "item 1, a str"),
        (3, "item 1, a int"),
        ({"source": 1}, "item 1 with source"),
        ({"source": 1, "target": 2, "extra": 3}, "extra"),
        ({"source": 1, "target": 2, "name": "a\nb"}, "printable"),
        ({"source": 1, "target": 2, "name": ""}, "printable"),
        ({"source": 1, "target": 2, "name": 5}, "printable"),
    ],
)
def test_a_wrong_item_raises_when_its_turn_comes(item, says):
    good = (surface(300), surface(300))
    results = register_many([good, item], method="point_to_point")
    assert next(results).name == "0"
    with pytest.raises(InputError, match="pairs") as caught:
        next(results)
    assert says in str(caught.value)


def test_a_name_twice_is_refused_where_there_is_an_output(tmp_path):
    pairs = [{"source": surface(300), "target": surface(300), "name": "same"}] * 2
    assert len(list(register_many(pairs, method="point_to_point"))) == 2
    refused(pairs, "'same' twice", method="point_to_point", output=tmp_path / "o.csv")


@pytest.mark.parametrize("pairs", [3, None, {"source": 1, "target": 2}])
def test_what_is_no_list(pairs):
    assert refused(pairs, "an iterable of pairs").argument == "pairs"


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"metod": "auto"}, "metod"),
        ({"callback": print}, "callback"),
        ({"init": np.eye(4)}, "init"),
        ({"method": "nonsense"}, "method"),
        ({"source_viewpoint": (1, 2)}, "source_viewpoint"),
        ({"in_flight": 0}, "in_flight"),
        ({"in_flight": True}, "in_flight"),
        ({"executor": 3}, "executor"),
    ],
)
def test_bad_options_are_refused_at_once(scans, options, argument):
    with pytest.raises(InputError) as caught:
        register_many(scans / "pairs.csv", **options)
    assert caught.value.argument == argument


def test_a_relative_list(scans, monkeypatch):
    monkeypatch.chdir(scans)
    assert [r.error for r in register_many(Path("pairs.csv"))] == [None] * 3


def test_what_is_in_flight_is_written_before_a_wrong_item_raises(tmp_path):
    pairs = [(tmp_path / a, tmp_path / b) for a, b in clouds(tmp_path, 3)]
    with ThreadPoolExecutor(2) as pool, pytest.raises(InputError, match="item 3"):
        list(register_many([*pairs, 5], executor=pool, output=tmp_path / "o.csv"))
    assert len(open_output(tmp_path / "o.csv").done) == 3


def test_an_output_that_was_written_to_since_is_read_again(tmp_path):
    pairs = [(tmp_path / a, tmp_path / b) for a, b in clouds(tmp_path, 3)]
    first, second, third = (register_many(pairs[:k], output=tmp_path / "o.csv") for k in (2, 3, 3))
    assert [len(list(run)) for run in (first, second)] == [2, 1]
    (tmp_path / "o.csv").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        list(third)
    assert (tmp_path / "o.csv").read_text() == "precious"


def test_an_endless_error_stays_readable(tmp_path):
    with open_output(tmp_path / "o.csv") as output:
        output.add(["a", "s", "t", "", "", "", "", *[""] * 16, 0.0, "x" * 200_000])
    assert open_output(tmp_path / "o.csv").done == {"a"}
