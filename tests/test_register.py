"""`register` as a sceptical user meets it: every kind of cloud, place, unit, option and mistake."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from registering import any_pose, box, distance, move, pose, scaling, thin
from scipy.spatial import cKDTree

import dlc_reg
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.iterate import Status
from dlc_reg.registration.result import Verdict

REFINING = ("point_to_point", "point_to_plane", "symmetric", "generalized")
NEAR = 0.01  # of the extent: what thinned clouds allow; the truth itself is good to 0.0025
NUMBERS = ("transformation", "fitness", "inlier_rmse", "correspondence_set", "information", "covariance")


@pytest.fixture(scope="module")
def source(bunny_pair):
    return thin(bunny_pair.source, 2000)


@pytest.fixture(scope="module")
def target(bunny_pair):
    return thin(bunny_pair.target, 2000)


@pytest.fixture(scope="module")
def truth(bunny_pair):
    return bunny_pair.T_target_source


@pytest.fixture(scope="module")
def result(source, target):
    return dlc_reg.register(source, target)


def same_bytes(a, b):
    for name in NUMBERS:
        assert np.asarray(getattr(a, name)).tobytes() == np.asarray(getattr(b, name)).tobytes(), name
    assert a.verdict is b.verdict and a.verdict_reasons == b.verdict_reasons
    assert a.history == b.history and a.status is b.status


# --- the real pair, however it comes ---------------------------------------------------------------------------------


def test_real_pair_from_files(samples, bunny_pair):
    r = dlc_reg.register(samples["source"], str(samples["target"]))
    assert r.verdict == "aligned"
    assert distance(r.transformation, bunny_pair.T_target_source, bunny_pair.source) < 0.003
    assert r.settings["source_points"] == len(bunny_pair.source)


@pytest.mark.parametrize("seed", range(3))
def test_any_starting_pose(source, target, truth, seed):
    start = any_pose(np.random.default_rng(seed))
    r = dlc_reg.register(move(start, source), target)
    assert r.verdict == "aligned"
    assert distance(r.transformation @ start, truth, source) < NEAR


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6])
def test_any_unit(source, target, result, unit):
    r = dlc_reg.register(unit * source, unit * target)
    assert r.verdict == "aligned"
    assert distance(scaling(1 / unit) @ r.transformation @ scaling(unit), result.transformation, source) < 1e-5
    assert r.settings["voxel_size"] == pytest.approx(unit * result.settings["voxel_size"], rel=1e-4)


@pytest.mark.parametrize(
    ("source_place", "target_place"),
    [((4e5, 5.8e6, 100), (4e5, 5.8e6, 100)), ((0, 0, 0), (-1e7, 1e7, 1e7)), ((1e6, -1e6, 1e6), (1e7, 2e6, -3e6))],
)
def test_far_from_the_origin_keeps_sub_millimetres(source, target, result, source_place, target_place):
    """The pose is the one found at the origin, to a micrometre: float64 itself resolves 2 nm at 10^7 m."""
    r = dlc_reg.register(source + source_place, target + target_place)
    back = move(r.transformation, source + source_place) - target_place
    assert np.abs(back - move(result.transformation, source)).max() < 1e-6
    assert r.verdict == "aligned"
    assert r.fitness == result.fitness


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


def test_more_points_than_are_refined_whole(bunny_pair, truth, rng):
    """Above 300,000 the last level is thinned; the evidence is still of every point given."""
    many = np.concatenate([bunny_pair.source + 1e-4 * rng.normal(size=bunny_pair.source.shape) for _ in range(8)])
    r = dlc_reg.register(many, bunny_pair.target)
    assert len(many) > 300_000
    assert r.verdict == "aligned" and distance(r.transformation, truth, bunny_pair.source) < NEAR
    assert r.fitness == len(r.correspondence_set) / len(many)


def test_clouds_of_very_different_density(bunny_pair, truth, target):
    r = dlc_reg.register(bunny_pair.source, target)
    assert r.verdict == "aligned" and distance(r.transformation, truth, bunny_pair.source) < NEAR


def test_duplicated_points(source, target, truth):
    r = dlc_reg.register(np.concatenate([source, source]), np.concatenate([target, target[:500], target]))
    assert r.verdict == "aligned" and distance(r.transformation, truth, source) < NEAR


def test_integer_coordinates(source, target, truth):
    unit = 100_000  # hundredths of a millimetre
    r = dlc_reg.register(np.rint(unit * source).astype(np.int64), np.rint(unit * target).astype(np.int32))
    assert r.verdict == "aligned"
    assert distance(scaling(1 / unit) @ r.transformation @ scaling(unit), truth, source) < NEAR


@pytest.mark.parametrize("kind", ["list", "tensor", "grad", "fortran", "strided", "read-only", "PointCloud"])
def test_containers_hold_the_same_points(source, target, result, kind):
    make = {
        "list": lambda p: p.tolist(),
        "tensor": torch.from_numpy,
        "grad": lambda p: torch.tensor(p, requires_grad=True),
        "fortran": np.asfortranarray,
        "strided": lambda p: np.repeat(p, 2, axis=0)[::2],
        "read-only": lambda p: np.frombuffer(p.tobytes()).reshape(-1, 3),
        "PointCloud": PointCloud.from_any,
    }[kind]
    same_bytes(dlc_reg.register(make(source), make(target)), result)


@pytest.mark.parametrize("tensor", [False, True], ids=["legacy", "tensor"])
def test_open3d_clouds(source, target, result, tensor):
    o3d = pytest.importorskip("open3d", reason="Open3D is not installed", exc_type=ImportError)

    def make(points):
        if tensor:
            return o3d.t.geometry.PointCloud(o3d.core.Tensor(points))
        return o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))

    same_bytes(dlc_reg.register(make(source), make(target)), result)


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


def test_arguments_are_left_alone(source, target):
    init = pose([0, 0, 1], 10)
    before = source.copy(), target.copy(), init.copy()
    r = dlc_reg.register(source, target, init=init, method="point_to_point")
    for now, then in zip((source, target, init), before, strict=True):
        np.testing.assert_array_equal(now, then)
    far = dlc_reg.register(source, target, init=pose([0, 0, 1], 10, [9, 9, 9]), method="point_to_point")
    far.transformation[0, 0] = r.transformation[0, 0] = 7
    np.testing.assert_array_equal(init, before[2])


# --- what is not a number ---------------------------------------------------------------------------------------------


def test_non_finite_points_are_an_error(source, target):
    broken = source.copy()
    broken[[5, 9], [0, 2]] = np.nan, -np.inf
    with pytest.raises(InputError, match=r"^source: got 2 of 2000 points with NaN.*row 5.*remove_non_finite=True"):
        dlc_reg.register(broken, target)
    with pytest.raises(InputError, match=r"^target: got 2 of 2000"):
        dlc_reg.register(target, broken)


def test_non_finite_points_are_dropped_on_request(source, target):
    broken, hole = source.copy(), target.copy()
    broken[::7, 1] = np.nan
    hole[3] = np.inf
    r = dlc_reg.register(broken, hole, remove_non_finite=True)
    clean = dlc_reg.register(np.delete(source, np.s_[::7], axis=0), np.delete(target, 3, axis=0))
    assert r.transformation.tobytes() == clean.transformation.tobytes()
    assert (r.settings["source_dropped"], r.settings["target_dropped"]) == (len(source[::7]), 1)
    # rows are those of the clouds as they were given
    i, j = r.correspondence_set.T
    assert np.isfinite(broken[i]).all() and np.isfinite(hole[j]).all()
    gaps = np.linalg.norm(move(r.transformation, broken[i]) - hole[j], axis=1)
    assert np.sqrt((gaps**2).mean()) == pytest.approx(r.inlier_rmse, rel=1e-5)


# --- what comes back --------------------------------------------------------------------------------------------------


def test_evidence_agrees_with_an_independent_search(source, target, result):
    limit = result.settings["max_correspondence_distance"]
    gaps, nearest = cKDTree(target).query(move(result.transformation, source))
    inside = gaps < limit
    assert result.fitness == pytest.approx(inside.mean(), abs=2 / len(source))
    assert result.inlier_rmse == pytest.approx(np.sqrt((gaps[inside] ** 2).mean()), rel=1e-3)
    i, j = result.correspondence_set.T
    assert len(i) == round(result.fitness * len(source)) and (np.diff(i) > 0).all()
    assert (nearest[i] == j).mean() > 0.999
    assert (np.linalg.norm(move(result.transformation, source[i]) - target[j], axis=1) < limit * (1 + 1e-5)).all()


def test_fields(result, truth, source):
    assert result.transformation.shape == (4, 4) and result.transformation.dtype == np.float64
    rotation = result.transformation[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert result.transformation[3].tolist() == [0, 0, 0, 1]
    assert distance(result.transformation, truth, source) < NEAR
    np.testing.assert_allclose(result.information, result.information.T)
    assert (np.linalg.eigvalsh(result.information) > 0).all()
    np.testing.assert_allclose(
        result.covariance @ result.information, result.settings["residual_sigma"] ** 2 * np.eye(6), atol=1e-12
    )
    assert isinstance(result.verdict, Verdict) and result.verdict == "aligned" and f"{result.verdict}" == "aligned"
    assert isinstance(result.status, Status) and " " in result.status.value
    assert result.verdict_reasons and all(isinstance(reason, str) for reason in result.verdict_reasons)
    assert {"voxel_size", "spacing", "max_correspondence_distance", "feature_radius", "seed"} <= set(result.settings)
    assert set(result.timings) == {"read", "prepare", "search", "refine", "verify"}
    assert all(seconds >= 0 for seconds in result.timings.values())
    assert result.iterations == len(result.history) - len(result.settings["voxel_sizes"])


def test_covariance_is_of_the_size_of_the_error(source, bunny_pair):
    """The reported sigma of the translation is no larger than the clouds' spacing and not absurdly small either."""
    r = dlc_reg.register(source, thin(bunny_pair.target, 2000, seed=5))
    sigma = np.sqrt(np.diag(r.covariance)[3:])
    assert (sigma < r.settings["spacing"]).all() and (sigma > 1e-4 * r.settings["spacing"]).all()


