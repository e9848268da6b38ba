"""`dlc-reg register` on the command line: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commanding import TURN, Library, files, run, surface

import dlc_reg
from dlc_reg import _console, cli, io
from dlc_reg.errors import InputError
from dlc_reg.geometry import apply_transform
from dlc_reg.registration.result import RegistrationResult, Verdict


@pytest.fixture
def scans(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source.ply", tmp_path / "target.ply"
    io.write(source, surface())
    io.write(target, apply_transform(TURN, surface()))
    return source, target


# --- register: what it says ------------------------------------------------------------------------------------------
def test_summary_says_what_was_read_chosen_and_found(scans: tuple[Path, Path], library: Library) -> None:
    result = run("register", *scans)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("read") and "source.ply: 900 points, extent 2.9" in lines[0]
    assert "target.ply: 900 points" in lines[1]
    text = result.stdout
    assert "voxel size 0.05 (from the data), max correspondence distance 0.125 (from the data)" in text
    assert "0.75 s (search 0.25, refine 0.50)" in text
    assert "rotation 36.870 deg about (0, 0, 1), translation (0.3, -0.2, 0.1)" in text
    assert "75.0% of the source points have a counterpart, inlier RMSE 0.0125, 2 iterations" in text
    assert lines[-1] == "VERDICT  aligned: all of the source lies on the target"


@pytest.mark.parametrize(
    ("verdict", "code"),
    [(Verdict.ALIGNED, 0), (Verdict.AMBIGUOUS, 2), (Verdict.DOUBTFUL, 2), (Verdict.FAILED, 3), (None, 2)],
)
def test_exit_code_is_the_verdict(
    scans: tuple[Path, Path], library: Library, verdict: Verdict | None, code: int
) -> None:
    library.verdict = verdict
    result = run("register", *scans)
    assert result.exit_code == code
    assert (verdict.value if verdict else "no verdict") in result.stdout.splitlines()[-1]
    quiet = run("register", *scans, "--quiet")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (code, "", "")


def test_json_is_strict_and_complete(scans: tuple[Path, Path], library: Library, tmp_path: Path) -> None:
    moved = tmp_path / "moved.ply"
    result = run("register", *scans, "--json", "-o", moved)
    assert result.stderr == ""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(result.stdout, parse_constant=refuse)
    expected = RegistrationResult().to_dict().keys() | {"version", "exit_code", "source", "target", "written"}
    assert document.keys() == expected
    assert document["transformation"] == TURN.tolist()
    assert document["verdict"] == "aligned" and document["exit_code"] == 0
    assert document["history"] == [{"fitness": 0.5, "inlier_rmse": None}, {"fitness": 0.75, "inlier_rmse": 0.5}]
    assert document["source"]["points"] == 900 and document["source"]["name"] == "source.ply"
    assert document["written"] == {"output": str(moved)}


def test_options_reach_the_library(scans: tuple[Path, Path], library: Library, tmp_path: Path) -> None:
    start = tmp_path / "start.txt"
    np.savetxt(start, TURN, delimiter=", ")
    options = ["--voxel-size", "0.1", "--max-correspondence-distance", "0.3", "--method", "point-to-plane"]
    options += ["--with-scaling", "--num-threads", "2", "--seed", "7"]
    options += ["--source-viewpoint", "1", "2", "-3", "--target-viewpoint", "4", "5", "6", "--init", str(start)]
    options += ["--source-gravity", "0", "0.5", "-1", "--target-gravity", "0", "0", "-1"]
    options += ["--dof", "yaw+translation", "--budget", "2.5"]
    result = run("register", *scans, *options)
    assert result.exit_code == 0 and "scale 1\n" in result.stdout and "voxel size 0.05 (given)" in result.stdout
    given = dict(library.calls[-1])
    np.testing.assert_array_equal(given.pop("init"), TURN)
    del given["source"], given["target"]
    assert given == {
        "voxel_size": 0.1,
        "max_correspondence_distance": 0.3,
        "method": "point_to_plane",
        "with_scaling": True,
        "num_threads": 2,
        "seed": 7,
        "progress": False,
        "source_viewpoint": (1.0, 2.0, -3.0),
        "target_viewpoint": (4.0, 5.0, 6.0),
        "source_gravity": (0.0, 0.5, -1.0),
        "target_gravity": (0.0, 0.0, -1.0),
        "dof": "yaw+translation",
        "budget": 2.5,
    }


def test_defaults_are_the_librarys(scans: tuple[Path, Path], library: Library) -> None:
    run("register", *scans)
    unset = ("init", "voxel_size", "max_correspondence_distance", "source_viewpoint", "target_viewpoint", "num_threads")
    assert all(library.calls[-1][name] is None for name in unset)
    assert (
        library.calls[-1]["method"] == "auto"
        and library.calls[-1]["seed"] == 0
        and library.calls[-1]["with_scaling"] is False
    )


def test_sensor_frame_puts_both_viewpoints_at_the_origin(scans: tuple[Path, Path], library: Library) -> None:
    assert run("register", *scans, "--sensor-frame").exit_code == 0
    assert library.calls[-1]["source_viewpoint"] == library.calls[-1]["target_viewpoint"] == (0.0, 0.0, 0.0)
    both = run("register", *scans, "--sensor-frame", "--source-viewpoint", "0", "0", "1")
    assert both.exit_code == 64 and "--source-viewpoint" in both.stderr


def test_what_is_known_beforehand_is_checked_in_the_commands_words(scans: tuple[Path, Path]) -> None:
    for arguments, says in (
        (["--dof", "yaw"], "--dof"),
        (["--budget", "0"], "--budget"),
        (["--source-gravity", "0", "0", "-1"], "--target-gravity"),
        (["--source-gravity", "0", "0", "0", "--target-gravity", "0", "0", "-1"], "--source-gravity"),
    ):
        done = run("register", *scans, *arguments)
        assert done.exit_code == 64 and says in done.stderr, done.stderr


def test_non_finite_points_are_dropped_and_counted(tmp_path: Path, scans: tuple[Path, Path], library: Library) -> None:
    points = surface()
    points[[3, 5]] = np.nan
    broken = tmp_path / "broken.npy"
    np.save(broken, points)
    result = run("register", broken, scans[1])
    assert result.exit_code == 0 and "898 points" in result.stdout and "dropped 2 non-finite points" in result.stdout
    strict = run("register", broken, scans[1], "--strict")
    assert strict.exit_code == 64 and "2 of 900 points" in strict.stderr and "no --strict" in strict.stderr


# --- register: what it writes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", _console.SUFFIXES["--output"])
def test_moved_cloud_lies_on_the_target(
    tmp_path: Path, scans: tuple[Path, Path], library: Library, suffix: str
) -> None:
    moved = tmp_path / f"moved{suffix}"
    result = run("register", *scans, "-o", moved)
    assert result.exit_code == 0 and str(moved) in result.stdout
    np.testing.assert_allclose(io.read(moved).points, io.read(scans[1]).points, atol=1e-6)


def test_moved_cloud_keeps_colours_and_turns_normals(tmp_path: Path, library: Library) -> None:
    rng = np.random.default_rng(1)
    normals = rng.normal(size=(900, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    colours = rng.integers(0, 256, (900, 3)) / 255
    source, moved = tmp_path / "a.ply", tmp_path / "b.ply"
    io.write(source, surface() + np.array([5e6, 4e5, 0]), normals, colours)
    assert run("register", source, source, "-o", moved).exit_code == 0
    result = io.read(moved)
    np.testing.assert_allclose(result.points, apply_transform(TURN, io.read(source).points), rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.normals, normals @ TURN[:3, :3].T, atol=1e-6)
    np.testing.assert_allclose(result.colors, colours, atol=1e-6)


def test_transform_file_is_exact(tmp_path: Path, scans: tuple[Path, Path], library: Library) -> None:
    path = tmp_path / "T.txt"
    run("register", *scans, "--save-transform", path)
    np.testing.assert_array_equal(np.loadtxt(path), TURN)
    np.testing.assert_array_equal(_console.read_transform(path, "--init"), TURN)


def test_every_digit_of_a_transform_survives(tmp_path: Path) -> None:
    matrix = np.random.default_rng(2).normal(size=(4, 4)) * 10.0 ** np.arange(-8, 8).reshape(4, 4)
    path = tmp_path / "T.txt"
    path.write_text(cli.matrix_text(matrix))
    np.testing.assert_array_equal(np.loadtxt(path), matrix)


def test_failed_pose_is_withheld_but_reported(tmp_path: Path, scans: tuple[Path, Path], library: Library) -> None:
    library.verdict, library.reasons = Verdict.FAILED, ["nothing fits"]
    paths = {name: tmp_path / name for name in ("moved.ply", "T.txt", "page.html", "picture.png")}
    options = ["-o", paths["moved.ply"], "--save-transform", paths["T.txt"]]
    result = run("register", *scans, *options, "--report", paths["page.html"], "--plot", paths["picture.png"])
    assert result.exit_code == 3
    assert {name for name, path in paths.items() if path.exists()} == {"page.html", "picture.png"}
    withheld = next(line for line in result.stdout.splitlines() if line.startswith("withheld"))
    assert "moved.ply" in withheld and "T.txt" in withheld and "page.html" not in withheld


def test_report_and_plot_are_written(tmp_path: Path, scans: tuple[Path, Path], library: Library) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "picture.png"
    assert run("register", *scans, "--report", page, "--plot", picture).exit_code == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("option", "name"),
    [("-o", "x.ply"), ("--save-transform", "x.txt"), ("--report", "x.html"), ("--plot", "x.png")],
)
def test_existing_output_is_kept_unless_told(
    tmp_path: Path, scans: tuple[Path, Path], library: Library, option: str, name: str
) -> None:
    path = tmp_path / name
    path.write_text("precious")
    refused = run("register", *scans, option, path)
    assert refused.exit_code == 64 and "--overwrite" in refused.stderr and name in refused.stderr
    assert path.read_text() == "precious" and library.calls == []  # refused before the work
    assert run("register", *scans, option, path, "--overwrite").exit_code == 0
    assert path.read_bytes() != b"precious"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-o", "nowhere/x.ply"], "make 'nowhere' first"),
        (["-o", "x.stl"], ".ply"),
        (["--report", "x.pdf"], ".html"),
        (["--plot", "x.bmp"], ".png"),
        (["--save-transform", "x.npy"], ".txt"),
        (["-o", "x.txt", "--save-transform", "./x.txt"], "--output"),
        (["-o", "source.ply", "--overwrite"], "inputs"),
        (["--init", "missing.txt"], "--init"),
        (["--init", "ragged.txt"], "4 x 4"),
        (["--init", "words.txt"], "4 x 4"),
        (["--num-threads", "0"], "--num-threads"),
        (["--voxel-size", "wide"], "--voxel-size"),
        (["--source-viewpoint", "1", "2"], "--source-viewpoint"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_options_write_nothing(
    tmp_path: Path,
    scans: tuple[Path, Path],
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    says: str,
) -> None:
    (tmp_path / "ragged.txt").write_text("1 0 0 0\n0 1 0\n")
    (tmp_path / "words.txt").write_text("not a matrix\n")
    monkeypatch.chdir(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    result = run("register", *scans, *options)
    assert result.exit_code == 64 and says in result.stderr and result.stdout == ""
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before and library.calls == []


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: None, id="missing"),
        pytest.param(lambda path: path.mkdir(), id="folder"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(
            lambda path: path.write_bytes(b"ply\nformat binary_little_endian 1.0\nelement ver"), id="truncated"
        ),
        pytest.param(lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)), id="mislabelled"),
        pytest.param(lambda path: io.write(path, surface()[:2]), id="two points"),
        pytest.param(lambda path: io.write(path, np.ones((9, 3))), id="one place"),
    ],
)
@pytest.mark.parametrize("side", ["SOURCE", "TARGET"])
def test_bad_files_write_nothing(
    tmp_path: Path, scans: tuple[Path, Path], make: Callable[[Path], object], side: str
) -> None:
    bad = tmp_path / "bad.ply"
    make(bad)
    pair = (bad, scans[1]) if side == "SOURCE" else (scans[0], bad)
    before = files(tmp_path)
    result = run("register", *pair, "-o", tmp_path / "moved.ply", "--report", tmp_path / "page.html")
    assert result.exit_code == 64 and result.stderr.startswith(f"error: {side}: got ")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["register", "--bogus"], "No such option '--bogus' (main register --help tells more)"),
        (["bogus"], "No such command 'bogus' (main --help tells more)"),
        (["completion"], "Choose from: bash, zsh, fish (main completion --help tells more)"),
    ],
)
def test_misspelt_command_line_is_one_line(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 64 and result.stdout == ""
    assert (
        result.stderr.startswith("error: ") and result.stderr.endswith(words + "\n") and result.stderr.count("\n") == 1
    )


def test_what_takes_its_time_is_said_on_a_terminal_only_and_wiped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _console.working("reading"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with _console.working("reading", show=False):
        pass
    assert capsys.readouterr() == ("", "")
    with _console.working("reading"):
        assert capsys.readouterr() == ("", "reading ...")
    assert capsys.readouterr() == ("", "\r" + 11 * " " + "\r")


def test_missing_extra_is_said_before_the_work(
    tmp_path: Path, scans: tuple[Path, Path], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlc_reg.report.find_spec", lambda name: None)
    result = run("register", *scans, "--plot", tmp_path / "picture.png")
    assert result.exit_code == 64 and 'pip install "dlc_reg[viz]"' in result.stderr and library.calls == []


def test_input_error_of_the_library_speaks_of_options(
    scans: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(*args: Any, **options: Any) -> RegistrationResult:
        raise InputError("max_correspondence_distance", "-1", "a positive length")

    monkeypatch.setattr(dlc_reg, "register", register, raising=False)
    result = run("register", *scans, "--max-correspondence-distance", "-1")
    assert result.exit_code == 64
    assert result.stderr == "error: --max-correspondence-distance: got -1; expected a positive length\n"


def test_unexpected_errors_are_one_line_until_asked(scans: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def register(*args: Any, **options: Any) -> RegistrationResult:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(dlc_reg, "register", register, raising=False)
    short = run("register", *scans)
    assert short.exit_code == 70 and len(short.stderr.splitlines()) == 1
    assert "ZeroDivisionError: by nought" in short.stderr and "dlc-reg doctor" in short.stderr
    long = run("register", *scans, "--debug")
    assert long.exit_code == 70 and "Traceback" in long.stderr
