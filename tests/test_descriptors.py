"""Learned descriptors: what they do not depend on, that the shipped ones find more true matches, and their tools."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.geometry import localize
from dlc_reg.networks.descriptors import Descriptors, histograms, read, shipped
from dlc_reg.registration.description import nearest
from dlc_reg.registration.global_search import Thinned, working_voxel_size

sys.path[:0] = [str(ROOT / "datasets"), str(ROOT / "tools")]

import compare_descriptors  # noqa: E402
import train_descriptors  # noqa: E402
from fragments import Fragments  # noqa: E402

SHIPPED = ROOT / "dlc_reg" / "weights" / "descriptors"


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


@pytest.fixture(scope="module")
def rooms_file(tmp_path_factory):
    """A room that no training saw."""
    pytest.importorskip("open3d")
    import rooms

    path = tmp_path_factory.mktemp("rooms") / "rooms.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "FRAGMENTS", 5)
        patch.setattr(rooms, "FRAMES", 4)
        rooms.main(["--output", str(path), "--rooms", "2", "--seed", "1234"])
    return path


def described(points: np.ndarray, normals: np.ndarray, radius: float, oriented: bool) -> torch.Tensor:
    index = ops.SearchIndex(torch.from_numpy(points.astype(np.float32)))
    given = torch.from_numpy(normals.astype(np.float32))
    rows = (
        ops.fpfh(index, given, 5 * radius, oriented=oriented),
        ops.signatures(index, given, 6 * radius, oriented=oriented),
    )
    return histograms(*rows)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3), oriented=st.booleans())
def test_descriptors_depend_neither_on_the_frame_nor_on_the_unit(seed, scale, oriented):
    """Nor, unless oriented, on the normals' signs. A few points in ties of the histograms' frames may differ."""
    rng = np.random.default_rng(seed)
    points = np.c_[rng.uniform(-1, 1, (400, 2)), np.zeros(400)]
    points[:, 2] = 0.3 * np.sin(3 * points[:, 0]) * np.cos(2 * points[:, 1] + seed)
    slope = np.stack([-0.9 * np.cos(3 * points[:, 0]), 0.6 * np.sin(2 * points[:, 1]), np.ones(400)], 1)
    normals = slope / np.linalg.norm(slope, axis=1)[:, None]
    turn = Rotation.random(random_state=seed).as_matrix()
    signs = 1 if oriented else rng.choice([-1, 1], (400, 1))
    network = shipped(oriented=oriented)
    with torch.no_grad():
        a = network(described(points, normals, 0.1, oriented))
        b = network(described(scale * points @ turn.T, signs * normals @ turn.T, 0.1 * scale, oriented))
    assert torch.allclose(a.norm(dim=1), torch.ones(400), atol=1e-5)
    assert ((a - b).norm(dim=1) < 0.02).float().mean() > 0.97


@pytest.mark.parametrize("oriented", [True, False])
def test_the_shipped_ones_find_more_true_matches_than_what_they_are_made_of(rooms_file, oriented):
    """In rooms that no training saw; two voxels, as the search counts them."""
    fragments, true = Fragments(rooms_file), np.zeros(3)
    for task in fragments.pairs("rooms", 5, np.random.default_rng(0)):
        clouds = [fragments.cloud(i, viewpoint=oriented) for i in (task.source, task.target)]
        voxel = working_voxel_size(*clouds)
        a, b = (Thinned.prepare(cloud, voxel, oriented=oriented) for cloud in clouds)
        truth = torch.from_numpy(localize(task.T_target_source, *clouds))
        moved = a.coarse.points.double() @ truth[:3, :3].T + truth[:3, 3]
        both = [x.description for x in (a, b)]
        with torch.no_grad():
            learned = [shipped(oriented=oriented)(histograms(d.fpfh, d.signatures)) for d in both]
        for k, rows in enumerate(([d.fpfh for d in both], [d.signatures @ both[1].axes for d in both], learned)):
            pairs = nearest(*rows)
            distances = (moved[pairs[:, 0]] - b.coarse.points[pairs[:, 1]]).norm(dim=1)
            true[k] += int((distances < 2 * voxel).sum())
    assert true[2] > 1.1 * true[:2].max(), true


def test_what_is_shipped_is_small_and_says_what_it_was_trained_on():
    files = sorted(SHIPPED.glob("*"))
    assert [f.name for f in files] == ["oriented.safetensors", "unoriented.safetensors"]
    assert sum(f.stat().st_size for f in files) < 500_000
    for oriented in (True, False):
        network = shipped(oriented=oriented)
        assert network.mean.shape == (385 if oriented else 225,)
        card = network.card
        assert {"data", "rooms", "seed", "steps", "licences", "figures"} <= card.keys()
        assert "rooms" in card["data"]


def test_training_writes_the_same_bytes_again_and_holds_a_room_out(rooms_file, tmp_path, capsys):
    for name in ("a", "b"):
        train_descriptors.main([str(rooms_file), "--output", str(tmp_path / name), "--steps", "4", "--seed", "3"])
    for kind in ("oriented", "unoriented"):
        first, again = ((tmp_path / name / f"{kind}.safetensors").read_bytes() for name in ("a", "b"))
        assert first == again
        network = read(tmp_path / "a" / f"{kind}.safetensors")
        assert network.card["held_out"] == 1 and network.card["rooms"] == 2
        assert json.dumps(network.card["figures"])
    assert "rooms held out" in capsys.readouterr().out


def test_training_brings_true_matches_nearer(rooms_file):
    """From the same start, a hundred steps raise the share of true matches among the mutual nearest."""
    pairs = train_descriptors.pairs_of(Fragments(rooms_file), 0, oriented=True)
    found = []
    for steps in (1, 100):
        network = train_descriptors.train(pairs, 32, steps, 0)
        found.append(sum(train_descriptors.true_matches(network, pair)[0] for pair in pairs[:4]))
    assert found[1] > 1.2 * found[0]


@pytest.mark.parametrize("arguments", [{"inputs": 0}, {"inputs": 5, "width": -1}, {"inputs": 5, "out": 0}])
def test_networks_without_a_width_are_refused(arguments):
    with pytest.raises(InputError):
        Descriptors(**arguments)


def test_the_table_has_a_line_for_each_set(rooms_file, capsys):
    compare_descriptors.main([str(rooms_file), "--pairs", "1"])
    out = capsys.readouterr().out
    assert "rooms: 1 pairs, seed 0, viewpoints False" in out
    assert all(out.count(f"| {name} |") == 1 for name in compare_descriptors.SETS)