def test_pickle_and_copies(result):
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        same_bytes(other, result)
        assert str(other) == str(result)
        assert other.clouds is not None and len(other.clouds[0]) == len(result.clouds[0])
    assert result != copy.deepcopy(result)  # a result is itself alone; above all, comparing does not raise


def test_printed_it_is_a_short_summary(result):
    text = str(result)
    assert text.startswith("aligned: ") and len(text.splitlines()) == 3 and len(text) < 400
    assert f"fitness {result.fitness:.3f}" in text and "rotation 34." in text


def test_json_is_standard(result):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    plain = json.loads(result.to_json(), parse_constant=refuse)
    np.testing.assert_array_equal(plain["transformation"], result.transformation)
    assert plain["verdict"] == "aligned" and plain["status"] == result.status.value
    assert plain["settings"]["max_correspondence_distance"] == result.settings["max_correspondence_distance"]
    assert plain["correspondences"] == len(result.correspondence_set)


def test_json_of_a_failure_is_standard(source, target):
    r = dlc_reg.register(source, target + 100, method="point_to_plane")
    json.loads(r.to_json(), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


# --- the same input gives the same bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 2, 3, None])
@pytest.mark.parametrize("method", ["auto", "symmetric"])
def test_same_bytes_whatever_the_number_of_threads(source, target, result, num_threads, method):
    options = {"method": method, "init": None if method == "auto" else pose([0, 1, 0], 30)}
    expected = result if method == "auto" else dlc_reg.register(source, target, num_threads=1, **options)
    same_bytes(dlc_reg.register(source, target, num_threads=num_threads, **options), expected)


def test_same_bytes_with_scaling(source, target):
    same_bytes(*(dlc_reg.register(source, target, with_scaling=True, num_threads=n) for n in (1, 3)))


def test_no_global_state_is_read_or_written(source, target, result):
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # noqa: NPY002
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            same_bytes(dlc_reg.register(source, target), result)
        with torch.enable_grad():
            same_bytes(dlc_reg.register(source, target), result)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_torchs_own_threads_do_not_matter(source, target, result):
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            same_bytes(dlc_reg.register(source, target), result)
    finally:
        torch.set_num_threads(before)


def test_calls_side_by_side(source, target, result):
    with ThreadPoolExecutor(3) as pool:
        for r in pool.map(lambda _: dlc_reg.register(source, target), range(3)):
            same_bytes(r, result)


def _child(source, target, queue):
    queue.put(dlc_reg.register(source, target, num_threads=2).transformation)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_in_a_forked_child(source, target, result):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(source, target, queue), daemon=True)
    child.start()
    try:
        assert queue.get(timeout=60).tobytes() == result.transformation.tobytes()
    finally:
        child.kill()
        child.join()


