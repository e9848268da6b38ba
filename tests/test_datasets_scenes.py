"""What `datasets/kitti.py` and `eth.py` prepare, from small archives of the same make, and the format they share."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy.spatial.transform import Rotation

from dlc_reg.errors import InputError
from dlc_reg.io import write

sys.path[:0] = [str(ROOT / "datasets"), str(ROOT / "tools")]

import _fragments  # noqa: E402
import eth  # noqa: E402
import kitti  # noqa: E402
from fragments import Fragments  # noqa: E402

LIDAR = (
    Rotation.from_euler("zyx", [-90, 3, -88], degrees=True).as_matrix(),
    [0.01, -0.07, -0.3],
)  # Tr: camera from lidar


def matrix(rotation, translation) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, translation
    return pose


def rows(pose: np.ndarray) -> str:
    return " ".join(f"{x:.12e}" for x in pose[:3].ravel())


def drive(count: int, step: float) -> list[np.ndarray]:
    """The camera's poses on a bend, z forward, `step` metres a scan."""
    turns = [Rotation.from_euler("y", 2 * k, degrees=True).as_matrix() for k in range(count)]
    return [matrix(turn, [0.01 * k * k, 0, step * k]) for k, turn in enumerate(turns)]


def sequence(folder: Path, poses: list[np.ndarray], name: str = "08") -> dict[int, np.ndarray]:
    """A folder with velodyne, calib.txt and poses as KITTI's archives have them; all scans see the same points."""
    rng = np.random.default_rng(0)
    lidar = matrix(*LIDAR)
    world = rng.uniform(-30, 30, (200, 3))
    scans, velodyne = {}, folder / "dataset" / "sequences" / name / "velodyne"
    velodyne.mkdir(parents=True)
    for k, pose in enumerate(poses):
        there = np.linalg.inv(pose @ lidar)
        points = (world @ there[:3, :3].T + there[:3, 3]).round(3).astype("<f4")
        np.c_[points, np.full(len(points), 0.5)].astype("<f4").tofile(velodyne / f"{k:06d}.bin")
        scans[k] = points
    calibration = f"P0: {rows(np.eye(4))}\nP1: {rows(np.eye(4))}\nTr: {rows(lidar)}\n"
    (velodyne.parent / "calib.txt").write_text(calibration)
    (folder / "dataset" / "poses").mkdir(exist_ok=True)
    (folder / "dataset" / "poses" / f"{name}.txt").write_text("".join(rows(pose) + "\n" for pose in poses))
    return scans


def test_pairs_are_the_last_before_the_distance():
    """One metre a scan along a line: from 0 the first beyond 10 m is 11, so 10; on from 11."""
    line = np.c_[np.arange(35.0), np.zeros((35, 2))]
    assert kitti.far_pairs(line, set(range(35)), 10) == [(0, 10), (11, 21), (22, 32)]
    assert kitti.far_pairs(line, set(range(35)) - {21}, 10) == [(0, 10), (22, 32)]
    assert kitti.far_pairs(line[:9], set(range(9)), 10) == []
    leaps = np.c_[20.0 * np.arange(4), np.zeros((4, 2))]
    assert kitti.far_pairs(leaps, set(range(4)), 10) == []  # no scan before the distance: no pair of a scan with itself


def test_kitti_pairs_carry_the_lidars_motion(tmp_path, capsys):
    scans = sequence(tmp_path, drive(26, 1.0))
    arguments = ["--output", str(tmp_path / "k.npz"), "--archive", str(tmp_path)]
    with pytest.raises(SystemExit, match="no sequences/09"):
        kitti.main(arguments)
    for name in ("09", "10"):
        sequence(tmp_path, drive(3, 1.0), name)
    with pytest.raises(SystemExit, match="found 2 pairs, expected 555"):
        kitti.main(arguments)
    kitti.main([*arguments, "--incomplete"])
    fragments = Fragments(tmp_path / "k.npz")
    assert isinstance(fragments.points, np.memmap) and fragments.benchmarks == ["kitti"]  # one scan at a time is read
    tasks = list(fragments.pairs("kitti", None, np.random.default_rng(0)))
    assert len(tasks) == 2
    for task in tasks:
        assert fragments.number(task.source) > fragments.number(task.target)
        source, target = (fragments.points_of(k) for k in (task.source, task.target))
        assert np.abs(source - scans[fragments.number(task.source)]).max() < 1e-5
        moved = source @ task.T_target_source[:3, :3].T + task.T_target_source[:3, 3]
        assert np.abs(moved - target).max() < 3e-3  # the same world points, to the millimetres of the files
        assert np.abs(source - target).max() > 5
        assert task.information is None and fragments.scene(task.source) == "08"
    kitti.main([*arguments, "--sequence", "08", "--distance", "5"])
    assert len(Fragments(tmp_path / "k.npz").data["kitti_pairs"]) > 2


