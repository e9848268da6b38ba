"""`register` as a sceptical user meets it: scale and every other option, non-finite points and mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from registering import NEAR, any_pose, distance, move, pose, same_bytes, scaling, thin
from scipy.spatial import cKDTree

import dlc_reg
from dlc_reg.errors import InputError
from dlc_reg.iterate import Status

# --- what is not a number ---------------------------------------------------------------------------------------------


def test_non_finite_points_are_an_error(thin_source, thin_target):
    broken = thin_source.copy()
    broken[[5, 9], [0, 2]] = np.nan, -np.inf
    with pytest.raises(InputError, match=r"^source: got 2 of 2000 points with NaN.*row 5.*remove_non_finite=True"):
        dlc_reg.register(broken, thin_target)
    with pytest.raises(InputError, match=r"^target: got 2 of 2000"):
        dlc_reg.register(thin_target, broken)


def test_non_finite_points_are_dropped_on_request(thin_source, thin_target):
    broken, hole = thin_source.copy(), thin_target.copy()
    broken[::7, 1] = np.nan
    hole[3] = np.inf
    r = dlc_reg.register(broken, hole, remove_non_finite=True)
    clean = dlc_reg.register(np.delete(thin_source, np.s_[::7], axis=0), np.delete(thin_target, 3, axis=0))
    assert r.transformation.tobytes() == clean.transformation.tobytes()
    assert (r.settings["source_dropped"], r.settings["target_dropped"]) == (len(thin_source[::7]), 1)
    # rows are those of the clouds as they were given
    i, j = r.correspondence_set.T
    assert np.isfinite(broken[i]).all() and np.isfinite(hole[j]).all()
    gaps = np.linalg.norm(move(r.transformation, broken[i]) - hole[j], axis=1)
    assert np.sqrt((gaps**2).mean()) == pytest.approx(r.inlier_rmse, rel=1e-5)


# --- scale ------------------------------------------------------------------------------------------------------------


def test_millimetres_onto_metres(thin_source, thin_target, thin_truth):
    start = any_pose(np.random.default_rng(1), shift=500)
    r = dlc_reg.register(move(start, 1000 * thin_source), thin_target, with_scaling=True)
    assert r.verdict == "aligned"
    assert r.settings["scale"] == pytest.approx(1e-3, rel=0.01)
    assert distance(r.transformation @ start @ scaling(1000), thin_truth, thin_source) < 0.02
    linear = r.transformation[:3, :3] / r.settings["scale"]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-9)


def test_scale_from_a_start(thin_source, thin_target, thin_truth):
    r = dlc_reg.register(2.5 * thin_source, thin_target, with_scaling=True, init=thin_truth @ scaling(0.41))
    assert r.verdict == "aligned" and distance(r.transformation @ scaling(2.5), thin_truth, thin_source) < 0.02


def test_scale_one_is_found_as_one(thin_source, thin_target, thin_truth):
    r = dlc_reg.register(thin_source, thin_target, with_scaling=True)
    assert (
        r.settings["scale"] == pytest.approx(1, rel=0.01) and distance(r.transformation, thin_truth, thin_source) < 0.02
    )


def test_evidence_with_scaling_is_in_the_targets_unit(thin_source, thin_target):
    r = dlc_reg.register(1000 * thin_source, thin_target, with_scaling=True)
    i, j = r.correspondence_set.T
    gaps = np.linalg.norm(move(r.transformation, 1000 * thin_source[i]) - thin_target[j], axis=1)
    assert np.sqrt((gaps**2).mean()) == pytest.approx(r.inlier_rmse, rel=1e-4)
    assert r.fitness == len(i) / len(thin_source)


def test_different_units_are_pointed_out(thin_source, thin_target):
    for a, b in ((1000 * thin_source, thin_target), (thin_source, 1000 * thin_target)):
        with pytest.raises(InputError, match=r"source, target.*times apart.*one unit.*mm and m"):
            dlc_reg.register(a, b)


# --- options ----------------------------------------------------------------------------------------------------------

EYES = {"source_viewpoint": (0.0, 0.1, 1.0), "target_viewpoint": (0.0, 0.1, 1.0)}  # the scanner looked along -z


def test_viewpoints(bunny_pair, thin_truth):
    source, target = thin(bunny_pair.source, 5000), thin(bunny_pair.target, 5000)
    r = dlc_reg.register(source, target, **EYES)
    assert r.verdict == "aligned" and distance(r.transformation, thin_truth, source) < NEAR
    assert r.settings["viewpoints_used"] and r.settings["source_viewpoint"] == [0.0, 0.1, 1.0]
    assert r.settings["evidence"]["violations"] >= 0


def test_viewpoints_follow_the_clouds(bunny_pair, thin_truth):
    source, target = thin(bunny_pair.source, 5000), thin(bunny_pair.target, 5000)
    start = any_pose(np.random.default_rng(3), shift=1e6)
    eye = move(start, np.array(EYES["source_viewpoint"]))
    r = dlc_reg.register(move(start, source), target, source_viewpoint=eye, target_viewpoint=[0, 0.1, 1])
    assert r.verdict == "aligned" and distance(r.transformation @ start, thin_truth, source) < NEAR


def test_one_viewpoint_alone_changes_nothing(thin_source, thin_target, thin_result):
    r = dlc_reg.register(thin_source, thin_target, source_viewpoint=EYES["source_viewpoint"])
    assert not r.settings["viewpoints_used"]
    np.testing.assert_allclose(r.transformation, thin_result.transformation, atol=1e-9)


def test_max_correspondence_distance_is_kept_to(thin_source, thin_target, thin_truth):
    for limit in (0.004, np.float32(0.02)):
        r = dlc_reg.register(
            thin_source, thin_target, init=thin_truth, method="point_to_point", max_correspondence_distance=limit
        )
        assert r.settings["max_correspondence_distance"] == pytest.approx(float(limit))
        np.testing.assert_allclose(r.settings["max_correspondence_distances"], limit, rtol=1e-6)
        gaps, _ = cKDTree(thin_target).query(move(r.transformation, thin_source))
        assert r.fitness == pytest.approx((gaps < limit).mean(), abs=2 / len(thin_source))


def test_voxel_size_is_kept_to(thin_source, thin_target, thin_truth):
    r = dlc_reg.register(thin_source, thin_target, voxel_size=0.006)
    assert r.settings["voxel_size"] == 0.006 and r.settings["feature_radius"] == pytest.approx(0.03)
    assert r.verdict == "aligned" and distance(r.transformation, thin_truth, thin_source) < NEAR


def test_callback_sees_every_iteration_and_can_stop(thin_source, thin_target, thin_truth):
    seen: list[dict] = []
    start = pose([0, 0, 1], 8) @ thin_truth
    whole = dlc_reg.register(thin_source, thin_target, init=start, method="point_to_point", callback=seen.append)
    assert len(seen) == len(whole.history) > 5
    assert [record["inlier_rmse"] for record in seen] == [record["inlier_rmse"] for record in whole.history]
    stopped = dlc_reg.register(
        thin_source, thin_target, init=start, method="point_to_point", callback=lambda record: record["iteration"] == 2
    )
    assert stopped.status is Status.STOPPED and stopped.history[2]["inlier_rmse"] == whole.history[2]["inlier_rmse"]
    assert stopped.iterations < whole.iterations


def test_errors_in_the_callback_come_through(thin_source, thin_target):
    class Mine(Exception):
        pass

    def fail(record):
        raise Mine

    with pytest.raises(Mine):
        dlc_reg.register(thin_source, thin_target, callback=fail)


def test_progress_goes_to_standard_error(thin_source, thin_target, thin_result, capsys):
    r = dlc_reg.register(thin_source, thin_target, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "refine" in err
    same_bytes(r, thin_result)
    dlc_reg.register(thin_source, thin_target)
    assert capsys.readouterr() == ("", "")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fgr"}, r"method: got 'fgr'.*'auto', 'global', 'learned', 'point_to_point'"),
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
def test_bad_options_are_named_with_a_remedy(thin_source, thin_target, options, message):
    with pytest.raises(InputError, match=r"^" + message) as caught:
        dlc_reg.register(thin_source, thin_target, **options)
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
def test_bad_clouds_are_named_with_a_remedy(thin_target, cloud, message):
    for place, arguments in (("source", (cloud, thin_target)), ("target", (thin_target, cloud))):
        with pytest.raises(InputError, match=rf"^{place}: got .*{message}"):
            dlc_reg.register(*arguments)


@pytest.mark.parametrize("count", [3, 4, 10, 30])
def test_a_handful_of_points_is_registered_and_not_trusted(thin_source, thin_target, count):
    assert dlc_reg.register(thin_source[:count], thin_target).verdict in ("failed", "doubtful", "ambiguous")
    assert dlc_reg.register(thin_source[:count], thin_target[:count]).verdict in ("failed", "doubtful", "ambiguous")