# --- methods and starts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "global", *REFINING])
def test_methods_from_a_near_start(source, target, truth, method):
    start = pose([0, 0, 1], 5, [0.003, 0, 0]) @ truth
    r = dlc_reg.register(source, target, method=method, init=start)
    assert r.verdict == "aligned" and distance(r.transformation, truth, source) < NEAR
    assert r.settings["method"] == method
    assert r.settings["objective"] == (method if method in REFINING else "point_to_plane")


@pytest.mark.parametrize("method", REFINING)
@pytest.mark.parametrize("seed", range(3))
def test_refining_from_anywhere_is_trusted_only_where_it_is_right(source, target, truth, method, seed):
    rng = np.random.default_rng(seed)
    middle = move(truth, source).mean(0)
    turn = any_pose(rng, shift=0)
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    r = dlc_reg.register(source, target, method=method, init=turn @ truth)
    assert r.verdict != "aligned" or distance(r.transformation, truth, source) < NEAR


@pytest.mark.parametrize("method", REFINING)
def test_without_a_start_refining_begins_at_the_identity(source, target, method):
    implied = dlc_reg.register(source, target, method=method)
    same_bytes(dlc_reg.register(source, target, method=method, init=np.eye(4)), implied)


def test_a_wrong_start_does_not_mislead_the_search(source, target, truth):
    for method in ("auto", "global"):
        r = dlc_reg.register(source, target, method=method, init=pose([1, 0, 0], 170, [1, 1, 1]))
        assert r.verdict == "aligned" and distance(r.transformation, truth, source) < NEAR