def test_kitti_from_archives_is_as_from_folders(tmp_path):
    sequence(tmp_path, drive(14, 1.0))
    parts = {"velodyne": "velodyne/", "poses": "poses/", "calib": "calib.txt"}
    for part, mark in parts.items():
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for path in sorted((tmp_path / "dataset").rglob("*")):
                if path.is_file() and mark in str(path):
                    archive.write(path, path.relative_to(tmp_path))
    common = ["--sequence", "08", "--output"]
    zips = [part for name in parts for part in ("--archive", str(tmp_path / f"{name}.zip"))]
    kitti.main([*common, str(tmp_path / "a.npz"), *zips])
    kitti.main([*common, str(tmp_path / "b.npz"), "--archive", str(tmp_path / "dataset")])
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert sorted(a.files) == sorted(b.files) and all(np.array_equal(a[key], b[key]) for key in a.files)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("poses/08.txt", "1 2 3\n", "not lines of 12 numbers"),
        ("poses/08.txt", (" ".join(["1"] * 12) + "\n") * 14, "no rigid motion"),
        ("poses/08.txt", (" ".join(["nan"] * 12) + "\n") * 14, "no rigid motion"),
        ("sequences/08/calib.txt", "P0: 1 2 3\n", "no line `Tr:`"),
        ("sequences/08/velodyne/000000.bin", "fifteen bytes..", "15 bytes"),
    ],
)
def test_kitti_refuses_what_is_wrong(tmp_path, file, content, message):
    sequence(tmp_path, drive(14, 1.0))
    (tmp_path / "dataset" / file).write_text(content)
    with pytest.raises(SystemExit, match=message):
        kitti.main(["--output", str(tmp_path / "k.npz"), "--archive", str(tmp_path), "--sequence", "08"])
    assert not (tmp_path / "k.npz").exists()


@pytest.mark.shared
def test_kitti_from_poses_of_a_slam(tmp_path, shared_data):
    """The real scans; their truth comes from a file as a SLAM leaves it."""
    folder = shared_data / "kitti"
    truth = {k: np.array(v) for k, v in json.loads((folder / "T_scan0_scan.json").read_text()).items()}
    arguments = ["--output", str(tmp_path / "k.npz"), "--archive", str(folder)]
    arguments += ["--poses", str(folder / "T_scan0_scan.json")]
    with pytest.raises(SystemExit, match="no two scans that are there lie 10 m apart"):
        kitti.main(arguments)
    kitti.main([*arguments, "--distance", "1"])
    fragments = Fragments(tmp_path / "k.npz")
    (task,) = fragments.pairs("kitti", None, np.random.default_rng(0))
    assert (fragments.number(task.target), fragments.number(task.source)) == (0, 1)
    np.testing.assert_allclose(task.T_target_source, truth["000001.bin"], atol=1e-12)
    scan = np.fromfile(folder / "000001.bin", "<f4").reshape(-1, 4)[:, :3]
    assert np.abs(fragments.points_of(task.source) - scan).max() < 6e-4


# --- ETH -------------------------------------------------------------------------------------------------------------
def eth_tree(folder: Path) -> tuple[dict[tuple[str, int], np.ndarray], np.ndarray]:
    rng, clouds = np.random.default_rng(1), {}
    pose = matrix(Rotation.from_euler("z", 40, degrees=True).as_matrix(), [3, -2, 0.5])
    for scene in ("gazebo_summer", "wood_autmn"):
        (folder / scene).mkdir()
        for n in (0, 2, 11):
            clouds[scene, n] = rng.uniform(-20, 20, (60, 3)).round(4)
            write(folder / scene / f"Hokuyo_{n}.ply", clouds[scene, n].astype(np.float32))
        blocks = [f"0\t {j}\t 37\n" + "\n".join("\t ".join(map(str, r)) + "\t " for r in pose) + "\n" for j in (2, 11)]
        (folder / scene / "gt.log").write_text("".join(blocks))
    table = np.arange(144).reshape(12, 12) / 144
    (folder / "wood_autmn" / "overlapMatrix.csv").write_text("\n".join(",".join(map(str, r)) for r in table) + "\n")
    return clouds, pose


