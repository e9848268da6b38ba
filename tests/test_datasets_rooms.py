"""What `datasets/rooms.py` makes: pairs with exact poses, a camera whose noise is structured light's, equal bytes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy.spatial import cKDTree

sys.path[:0] = [str(ROOT / "datasets"), str(ROOT / "tools")]

from fragments import Fragments  # noqa: E402

o3d = pytest.importorskip("open3d")

import _furniture  # noqa: E402
import rooms  # noqa: E402
from cad import Row  # noqa: E402


def made(folder: Path, name: str, seed: int = 0) -> Path:
    rooms.main(["--output", str(folder / name), "--rooms", "1", "--seed", str(seed)])
    return folder / name


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(rooms, "FRAGMENTS", 5)
    monkeypatch.setattr(rooms, "FRAMES", 3)


def test_the_true_pose_of_a_pair_lays_as_much_on_the_other_as_is_said(tmp_path, short):
    fragments = Fragments(made(tmp_path, "rooms.npz"))
    tasks = list(fragments.pairs("rooms", None, np.random.default_rng(0)))
    assert fragments.benchmarks == ["rooms"] and tasks and fragments.scene(0) == "room-0000"
    overlaps = {
        tuple(p): o for p, o in zip(fragments.data["rooms_pairs"], fragments.data["rooms_overlap"], strict=True)
    }
    for task in tasks:
        source, target = (fragments.points_of(i) for i in (task.source, task.target))
        rotation, shift = task.T_target_source[:3, :3], task.T_target_source[:3, 3]
        assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.linalg.det(rotation) == pytest.approx(1)
        moved = source @ rotation.T + shift
        there, back = (cKDTree(a).query(b)[0] for a, b in ((target, moved), (moved, target)))
        overlap = ((there < 0.05).mean() + (back < 0.05).mean()) / 2
        assert overlap == pytest.approx(overlaps[task.target, task.source], abs=0.03) and 0.08 < overlap < 0.92
        # What both see they see in one place, but for noise and drift: most of it within a voxel.
        assert np.median(there[there < 0.05]) < 0.025
    for i in range(len(fragments.data["scene"])):
        points = fragments.points_of(i)
        assert np.quantile(points[:, 2], 0.05) > 0.3  # before the first camera, which is at the origin
        assert np.median(cKDTree(points).query(points, k=2)[0][:, 1]) == pytest.approx(0.022, abs=0.006)


def test_the_same_seed_gives_the_same_bytes_and_another_another_room(tmp_path, short):
    a, b, c = (made(tmp_path, name, seed).read_bytes() for name, seed in (("a.npz", 1), ("b.npz", 1), ("c.npz", 2)))
    assert a == b != c


def test_depths_are_wrong_by_their_square_and_grazing_ones_are_missing():
    core, spread = o3d.core, {}
    for depth in (1.0, 3.0):
        scene = o3d.t.geometry.RaycastingScene()
        wall = _furniture.box(20, 20, 0.1).moved(0, 0, depth)
        scene.add_triangles(core.Tensor(wall.vertices.astype(np.float32)), core.Tensor(wall.faces.astype(np.uint32)))
        points = rooms.depth_image(np.random.default_rng(0), scene, np.eye(4), np.zeros((120, 160)), 6.0)
        assert len(points) > 0.98 * rooms.WIDTH * rooms.HEIGHT
        errors = points[:, 2] - depth
        assert abs(errors.mean()) < 0.2 * rooms.STEP * depth**2
        assert np.allclose(np.round(1 / points[:, 2] / rooms.STEP), 1 / points[:, 2] / rooms.STEP, atol=1e-6)
        spread[depth] = errors.std()
    assert spread[3.0] / spread[1.0] == pytest.approx(9, rel=0.25)
    floor = _furniture.box(50, 0.1, 50).moved(0, 0.05, 0)  # from 10 cm above it, most of it is grazed
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        core.Tensor((floor.vertices + np.array([0, 0.1, 0])).astype(np.float32)),
        core.Tensor(floor.faces.astype(np.uint32)),
    )
    points = rooms.depth_image(np.random.default_rng(0), scene, np.eye(4), np.zeros((120, 160)), 6.0)
    cosine = points[:, 1] / np.linalg.norm(points, axis=1)
    assert len(points) and cosine.min() > 0.07


def test_furniture_has_its_catalogues_size_and_stands_on_the_floor_with_its_back_to_the_wall():
    obj = b"v 0 0 0\nv 4 0 0\nv 4 3 0\nv 0 3 0\nv 0 0 9\nf 1 2 3\nf 1 3 4\nf 1 2 5\n"  # the back at z = 0, y up
    about = {"width": "80", "depth": "45", "height": "120"}
    mesh = _furniture.Model(Row(obj, "", "", "", "", about)).mesh
    assert mesh.vertices.min(0) == pytest.approx([-0.4, -0.225, 0]) and mesh.size == pytest.approx([0.8, 0.45, 1.2])
    assert mesh.vertices[mesh.vertices[:, 2] > 1][:, 1] == pytest.approx([0.225, 0.225])


@pytest.mark.parametrize("make", [*_furniture.STANDING, *_furniture.LYING])
def test_what_is_made_here_stands_on_the_floor_about_the_origin(make):
    for seed in range(5):
        mesh = make(np.random.default_rng(seed))
        assert mesh.vertices[:, 2].min() == pytest.approx(0, abs=1e-9) and (mesh.size > 0.02).all()
        assert np.abs(mesh.vertices[:, :2].min(0) + mesh.vertices[:, :2].max(0)).max() < 0.3 * mesh.size[:2].max()
        assert mesh.faces.max() == len(mesh.vertices) - 1 and mesh.faces.min() == 0


def test_a_folder_without_the_package_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="sweethome3d-furniture"):
        rooms.main(["--output", str(tmp_path / "r.npz"), "--packages", str(tmp_path)])