def test_global_needs_no_start(source, target, result):
    r = dlc_reg.register(source, target, method="global", init=pose([1, 0, 0], 170, [1, 1, 1]))
    same_bytes(r, dlc_reg.register(source, target, method="global"))


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
def test_zero_correspondences_fail_with_the_reason_and_the_start(source, target, method):
    start = pose([1, 0, 0], 170, [1, 1, 1])
    r = dlc_reg.register(source, target, method=method, init=start)
    assert r.verdict == "failed" and r.status is Status.NO_CORRESPONDENCES
    assert r.transformation.tobytes() == start.tobytes() and r.transformation is not start
    assert (r.fitness, r.inlier_rmse, r.iterations, r.correspondence_set.shape) == (0.0, 0.0, 0, (0, 2))
    assert "no point of the source has a neighbour" in str(r)
    assert r.covariance is None


@pytest.mark.parametrize("kind", ["list", "tensor", "integers"])
def test_kinds_of_start(source, target, kind):
    make = {
        "list": lambda m: m.tolist(),
        "tensor": torch.from_numpy,
        "integers": lambda m: m.astype(int),
    }[kind]
    r = dlc_reg.register(source, target, init=make(np.eye(4)), method="point_to_plane")
    same_bytes(r, dlc_reg.register(source, target, init=np.eye(4), method="point_to_plane"))


# --- scale ------------------------------------------------------------------------------------------------------------


def test_millimetres_onto_metres(source, target, truth):
    start = any_pose(np.random.default_rng(1), shift=500)
    r = dlc_reg.register(move(start, 1000 * source), target, with_scaling=True)
    assert r.verdict == "aligned"
    assert r.settings["scale"] == pytest.approx(1e-3, rel=0.01)
    assert distance(r.transformation @ start @ scaling(1000), truth, source) < 0.02
    linear = r.transformation[:3, :3] / r.settings["scale"]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-9)


def test_scale_from_a_start(source, target, truth):
    r = dlc_reg.register(2.5 * source, target, with_scaling=True, init=truth @ scaling(0.41))
    assert r.verdict == "aligned" and distance(r.transformation @ scaling(2.5), truth, source) < 0.02


def test_scale_one_is_found_as_one(source, target, truth):
    r = dlc_reg.register(source, target, with_scaling=True)
    assert r.settings["scale"] == pytest.approx(1, rel=0.01) and distance(r.transformation, truth, source) < 0.02


def test_evidence_with_scaling_is_in_the_targets_unit(source, target):
    r = dlc_reg.register(1000 * source, target, with_scaling=True)
    i, j = r.correspondence_set.T
    gaps = np.linalg.norm(move(r.transformation, 1000 * source[i]) - target[j], axis=1)
    assert np.sqrt((gaps**2).mean()) == pytest.approx(r.inlier_rmse, rel=1e-4)
    assert r.fitness == len(i) / len(source)


