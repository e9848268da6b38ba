"""`register` as a sceptical user meets it: every kind of cloud, place, unit, start and method, and what comes back."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from registering import NEAR, any_pose, box, distance, move, pose, same_bytes, scaling, thin
from scipy.spatial import cKDTree

import dlc_reg
from dlc_reg.geometry import PointCloud
from dlc_reg.iterate import Status
from dlc_reg.registration import verification
from dlc_reg.registration.result import Verdict

REFINING = ("point_to_point", "point_to_plane", "symmetric", "generalized")


# --- the real pair, however it comes ---------------------------------------------------------------------------------


def test_real_pair_from_files(samples, bunny_pair):
    r = dlc_reg.register(samples["source"], str(samples["target"]))
    assert r.verdict == "aligned"
    assert distance(r.transformation, bunny_pair.T_target_source, bunny_pair.source) < 0.003
    assert r.settings["source_points"] == len(bunny_pair.source)


@pytest.mark.parametrize("seed", range(3))
def test_any_starting_pose(thin_source, thin_target, thin_truth, seed):
    start = any_pose(np.random.default_rng(seed))
    r = dlc_reg.register(move(start, thin_source), thin_target)
    assert r.verdict == "aligned"
    assert distance(r.transformation @ start, thin_truth, thin_source) < NEAR


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6])
def test_any_unit(thin_source, thin_target, thin_result, unit):
    r = dlc_reg.register(unit * thin_source, unit * thin_target)
    assert r.verdict == "aligned"
    assert (
        distance(scaling(1 / unit) @ r.transformation @ scaling(unit), thin_result.transformation, thin_source) < 1e-5
    )
    assert r.settings["voxel_size"] == pytest.approx(unit * thin_result.settings["voxel_size"], rel=1e-4)


@pytest.mark.parametrize(
    ("source_place", "target_place"),
    [((4e5, 5.8e6, 100), (4e5, 5.8e6, 100)), ((0, 0, 0), (-1e7, 1e7, 1e7)), ((1e6, -1e6, 1e6), (1e7, 2e6, -3e6))],
)
def test_far_from_the_origin_keeps_sub_millimetres(thin_source, thin_target, thin_result, source_place, target_place):
    """The pose is the one found at the origin, to a micrometre: float64 itself resolves 2 nm at 10^7 m."""
    r = dlc_reg.register(thin_source + source_place, thin_target + target_place)
    back = move(r.transformation, thin_source + source_place) - target_place
    assert np.abs(back - move(thin_result.transformation, thin_source)).max() < 1e-6
    assert r.verdict == "aligned"
    assert r.fitness == thin_result.fitness


@pytest.mark.parametrize("count", [100, 150, 250, 500])
def test_few_points_are_never_trusted_wrongly(bunny_pair, count):
    a, b = thin(bunny_pair.source, count), thin(bunny_pair.target, count, seed=1)
    r = dlc_reg.register(a, b)
    right = distance(r.transformation, bunny_pair.T_target_source, a) < 0.05
    assert right or r.verdict != "aligned"


@pytest.mark.parametrize("count", [1000, 8000])
def test_numbers_of_points(bunny_pair, count):
    a, b = thin(bunny_pair.source, count), thin(bunny_pair.target, count, seed=1)
    r = dlc_reg.register(a, b)
    assert r.verdict == "aligned"
    assert distance(r.transformation, bunny_pair.T_target_source, a) < NEAR


def test_more_points_than_are_refined_whole(bunny_pair, thin_truth, rng):
    """Above 300,000 the last level is thinned; the evidence is still of every point given."""
    many = np.concatenate([bunny_pair.source + 1e-4 * rng.normal(size=bunny_pair.source.shape) for _ in range(8)])
    r = dlc_reg.register(many, bunny_pair.target)
    assert len(many) > 300_000
    assert r.verdict == "aligned" and distance(r.transformation, thin_truth, bunny_pair.source) < NEAR
    assert r.fitness == len(r.correspondence_set) / len(many)


def test_clouds_of_very_different_density(bunny_pair, thin_truth, thin_target):
    r = dlc_reg.register(bunny_pair.source, thin_target)
    assert r.verdict == "aligned" and distance(r.transformation, thin_truth, bunny_pair.source) < NEAR


def test_duplicated_points(thin_source, thin_target, thin_truth):
    r = dlc_reg.register(
        np.concatenate([thin_source, thin_source]), np.concatenate([thin_target, thin_target[:500], thin_target])
    )
    assert r.verdict == "aligned" and distance(r.transformation, thin_truth, thin_source) < NEAR


def test_integer_coordinates(thin_source, thin_target, thin_truth):
    unit = 100_000  # hundredths of a millimetre
    r = dlc_reg.register(np.rint(unit * thin_source).astype(np.int64), np.rint(unit * thin_target).astype(np.int32))
    assert r.verdict == "aligned"
    assert distance(scaling(1 / unit) @ r.transformation @ scaling(unit), thin_truth, thin_source) < NEAR


@pytest.mark.parametrize("kind", ["list", "tensor", "grad", "fortran", "strided", "read-only", "PointCloud"])
def test_containers_hold_the_same_points(thin_source, thin_target, thin_result, kind):
    make = {
        "list": lambda p: p.tolist(),
        "tensor": torch.from_numpy,
        "grad": lambda p: torch.tensor(p, requires_grad=True),
        "fortran": np.asfortranarray,
        "strided": lambda p: np.repeat(p, 2, axis=0)[::2],
        "read-only": lambda p: np.frombuffer(p.tobytes()).reshape(-1, 3),
        "PointCloud": PointCloud.from_any,
    }[kind]
    same_bytes(dlc_reg.register(make(thin_source), make(thin_target)), thin_result)


@pytest.mark.parametrize("tensor", [False, True], ids=["legacy", "tensor"])
def test_open3d_clouds(thin_source, thin_target, thin_result, tensor):
    o3d = pytest.importorskip("open3d", reason="Open3D is not installed", exc_type=ImportError)

    def make(points):
        if tensor:
            return o3d.t.geometry.PointCloud(o3d.core.Tensor(points))
        return o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))

    same_bytes(dlc_reg.register(make(thin_source), make(thin_target)), thin_result)


def test_trimesh_meshes_are_sampled_with_the_seed():
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.util.concatenate(
        [trimesh.creation.box((1, 2, 3)), trimesh.creation.box((1, 1, 1)).apply_translation([1, 1.2, 0.7])]
    )
    moved, applied = mesh.copy(), pose([1, 1, 0], 100, [5, 1, 2])
    moved.apply_transform(applied)
    first, again, other = (dlc_reg.register(mesh, moved, seed=seed) for seed in (3, 3, 4))
    same_bytes(first, again)
    assert first.transformation.tobytes() != other.transformation.tobytes()
    for r in (first, other):
        assert r.verdict == "aligned" and distance(r.transformation, applied, mesh.vertices) < 1e-3


def test_arguments_are_left_alone(thin_source, thin_target):
    init = pose([0, 0, 1], 10)
    before = thin_source.copy(), thin_target.copy(), init.copy()
    r = dlc_reg.register(thin_source, thin_target, init=init, method="point_to_point")
    for now, then in zip((thin_source, thin_target, init), before, strict=True):
        np.testing.assert_array_equal(now, then)
    far = dlc_reg.register(thin_source, thin_target, init=pose([0, 0, 1], 10, [9, 9, 9]), method="point_to_point")
    far.transformation[0, 0] = r.transformation[0, 0] = 7
    np.testing.assert_array_equal(init, before[2])


# --- what comes back --------------------------------------------------------------------------------------------------


def test_evidence_agrees_with_an_independent_search(thin_source, thin_target, thin_result):
    limit = thin_result.settings["max_correspondence_distance"]
    gaps, nearest = cKDTree(thin_target).query(move(thin_result.transformation, thin_source))
    inside = gaps < limit
    assert thin_result.fitness == pytest.approx(inside.mean(), abs=2 / len(thin_source))
    assert thin_result.inlier_rmse == pytest.approx(np.sqrt((gaps[inside] ** 2).mean()), rel=1e-3)
    i, j = thin_result.correspondence_set.T
    assert len(i) == round(thin_result.fitness * len(thin_source)) and (np.diff(i) > 0).all()
    assert (nearest[i] == j).mean() > 0.999
    assert (
        np.linalg.norm(move(thin_result.transformation, thin_source[i]) - thin_target[j], axis=1) < limit * (1 + 1e-5)
    ).all()


def test_fields(thin_result, thin_truth, thin_source):
    assert thin_result.transformation.shape == (4, 4) and thin_result.transformation.dtype == np.float64
    rotation = thin_result.transformation[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert thin_result.transformation[3].tolist() == [0, 0, 0, 1]
    assert distance(thin_result.transformation, thin_truth, thin_source) < NEAR
    np.testing.assert_allclose(thin_result.information, thin_result.information.T)
    assert (np.linalg.eigvalsh(thin_result.information) > 0).all()
    sigma, share, stiffness = (
        thin_result.settings[name] for name in ("residual_sigma", "matches_per_target_point", "stiffness")
    )
    np.testing.assert_allclose(
        thin_result.covariance @ thin_result.information, sigma**2 * share / stiffness**2 * np.eye(6), atol=1e-12
    )
    assert (
        isinstance(thin_result.verdict, Verdict)
        and thin_result.verdict == "aligned"
        and f"{thin_result.verdict}" == "aligned"
    )
    assert isinstance(thin_result.status, Status) and " " in thin_result.status.value
    assert thin_result.verdict_reasons and all(isinstance(reason, str) for reason in thin_result.verdict_reasons)
    assert {"voxel_size", "spacing", "max_correspondence_distance", "feature_radius", "seed"} <= set(
        thin_result.settings
    )
    assert set(thin_result.timings) == {"read", "prepare", "search", "refine", "verify"}
    assert all(seconds >= 0 for seconds in thin_result.timings.values())
    assert thin_result.iterations == len(thin_result.history) - len(thin_result.settings["voxel_sizes"])


def test_covariance_is_of_the_size_of_the_error(thin_source, bunny_pair):
    """The reported sigma of the translation is no larger than the clouds' spacing and not absurdly small either."""
    r = dlc_reg.register(thin_source, thin(bunny_pair.target, 2000, seed=5))
    sigma = np.sqrt(np.diag(r.covariance)[3:])
    assert (sigma < r.settings["spacing"]).all() and (sigma > 1e-4 * r.settings["spacing"]).all()