def test_eth_gives_what_the_tools_read(tmp_path):
    clouds, pose = eth_tree(tmp_path)
    arguments = ["--output", str(tmp_path / "e.npz"), "--archive", str(tmp_path)]
    with pytest.raises(SystemExit, match="not the benchmark"):
        eth.main(arguments)
    eth.main([*arguments, "--incomplete"])
    fragments = Fragments(tmp_path / "e.npz")
    tasks = list(fragments.pairs("eth", None, np.random.default_rng(0)))
    numbers = {tuple((fragments.scene(k), fragments.number(k)) for k in (t.target, t.source)) for t in tasks}
    assert numbers == {((s, 0), (s, j)) for s in ("gazebo_summer", "wood_autmn") for j in (2, 11)}  # T maps j into i
    assert all(np.array_equal(t.T_target_source, pose) and t.information is None for t in tasks)
    for k, name in enumerate(sorted(clouds)):
        assert np.abs(fragments.points_of(k) - clouds[name]).max() < 1e-4
    overlap = fragments.data["eth_overlap"]
    assert np.isnan(overlap[:2]).all() and overlap[2:] == pytest.approx([2 / 144, 11 / 144])


def test_eth_refuses_what_is_wrong(tmp_path):
    eth_tree(tmp_path)
    arguments = ["--output", str(tmp_path / "e.npz"), "--archive", str(tmp_path), "--incomplete"]
    table, log = tmp_path / "wood_autmn" / "overlapMatrix.csv", tmp_path / "wood_autmn" / "gt.log"
    good = log.read_text()
    for path, content, message in (
        (table, "1,2\n3\n", "not a square table"),
        (log, good + "0 1", "not lines of"),
        (log, good.replace("\t 11\t", "\t 7\t"), "pair 0 7 are not there"),
        (log, good.replace("0.5", "nan"), "no rigid motion"),
        (tmp_path / "wood_autmn" / "Hokuyo_2.ply", "ply", "Hokuyo_2.ply"),
    ):
        before = path.read_bytes()
        path.write_text(content)
        with pytest.raises(SystemExit, match=message):
            eth.main(arguments)
        path.write_bytes(before)
    (tmp_path / "ETH.rar").write_bytes(b"Rar!\x1a\x07\x00")
    with pytest.raises(SystemExit, match="unpack it"):
        eth.main([*arguments[:2], "--archive", str(tmp_path / "ETH.rar")])
    assert not (tmp_path / "e.npz").exists()


# --- the format ------------------------------------------------------------------------------------------------------
def test_the_reader_refuses_files_that_do_not_fit(tmp_path):
    path = tmp_path / "f.npz"
    clouds = [_fragments.Cloud("s", k, np.full((4, 3), k)) for k in range(2)]
    arrays = {"eth_pairs": np.array([[0, 1]]), "eth_T": np.eye(4)[None]}
    for compress in (True, False):
        _fragments.save_fragments(path, clouds, scale=0.01, compress=compress, arrays=arrays)
        assert np.array_equal(Fragments(path).points_of(1), np.ones((4, 3)))
    whole = dict(np.load(path))
    for key, value in (
        ("offsets", np.array([0, 4, 9])),
        ("points_q", np.zeros((8, 3))),
        ("eth_pairs", np.array([[0, 2]])),
        ("eth_T", np.eye(4)),
        ("fragment", np.arange(3)),
    ):
        np.savez(path, **(whole | {key: value}))
        with pytest.raises(InputError, match="fit"):
            Fragments(path)
    np.savez(path, **{k: v for k, v in whole.items() if k != "scale"})
    with pytest.raises(InputError, match="without scale"):
        Fragments(path)
    np.savez(path, **whole)
    with pytest.raises(InputError, match="no pairs"):
        list(Fragments(path).pairs("kitti", None, np.random.default_rng(0)))
    with pytest.raises(InputError, match="does not exist"):
        Fragments(tmp_path / "nothing.npz")


def test_the_writer_refuses_points_that_are_none(tmp_path):
    for points in (np.full((3, 3), np.nan), np.full((3, 3), 1e9), np.zeros((3, 2))):
        with pytest.raises(SystemExit, match="not finite points"):
            _fragments.save_fragments(
                tmp_path / "f.npz", [_fragments.Cloud("s", 0, points)], scale=1e-3, compress=False, arrays={}
            )
    assert list(tmp_path.iterdir()) == []