def test_different_units_are_pointed_out(source, target):
    for a, b in ((1000 * source, target), (source, 1000 * target)):
        with pytest.raises(InputError, match=r"source, target.*times apart.*one unit.*mm and m"):
            dlc_reg.register(a, b)


# --- options ----------------------------------------------------------------------------------------------------------

EYES = {"source_viewpoint": (0.0, 0.1, 1.0), "target_viewpoint": (0.0, 0.1, 1.0)}  # the scanner looked along -z


def test_viewpoints(bunny_pair, truth):
    source, target = thin(bunny_pair.source, 5000), thin(bunny_pair.target, 5000)
    r = dlc_reg.register(source, target, **EYES)
    assert r.verdict == "aligned" and distance(r.transformation, truth, source) < NEAR
    assert r.settings["viewpoints_used"] and r.settings["source_viewpoint"] == [0.0, 0.1, 1.0]
    assert r.settings["evidence"]["violations"] >= 0


def test_viewpoints_follow_the_clouds(bunny_pair, truth):
    source, target = thin(bunny_pair.source, 5000), thin(bunny_pair.target, 5000)
    start = any_pose(np.random.default_rng(3), shift=1e6)
    eye = move(start, np.array(EYES["source_viewpoint"]))
    r = dlc_reg.register(move(start, source), target, source_viewpoint=eye, target_viewpoint=[0, 0.1, 1])
    assert r.verdict == "aligned" and distance(r.transformation @ start, truth, source) < NEAR


def test_one_viewpoint_alone_changes_nothing(source, target, result):
    r = dlc_reg.register(source, target, source_viewpoint=EYES["source_viewpoint"])
    assert not r.settings["viewpoints_used"]
    np.testing.assert_allclose(r.transformation, result.transformation, atol=1e-9)


def test_max_correspondence_distance_is_kept_to(source, target, truth):
    for limit in (0.004, np.float32(0.02)):
        r = dlc_reg.register(source, target, init=truth, method="point_to_point", max_correspondence_distance=limit)
        assert r.settings["max_correspondence_distance"] == pytest.approx(float(limit))
        np.testing.assert_allclose(r.settings["max_correspondence_distances"], limit, rtol=1e-6)
        gaps, _ = cKDTree(target).query(move(r.transformation, source))
        assert r.fitness == pytest.approx((gaps < limit).mean(), abs=2 / len(source))


def test_voxel_size_is_kept_to(source, target, truth):
    r = dlc_reg.register(source, target, voxel_size=0.006)
    assert r.settings["voxel_size"] == 0.006 and r.settings["feature_radius"] == pytest.approx(0.03)
    assert r.verdict == "aligned" and distance(r.transformation, truth, source) < NEAR


def test_callback_sees_every_iteration_and_can_stop(source, target, truth):
    seen: list[dict] = []
    start = pose([0, 0, 1], 8) @ truth
    whole = dlc_reg.register(source, target, init=start, method="point_to_point", callback=seen.append)
    assert len(seen) == len(whole.history) > 5
    assert [record["inlier_rmse"] for record in seen] == [record["inlier_rmse"] for record in whole.history]
    stopped = dlc_reg.register(
        source, target, init=start, method="point_to_point", callback=lambda record: record["iteration"] == 2
    )
    assert stopped.status is Status.STOPPED and stopped.history[2]["inlier_rmse"] == whole.history[2]["inlier_rmse"]
    assert stopped.iterations < whole.iterations


def test_errors_in_the_callback_come_through(source, target):
    class Mine(Exception):
        pass

    def fail(record):
        raise Mine

    with pytest.raises(Mine):
        dlc_reg.register(source, target, callback=fail)