def test_pickle_and_copies(thin_result):
    for other in (pickle.loads(pickle.dumps(thin_result)), copy.deepcopy(thin_result), copy.copy(thin_result)):
        same_bytes(other, thin_result)
        assert str(other) == str(thin_result)
        assert other.clouds is not None and len(other.clouds[0]) == len(thin_result.clouds[0])
    assert thin_result != copy.deepcopy(thin_result)  # a result is itself alone; above all, comparing does not raise


def test_printed_it_is_a_short_summary(thin_result):
    text = str(thin_result)
    assert text.startswith("aligned: ") and len(text.splitlines()) == 3 and len(text) < 400
    assert f"fitness {thin_result.fitness:.3f}" in text and "rotation 34." in text


def test_json_is_standard(thin_result):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    plain = json.loads(thin_result.to_json(), parse_constant=refuse)
    np.testing.assert_array_equal(plain["transformation"], thin_result.transformation)
    assert plain["verdict"] == "aligned" and plain["status"] == thin_result.status.value
    assert plain["settings"]["max_correspondence_distance"] == thin_result.settings["max_correspondence_distance"]
    assert plain["correspondences"] == len(thin_result.correspondence_set)


def test_json_of_a_failure_is_standard(thin_source, thin_target):
    r = dlc_reg.register(thin_source, thin_target + 100, method="point_to_plane")
    json.loads(r.to_json(), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


# --- methods and starts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "global", *REFINING])
def test_methods_from_a_near_start(thin_source, thin_target, thin_truth, method):
    start = pose([0, 0, 1], 5, [0.003, 0, 0]) @ thin_truth
    r = dlc_reg.register(thin_source, thin_target, method=method, init=start)
    assert r.verdict == "aligned" and distance(r.transformation, thin_truth, thin_source) < NEAR
    assert r.settings["method"] == method
    assert r.settings["objective"] == (method if method in REFINING else "point_to_plane")


@pytest.mark.parametrize("method", REFINING)
@pytest.mark.parametrize("seed", range(3))
def test_refining_from_anywhere_is_trusted_only_where_it_is_right(thin_source, thin_target, thin_truth, method, seed):
    rng = np.random.default_rng(seed)
    middle = move(thin_truth, thin_source).mean(0)
    turn = any_pose(rng, shift=0)
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    r = dlc_reg.register(thin_source, thin_target, method=method, init=turn @ thin_truth)
    assert r.verdict != "aligned" or distance(r.transformation, thin_truth, thin_source) < NEAR


@pytest.mark.parametrize("method", REFINING)
def test_without_a_start_refining_begins_at_the_identity(thin_source, thin_target, method):
    implied = dlc_reg.register(thin_source, thin_target, method=method)
    same_bytes(dlc_reg.register(thin_source, thin_target, method=method, init=np.eye(4)), implied)


def test_a_wrong_start_does_not_mislead_the_search(thin_source, thin_target, thin_truth):
    for method in ("auto", "global"):
        r = dlc_reg.register(thin_source, thin_target, method=method, init=pose([1, 0, 0], 170, [1, 1, 1]))
        assert r.verdict == "aligned" and distance(r.transformation, thin_truth, thin_source) < NEAR


def test_global_needs_no_start(thin_source, thin_target, thin_result):
    r = dlc_reg.register(thin_source, thin_target, method="global", init=pose([1, 0, 0], 170, [1, 1, 1]))
    same_bytes(r, dlc_reg.register(thin_source, thin_target, method="global"))


@pytest.mark.parametrize("turn", [0, 180])
def test_a_start_chooses_among_equivalent_poses(rng, turn):
    """A box looks the same after half a turn: the user's own start decides which of the two is meant."""
    size = (1.0, 2.0, 3.0)
    meant = pose([1, 2, 3], 50, [4, 5, 6]) @ pose([0, 0, 1], turn)
    a, b = box(rng, 1500, size), move(meant, box(rng, 1500, size))
    start = meant @ pose([1, 0, 1], 6, [0.02, 0.02, 0])
    r = dlc_reg.register(a, b, init=start)
    assert distance(r.transformation, meant, a) < 0.02


@pytest.mark.parametrize("method", REFINING)
def test_zero_correspondences_fail_with_the_reason_and_the_start(thin_source, thin_target, method):
    start = pose([1, 0, 0], 170, [1, 1, 1])
    r = dlc_reg.register(thin_source, thin_target, method=method, init=start)
    assert r.verdict == "failed" and r.status is Status.NO_CORRESPONDENCES
    assert r.transformation.tobytes() == start.tobytes() and r.transformation is not start
    assert (r.fitness, r.inlier_rmse, r.iterations, r.correspondence_set.shape) == (0.0, 0.0, 0, (0, 2))
    assert "no point of the source has a neighbour" in str(r)
    assert r.covariance is None


@pytest.mark.parametrize("kind", ["list", "tensor", "integers"])
def test_kinds_of_start(thin_source, thin_target, kind):
    make = {
        "list": lambda m: m.tolist(),
        "tensor": torch.from_numpy,
        "integers": lambda m: m.astype(int),
    }[kind]
    r = dlc_reg.register(thin_source, thin_target, init=make(np.eye(4)), method="point_to_plane")
    same_bytes(r, dlc_reg.register(thin_source, thin_target, init=np.eye(4), method="point_to_plane"))


# --- other real scans -------------------------------------------------------------------------------------------------


def test_lidar_scans_as_arrays(shared_data):
    scans = [np.fromfile(shared_data / f"kitti/00000{i}.bin", np.float32).reshape(-1, 4)[:, :3] for i in (0, 2)]
    expected = np.array(json.loads((shared_data / "kitti" / "T_scan0_scan.json").read_text())["000002.bin"])
    r = dlc_reg.register(scans[1], scans[0], source_viewpoint=[0, 0, 0], target_viewpoint=[0, 0, 0])
    difference = np.linalg.inv(expected) @ r.transformation
    assert r.verdict == "aligned"
    assert np.linalg.norm(difference[:3, 3]) < 0.1  # [m]; the truth is good to a few centimetres
    assert np.trace(difference[:3, :3]) > 1 + 2 * np.cos(np.radians(0.5))


@pytest.mark.parametrize("number", [1, 3, 8])
def test_synthetic_noisy_range_pairs(shared_data, number):
    folder = shared_data / "fgr" / f"{number:02d}"
    target, source = sorted(folder.glob("*.ply"))
    expected = np.loadtxt((folder / "gt.log").read_text().splitlines()[1:5])
    r = dlc_reg.register(source, target)
    assert r.verdict == "aligned"
    assert distance(r.transformation, expected, r.clouds[0].to_absolute()) < 0.01


def test_lidar_scans_of_a_car_from_csv(shared_data):
    r = dlc_reg.register(shared_data / "car" / "car_cloud401.csv", shared_data / "car" / "car_cloud400.csv")
    assert r.verdict == "aligned" and r.fitness > 0.85


# --- looking no further than is needed --------------------------------------------------------------------------------


def test_what_is_certain_at_once_ends_the_search(thin_result, thin_truth, thin_source):
    """By the quick search alone: no signature, no learned start."""
    assert thin_result.settings["evidence"]["quick"] and "learn" not in thin_result.timings
    assert distance(thin_result.transformation, thin_truth, thin_source) < NEAR


def test_what_is_not_certain_is_searched_by_all_means(thin_source, thin_target, thin_result, monkeypatch):
    monkeypatch.setattr(verification, "firmly", lambda evidence: False)
    r = dlc_reg.register(thin_source, thin_target)
    assert not r.settings["evidence"]["quick"] and r.timings["learn"] > 0
    assert r.settings["evidence"]["matches"] > thin_result.settings["evidence"]["matches"]
    assert distance(r.transformation, thin_result.transformation, thin_source) < 1e-3


def test_a_free_motion_is_never_certain(rng):
    """However well a plane lies on a plane, it is not for that the only pose."""
    flat = np.c_[rng.uniform(size=(1500, 2)), np.zeros(1500)]
    assert not dlc_reg.register(flat, flat[::2]).settings["evidence"]["quick"]


@pytest.mark.parametrize("method", ["auto", "learned"])
def test_no_solver_need_be_exact(thin_source, thin_target, thin_truth, monkeypatch, method):
    """LAPACK of other builds of torch leaves rounding in the last row of an inverse (found with torch 2.4)."""
    exact = torch.linalg.inv
    monkeypatch.setattr(torch.linalg, "inv", lambda matrix: exact(matrix) + 1e-17)
    monkeypatch.setattr(verification, "firmly", lambda evidence: False)
    r = dlc_reg.register(thin_source, thin_target, method=method)
    assert distance(r.transformation, thin_truth, thin_source) < NEAR
