"""Protocols against the papers' definitions worked by hand, SciPy's Euler angles and linear programming."""

from __future__ import annotations

import pickle
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.stats import kstest
from torch.utils.data import DataLoader

from dlc_reg.errors import InputError
from dlc_reg.protocols import PROTOCOLS, Pair, PairDataset, Protocol, Shapes, collate, make_pair, protocol

PLAIN = ["dcp", "dcp-resampled", "prnet", "prnet-independent", "full-0-180"]
NAMES = [*PROTOCOLS, "full-0-180", "full-150-180-noise"]


def make_shapes(count: int = 4, points: int = 2048) -> Shapes:
    """Points all over a ball, so that no two are alike; normals point outwards."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(count, points, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    radii = rng.uniform(0.3, 1, (count, points, 1)).astype(np.float32)
    labels = np.array([f"kind_{i % 4}" for i in range(count)])
    names = np.array([f"shape_{i}" for i in range(count)])
    split = np.array(["train", "test"])[np.arange(count) // 4 % 2]
    return Shapes(directions * radii, directions, labels, names, split)


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return make_shapes()


def moved(pair: Pair) -> np.ndarray:
    """The source under the truth."""
    T = pair.truth.double().numpy()
    return pair.source.double().numpy() @ T[:3, :3].T + T[:3, 3]


def test_sizes_are_the_papers(shapes):
    expected = {"dcp": 1024, "prnet": 768, "rpmnet": 717, "modelonet": 512, "full": 1024}
    for name in NAMES:
        pair = PairDataset(shapes, name)[0]
        size = expected[name.split("-")[0]]
        assert pair.source.shape == pair.target.shape == (size, 3), name
        assert {t.dtype for t in (pair.source, pair.target, pair.truth)} == {torch.float32}
        assert protocol(name).count == size


@pytest.mark.parametrize(
    "name",
    ["DCP", "dcp ", "dcp-noise-noise", "rpmnet-noise", "full", "full-30", "full-40-30", "full-0-181", "full-٣-9"],
)
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match=r"dcp, dcp-resampled, prnet, .*modelonet-independent, or full-LO-HI"):
        protocol(name)


@pytest.mark.parametrize("name", ["dcp", "prnet"])
def test_the_papers_clouds_are_the_same_points_shuffled(shapes, name):
    full = replace(protocol(name), crop="none", keep=1.0)
    pair = PairDataset(shapes, full)[1]
    distance, match = cKDTree(pair.target.numpy()).query(moved(pair))
    assert distance.max() < 1e-6
    assert len(set(match.tolist())) == 1024
    assert (match == np.arange(1024)).mean() < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_points_says_nothing_of_the_correspondence(shapes, name):
    """Rows that belong together by chance are no nearer than any two rows."""
    data = PairDataset(shapes, name, seed=1, length=40)
    as_given, shifted = [], []
    for pair in (data[i] for i in range(len(data))):
        source, target = moved(pair), pair.target.double().numpy()
        as_given.append(np.linalg.norm(source - target, axis=1).mean())
        shifted += [np.linalg.norm(source - np.roll(target, k, axis=0), axis=1).mean() for k in (101, 203, 307)]
    assert np.mean(as_given) == pytest.approx(np.mean(shifted), rel=0.01)


@pytest.mark.parametrize("name", [*PLAIN, "rpmnet", "rpmnet-independent", "modelonet-independent"])
def test_independent_clouds_have_no_point_in_common(shapes, name):
    data = PairDataset(shapes, replace(protocol(name), noise_sigma=0.0), seed=2)
    common = [(cKDTree(p.target.numpy()).query(moved(p))[0] < 1e-5).mean() for p in (data[0], data[1], data[2])]
    if protocol(name).independent:
        assert max(common) == 0
    else:
        assert min(common) > {"dcp": 0.999, "prnet": 0.3, "rpmnet": 0.1}[name]


def test_few_points_are_drawn_twice_and_repeated():
    few = make_shapes(points=600)
    pair = PairDataset(few, "dcp-resampled")[0]
    assert len(pair.source) == len(pair.target) == 1024
    for cloud in (pair.source, pair.target):  # all points appear, as with RPM-Net's resampling
        assert len(np.unique(cloud.numpy(), axis=0)) == 600


def test_euler_rotations_are_those_of_scipy_uniform_to_45_degrees():
    rng = np.random.default_rng(3)
    points = np.zeros((8, 3))
    draws = np.stack([make_pair(points, Protocol("p", points=4), rng)[2] for _ in range(2000)])
    z, y, x = Rotation.from_matrix(draws[:, :3, :3]).as_euler("zyx", degrees=True).T  # DCP's convention
    for angle in (x, y, z):
        assert kstest(angle, "uniform", (0, 45)).pvalue > 1e-3
    for axis in range(3):
        assert kstest(draws[:, axis, 3], "uniform", (-0.5, 1)).pvalue > 1e-3


def test_rpmnet_moves_the_source():
    """Its truth is the inverse of the drawn motion, so the angles of the inverse are the positive ones."""
    data = PairDataset(make_shapes(), "rpmnet", length=50)
    truths = torch.stack([data[i].truth for i in range(50)]).double().numpy()
    angles = Rotation.from_matrix(np.linalg.inv(truths)[:, :3, :3]).as_euler("zyx", degrees=True)
    assert angles.min() > -1e-3 and angles.max() < 45 + 1e-3
    assert np.abs(np.linalg.inv(truths)[:, :3, 3]).max() <= 0.5 + 1e-6


def test_full_rotations_have_a_uniform_axis_and_angle():
    rng = np.random.default_rng(4)
    points = np.zeros((8, 3))
    chosen = replace(protocol("full-30-60"), points=4)
    turns = Rotation.from_matrix([make_pair(points, chosen, rng)[2][:3, :3] for _ in range(2000)]).as_rotvec(True)
    angle = np.linalg.norm(turns, axis=1)
    assert kstest(angle, "uniform", (30, 30)).pvalue > 1e-3
    for axis in range(3):  # a coordinate of a uniform direction is uniform (Archimedes)
        assert kstest(turns[:, axis] / angle, "uniform", (-1, 2)).pvalue > 1e-3


def separable(inside: np.ndarray, outside: np.ndarray) -> bool:
    """Whether a plane divides the two sets."""
    rows = np.concatenate([np.c_[-inside, np.ones(len(inside))], np.c_[outside, -np.ones(len(outside))]])
    return linprog(np.zeros(4), A_ub=rows, b_ub=-np.ones(len(rows)), bounds=(None, None)).status == 0


@pytest.mark.parametrize(("name", "kept"), [("rpmnet", (716, 717)), ("modelonet", (450, 574))])
def test_half_spaces(shapes, name, kept):
    """Of the same points each cloud is what lies beyond a plane of its own, through the mean for modelonet."""
    still = replace(
        protocol(name), points=2000, noise_sigma=0.0, max_angle_deg=0.0, max_translation=0.0
    )  # none thinned
    whole = shapes.points[0].astype(np.float64)[:1024]
    source, target, _ = make_pair(whole, still, np.random.default_rng(5))
    tree = cKDTree(whole)
    rows = [np.unique(tree.query(cloud)[1]) for cloud in (source, target)]
    for chosen in rows:
        assert kept[0] <= len(chosen) <= kept[1]
        assert separable(whole[chosen], np.delete(whole, chosen, axis=0))
    common = len(np.intersect1d(*rows)) / len(rows[0])
    assert common < 0.97  # not the same plane


def test_prnets_far_point_is_common_in_the_frame_after_the_motion(shapes):
    data = PairDataset(shapes, "prnet", length=30)
    signs = []
    for i in range(30):
        pair = data[i]
        inverse = np.linalg.inv(pair.truth.double().numpy())
        whole = {"source": data.clean_target(i).double().numpy() @ inverse[:3, :3].T + inverse[:3, 3]}
        whole["target"] = data.clean_target(i).double().numpy()
        height = {key: getattr(pair, key).double().numpy().sum(1) for key in whole}  # along (1, 1, 1)
        means = {key: height[key].mean() - cloud.sum(1).mean() for key, cloud in whole.items()}
        assert np.sign(means["source"]) == np.sign(means["target"])
        signs.append(np.sign(means["source"]))
        for key in whole:  # three quarters are kept: the lowest of them stands at the quartile
            edge = np.quantile(whole[key].sum(1) * signs[-1], 0.25)
            assert (height[key] * signs[-1]).min() == pytest.approx(edge, abs=0.15)
    assert set(signs) == {-1.0, 1.0}


def test_independent_far_points_differ_and_point_everywhere(shapes):
    data = PairDataset(shapes, "prnet-independent", length=200)
    directions = []
    for i in range(200):
        pair = data[i]
        clean = data.clean_target(i).double().numpy().mean(0)
        centres = moved(pair).mean(0) - clean, pair.target.double().numpy().mean(0) - clean
        directions.append([c / np.linalg.norm(c) for c in centres])
    source, target = np.swapaxes(directions, 0, 1)
    assert kstest(np.sum(source * target, axis=1), "uniform", (-1, 2)).pvalue > 1e-3


def test_jitter_has_the_papers_size():
    grid = np.stack(np.meshgrid(*3 * [np.linspace(-0.5, 0.5, 8)]), -1).reshape(-1, 3)
    still = Protocol("p", points=len(grid), noise_sigma=0.02, max_angle_deg=0.0, max_translation=0.0)
    residuals = []
    for seed in range(20):
        source, target, _ = make_pair(grid, still, np.random.default_rng(seed))
        found = [cloud - grid[cKDTree(grid).query(cloud)[1]] for cloud in (source, target)]
        assert not np.isclose(np.sort(found[0][:, 0]), np.sort(found[1][:, 0])).all()  # each has its own
        residuals += found
    flat = np.concatenate(residuals).ravel()
    assert np.abs(flat).max() == pytest.approx(0.05, abs=1e-12)  # clipped
    assert flat.std() == pytest.approx(0.02, rel=0.02)
    assert {p.noise_sigma for p in PROTOCOLS.values()} == {0.0, 0.01}
    assert all(p.noise_sigma for n, p in PROTOCOLS.items() if re.search("noise|rpm|lo", n))


def test_items_repeat_and_seeds_differ(shapes):
    def bytes_of(pair: Pair) -> tuple[bytes, ...]:
        return tuple(t.numpy().tobytes() for t in (pair.source, pair.target, pair.truth))

    data = PairDataset(shapes, "rpmnet", seed=7)
    again = pickle.loads(pickle.dumps(data))
    assert [bytes_of(data[i]) for i in range(4)] == [bytes_of(again[i]) for i in (0, 1, 2, 3)]
    everything = {bytes_of(PairDataset(shapes, "rpmnet", seed=s)[i]) for s in (7, 8) for i in range(4)}
    assert len(everything) == 8
    assert [data[i].index for i in range(4)] == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        data[4]


def test_a_length_goes_round_the_shapes(shapes):
    indices = [PairDataset(shapes, "dcp", seed=2, length=10)[i].index for i in range(10)]
    assert sorted(indices[:4]) == sorted(indices[4:8]) == [0, 1, 2, 3]
    assert indices[:4] == indices[4:8] != [0, 1, 2, 3]
    assert len(PairDataset(shapes, "dcp", length=3)) == 3


def test_workers_give_the_same_batches(shapes):
    data = PairDataset(shapes, "modelonet-independent", seed=1)
    alone, two = (list(DataLoader(data, batch_size=2, collate_fn=collate, num_workers=workers)) for workers in (0, 2))
    assert [len(b) for b in two] == [2, 2]
    for a, b in zip(alone, two, strict=True):
        assert torch.equal(a.source, b.source) and torch.equal(a.truth, b.truth)
        assert a.index.tolist() == b.index.tolist() and b.source_mask is None


def test_collate_pads_and_masks():
    sizes = [(5, 3), (2, 4)]
    pairs = [Pair(torch.ones(n, 3), torch.ones(m, 3), torch.eye(4), i) for i, (n, m) in enumerate(sizes)]
    batch = collate(pairs)
    assert batch.source_mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert batch.target_mask.sum(1).tolist() == [3, 4]
    assert batch.source[1, 2:].abs().sum() == 0
    meta = batch.to("meta")
    assert {t.device.type for t in vars(meta).values()} == {"meta"}
    assert collate(pairs[:1]).to("meta").source_mask is None


def test_the_transform_acts_on_the_shape_before_its_pair_is_made(shapes):
    seen = []

    def squash(points, normals, rng):
        seen.append((points.shape, normals.shape, rng.random()))
        return points * np.float32([1, 1, 0])

    pair = PairDataset(shapes, "dcp", transform=squash)[2]
    assert np.linalg.matrix_rank(pair.target.numpy() - pair.target.numpy().mean(0), tol=1e-4) == 2
    assert cKDTree(pair.target.numpy()).query(moved(pair))[0].max() < 1e-6
    PairDataset(shapes, "dcp", transform=squash)[2]
    assert seen[0] == seen[1] and seen[0][:2] == ((2048, 3), (2048, 3))


@pytest.mark.parametrize("name", ["dcp", "rpmnet", "full-0-180"])
def test_the_clean_target_lies_in_the_targets_frame(shapes, name):
    data = PairDataset(shapes, replace(protocol(name), noise_sigma=0.0), seed=3)
    pair, clean = data[1], cKDTree(data.clean_target(1).numpy())
    assert clean.query(pair.target.numpy())[0].max() < 1e-6
    assert clean.query(moved(pair))[0].max() < 1e-6


def test_an_item_is_quick(shapes):
    data = PairDataset(shapes, "rpmnet-independent")
    times = []
    for i in range(12):
        begin = time.perf_counter()
        data[i % 4]
        times.append(time.perf_counter() - begin)
    assert min(times) < 3e-3


def test_shapes_are_read_back(tmp_path):
    shapes = make_shapes(8, 64)
    path = tmp_path / "shapes.npz"
    columns = {"category": shapes.category, "name": shapes.name, "split": shapes.split, "licence": shapes.name}
    np.savez(path, points=shapes.points, normals=shapes.normals, **columns)
    read = Shapes.load(path)
    assert len(read) == 8 and read.checksum == shapes.checksum
    np.savez(
        path, points=shapes.points.astype(np.float16), normals=np.round(127 * shapes.normals).astype(np.int8), **columns
    )
    coarse = Shapes.load(path)
    assert coarse.points.dtype == coarse.normals.dtype == np.float32
    assert np.abs(coarse.normals - shapes.normals).max() < 0.01
    assert np.linalg.norm(coarse.normals, axis=-1) == pytest.approx(1, abs=1e-6)
    assert coarse.checksum != shapes.checksum
    np.savez(path, points=shapes.points, **columns)
    assert Shapes.load(path).normals is None


def test_the_checksum_covers_every_column_and_no_storage():
    shapes = make_shapes(8, 16)
    wide = replace(shapes, name=shapes.name.astype("U99"), points=np.asfortranarray(shapes.points))
    assert wide.checksum == shapes.checksum
    for key in ("points", "normals", "category", "name", "split"):
        assert replace(shapes, **{key: getattr(shapes, key)[::-1]}).checksum != shapes.checksum
    assert replace(shapes, normals=None).checksum != shapes.checksum


def test_selection():
    shapes = make_shapes(16, 8)
    assert shapes.categories("seen") == ["kind_0", "kind_1"] and shapes.categories("unseen") == ["kind_2", "kind_3"]
    chosen = shapes.select(split="test", categories="unseen")
    assert chosen.name.tolist() == ["shape_6", "shape_7", "shape_14", "shape_15"]
    assert np.array_equal(chosen.points, shapes.points[[6, 7, 14, 15]])
    assert set(shapes.select(categories=["kind_3"]).category) == {"kind_3"}
    for bad in ({"split": "val"}, {"categories": ["kind_9"]}, {"categories": "kind_1"}):
        with pytest.raises(InputError):
            shapes.select(**bad)


def test_bad_files_are_refused(tmp_path):
    shapes = make_shapes(2, 8)
    good = {"points": shapes.points, "category": shapes.category, "name": shapes.name, "split": shapes.split}
    bad = {
        "does not exist": None,
        "without split": {k: v for k, v in good.items() if k != "split"},
        "radius 2": {**good, "points": 2 * shapes.points / np.abs(shapes.points).max()},
        "radius nan": {**good, "points": np.full_like(shapes.points, np.nan)},
        r"\(S, P, 3\)": {**good, "points": shapes.points[..., :2]},
        "split: got dev": {**good, "split": np.array(["dev", "train"])},
        "category: got": {**good, "category": shapes.category[:1]},
        "a float type": {**good, "points": shapes.points.astype(int)},
        "normals: got shape": {**good, "normals": shapes.normals[:, :4]},
        r"normals: got shape \(\)": {**good, "normals": np.array(1.0)},
        "normals: got int64": {**good, "normals": shapes.normals.astype(int)},
        "normals: got <U": {**good, "normals": shapes.normals.astype(str)},
        "normals: got NaN": {**good, "normals": np.where(shapes.normals > 0, shapes.normals, np.nan)},
        "plain arrays": {**good, "name": np.array([{"an": "object"}, None], object)},
    }
    for i, (message, content) in enumerate(bad.items()):
        path = tmp_path / f"{i}.npz"
        if content is not None:
            np.savez(path, **content)
        with pytest.raises(InputError, match=message):
            Shapes.load(path)
    np.savez_compressed(tmp_path / "whole.npz", **good)
    whole = (tmp_path / "whole.npz").read_bytes()
    begin = whole.index(b"points.npy") + len(b"points.npy") + 20  # past the zip64 field: in the deflated data
    (tmp_path / "spoilt.npz").write_bytes(whole[:begin] + b"\xff" * 40 + whole[begin + 40 :])
    with pytest.raises(InputError, match="npz of plain arrays"):
        Shapes.load(tmp_path / "spoilt.npz")
    (tmp_path / "text.npz").write_text("points")
    with pytest.raises(InputError, match="npz of plain arrays"):
        Shapes.load(tmp_path / "text.npz")


def test_bad_arguments_are_refused(shapes):
    for bad in ({"seed": -1}, {"length": 0}):
        with pytest.raises(InputError, match="seed, length"):
            PairDataset(shapes, "dcp", **bad)
    with pytest.raises(InputError, match="keep"):
        Protocol("p", keep=0.0)
    with pytest.raises(InputError, match="rotation_range"):
        Protocol("p", rotation_range=(10.0, 5.0))