def test_progress_goes_to_standard_error(source, target, result, capsys):
    r = dlc_reg.register(source, target, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "refine" in err
    same_bytes(r, result)
    dlc_reg.register(source, target)
    assert capsys.readouterr() == ("", "")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fgr"}, r"method: got 'fgr'.*'auto', 'global', 'point_to_point'"),
        ({"method": None}, r"method: got None"),
        ({"method": "symmetric", "with_scaling": True}, r"method: got 'symmetric' with with_scaling"),
        ({"device": "cuda"}, r"device: got 'cuda'.*'cpu'"),
        ({"device": "abacus"}, r"device: got .*abacus"),
        ({"callback": 3}, r"callback: got 3"),
        ({"voxel_size": 0}, r"voxel_size: got 0.*positive"),
        ({"voxel_size": -0.1}, r"voxel_size: got -0.1"),
        ({"voxel_size": float("nan")}, r"voxel_size: got nan"),
        ({"voxel_size": "1"}, r"voxel_size: got '1'"),
        ({"voxel_size": 1.0}, r"voxel_size: got 1 "),  # the bunny is 0.2 wide
        ({"voxel_size": 1e-9}, r"voxel_size: got 1e-09"),
        ({"max_correspondence_distance": -1}, r"max_correspondence_distance: got -1.*positive"),
        ({"max_correspondence_distance": float("inf")}, r"max_correspondence_distance: got inf"),
        ({"num_threads": 0}, r"num_threads: got 0.*positive"),
        ({"num_threads": -1}, r"num_threads: got -1"),
        ({"num_threads": 1.5}, r"num_threads: got 1.5"),
        ({"init": np.eye(3)}, r"init: got shape \(3, 3\)"),
        ({"init": np.full((4, 4), np.nan)}, r"init: got 16 entries"),
        ({"init": np.diag([1.0, 1, -1, 1])}, r"init: got a reflection"),
        ({"init": np.diag([2.0, 2, 2, 1])}, r"init: .*scale of 2.*with_scaling"),
        ({"init": np.diag([1.0, 2, 3, 1]), "with_scaling": True}, r"init: "),
        ({"init": np.zeros((4, 4)), "with_scaling": True}, r"init: "),
        ({"init": np.array([[1.0, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])}, r"init: .*rotation"),
        ({"init": np.eye(4) + np.eye(4)[[3, 1, 2, 0]] * [[0], [0], [0], [1]]}, r"init: "),  # last row not 0 0 0 1
        ({"init": "identity"}, r"init: got str"),
        ({"source_viewpoint": [0, 0]}, r"source_viewpoint: got \[0, 0\]"),
        ({"target_viewpoint": [0, np.inf, 0]}, r"target_viewpoint: .*finite"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),  # the options' names
)
def test_bad_options_are_named_with_a_remedy(source, target, options, message):
    with pytest.raises(InputError, match=r"^" + message) as caught:
        dlc_reg.register(source, target, **options)
    assert isinstance(caught.value, ValueError) and "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("cloud", "message"),
    [
        (np.zeros((0, 3)), r"an empty cloud.*at least 3"),
        (np.eye(3)[:2], r"2 points.*at least 3"),
        (np.ones((50, 3)), r"50 points that are all equal"),
        (np.outer(np.arange(50.0), [1, 2, 3]) + 1e6, r"50 points on one line"),
        (np.ones((50, 2)), r"shape \(50, 2\)"),
        (np.ones((50, 4)), r"shape \(50, 4\).*\[:, :3\]"),
        (np.ones((3, 50)), r"shape \(3, 50\).*transpose"),
        (np.ones(30), r"shape \(30,\)"),
        (np.ones((50, 3), complex), r"dtype complex128"),
        (np.ones((50, 3), bool), r"dtype bool"),
        (np.full((50, 3), "1"), r"dtype <U1"),
        (np.full((50, 3), np.nan), r"50 of 50 points with NaN"),
        (None, r"NoneType"),
        ("no/such/file.ply", r"no/such/file.ply.*does not exist"),
        (np.random.default_rng(0).normal(size=(50, 3)) * 1e20, r"coordinates up to .*damaged"),
    ],
)
def test_bad_clouds_are_named_with_a_remedy(target, cloud, message):
    for place, arguments in (("source", (cloud, target)), ("target", (target, cloud))):
        with pytest.raises(InputError, match=rf"^{place}: got .*{message}"):
            dlc_reg.register(*arguments)


@pytest.mark.parametrize("count", [3, 4, 10, 30])
def test_a_handful_of_points_is_registered_and_not_trusted(source, target, count):
    assert dlc_reg.register(source[:count], target).verdict in ("failed", "doubtful", "ambiguous")
    assert dlc_reg.register(source[:count], target[:count]).verdict in ("failed", "doubtful", "ambiguous")


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
