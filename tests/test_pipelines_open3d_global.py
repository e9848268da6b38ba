"""Features, matches, checkers, RANSAC, FGR and NDT against Open3D itself: values, answers, defaults and texts."""

from __future__ import annotations

import numpy as np
import pytest

o3d = pytest.importorskip(
    "open3d",
    reason="Open3D is not importable (pip install 'dlc_reg[open3d]'; on Debian its wheel needs libusb-1.0-0)",
    exc_type=ImportError,
)

from test_icp import about  # noqa: E402
from test_objectives import pose  # noqa: E402

from dlc_reg.metrics import rotation_error, translation_error  # noqa: E402
from dlc_reg.pipelines import registration as reg  # noqa: E402

theirs = o3d.pipelines.registration
VOXEL = 0.004
Hybrid, Radius, KNN = (getattr(o3d.geometry, f"KDTreeSearchParam{kind}") for kind in ("Hybrid", "Radius", "KNN"))


def thinned(points):
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.copy())).voxel_down_sample(VOXEL)
    cloud.estimate_normals(Hybrid(2 * VOXEL, 30))
    cloud.orient_normals_towards_camera_location()
    return cloud


@pytest.fixture(scope="module")
def scans(bunny_pair):
    return thinned(bunny_pair.source), thinned(bunny_pair.target), bunny_pair.T_target_source


@pytest.fixture(scope="module")
def features(scans):
    """Theirs, and ours."""
    search = Hybrid(5 * VOXEL, 100)
    return [[module.compute_fpfh_feature(cloud, search) for cloud in scans[:2]] for module in (theirs, reg)]


SEARCHES = [Hybrid(5 * VOXEL, 100), Hybrid(5 * VOXEL, 20), Radius(3 * VOXEL), KNN(40)]


@pytest.mark.parametrize("search", SEARCHES, ids=repr)
def test_same_features(scans, search):
    for cloud in scans[:2]:
        expected = theirs.compute_fpfh_feature(cloud, search).data
        assert expected.max() > 150
        np.testing.assert_allclose(reg.compute_fpfh_feature(cloud, search).data, expected, atol=1e-9)


def test_same_features_of_a_lattice_with_coincident_points():
    """Equal distances, distances at the radius itself, coplanar and coincident pairs."""
    points = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.concatenate([points, points[:3]])))
    cloud.normals = o3d.utility.Vector3dVector(np.tile([0.0, 0.6, 0.8], (67, 1)))
    for search in (Radius(1.0), Radius(1.5), Hybrid(2.0, 200)):
        expected = theirs.compute_fpfh_feature(cloud, search).data
        np.testing.assert_allclose(reg.compute_fpfh_feature(cloud, search).data, expected, atol=1e-9)


def test_same_features_of_chosen_points(scans):
    expected, result = (module.compute_fpfh_feature(scans[0], SEARCHES[0], [5, 3, 700, 3]) for module in (theirs, reg))
    np.testing.assert_allclose(result.data, expected.data, atol=1e-9)
    for invert in (False, True):
        chosen = [feature.select_by_index([2, 0, 2], invert).data for feature in (expected, result)]
        np.testing.assert_allclose(chosen[1], chosen[0], atol=1e-9)


@pytest.mark.parametrize("mutual", [False, True])
def test_same_matches(features, mutual):
    expected = np.asarray(theirs.correspondences_from_features(*features[0], mutual))
    for pair in features:  # their features do as well
        assert np.array_equal(reg.correspondences_from_features(*pair, mutual), expected)


def test_mutual_matches_fall_back_at_the_same_share(features):
    share = len(theirs.correspondences_from_features(*features[0], True)) / features[0][0].num()
    for ratio in (share * 0.99, share * 1.01):
        expected = np.asarray(theirs.correspondences_from_features(*features[0], True, ratio))
        if ratio > share:
            with pytest.warns(UserWarning, match="mutual_filter"):
                found = reg.correspondences_from_features(*features[1], True, ratio)
        else:
            found = reg.correspondences_from_features(*features[1], True, ratio)
        assert np.array_equal(found, expected)


def test_checkers_decide_alike(scans):
    source, target, truth = scans
    rng = np.random.default_rng(0)
    pairs = np.asarray(theirs.evaluate_registration(source, target, 2 * VOXEL, truth).correspondence_set)
    kinds = {"EdgeLength": [0.5, 0.8, 0.9, 0.97], "Distance": [VOXEL, 2 * VOXEL], "Normal": [0.1, 0.3, 1.0]}
    kinds["SourceRotation"] = [np.array([0.3, 0.7, 0.3]), np.array([-1, 0.5, -1]), np.array([0.05, -0.5, 1])]
    answers = set()
    for _ in range(60):
        chosen = o3d.utility.Vector2iVector(pairs[rng.integers(0, len(pairs), 3)])
        motion = about(np.asarray(target.points).mean(axis=0), rng.normal(size=3), rng.uniform(0, 12)) @ truth
        for kind, thresholds in kinds.items():
            name = f"CorrespondenceCheckerBasedOn{kind}"
            for threshold in thresholds:
                checker = getattr(theirs, name)(threshold)
                expected = checker.Check(source, target, chosen, motion)
                assert getattr(reg, name)(threshold).Check(source, target, chosen, motion) == expected
                answers.add((kind, expected))
    assert len(answers) == 8  # each kind passes some and refuses some


@pytest.mark.parametrize("mutual", [False, True])
def test_ransac_is_as_good(scans, features, mutual):
    source, target, truth = scans
    found = {}
    for module, pair in zip((theirs, reg), features, strict=True):
        checkers = [
            module.CorrespondenceCheckerBasedOnEdgeLength(0.9),
            module.CorrespondenceCheckerBasedOnDistance(1.5 * VOXEL),
        ]
        rest = (module.TransformationEstimationPointToPoint(), 3, checkers, module.RANSACConvergenceCriteria())
        for seed in range(5):
            o3d.utility.random.seed(seed)
            seeded = {"seed": seed} if module is reg else {}
            result = module.registration_ransac_based_on_feature_matching(
                source, target, *pair, mutual, 1.5 * VOXEL, *rest, **seeded
            )
            again = theirs.evaluate_registration(source, target, 1.5 * VOXEL, result.transformation)
            assert result.fitness == pytest.approx(again.fitness, abs=1e-12)
            assert result.inlier_rmse == pytest.approx(again.inlier_rmse, rel=1e-6)
            found.setdefault(module, []).append(result)
    error = lambda r: float(rotation_error(np.array(r.transformation), truth))  # noqa: E731
    assert all(error(result) < np.radians(8) for result in found[reg])
    assert np.mean([r.fitness for r in found[reg]]) > np.mean([r.fitness for r in found[theirs]]) - 0.01


@pytest.mark.parametrize("decrease_mu", [False, True])
@pytest.mark.parametrize("use_absolute_scale", [False, True])
def test_fgr_without_the_test_of_triples_gives_the_same_pose(scans, features, use_absolute_scale, decrease_mu):
    """Nothing is random there."""
    values = (1.4, use_absolute_scale, decrease_mu, 1.5 * VOXEL, 64, 0.95, 1000, False)
    corres = theirs.correspondences_from_features(*features[0], True)
    for feature_matching in (False, True):
        found = []
        for module, pair in zip((theirs, reg), features, strict=True):
            option = module.FastGlobalRegistrationOption(*values)
            if feature_matching:
                found.append(module.registration_fgr_based_on_feature_matching(*scans[:2], *pair, option))
            else:
                found.append(module.registration_fgr_based_on_correspondence(*scans[:2], corres, option))
        expected, result = found
        np.testing.assert_allclose(result.transformation, expected.transformation, atol=1e-10)
        assert result.fitness == pytest.approx(expected.fitness, abs=1e-12)
        assert result.inlier_rmse == pytest.approx(expected.inlier_rmse, rel=1e-6)


def test_fgr_of_too_few_correspondences_lays_the_centres_upon_each_other(scans):
    corres = o3d.utility.Vector2iVector(np.arange(9).repeat(2).reshape(-1, 2))
    found = []
    for module in (theirs, reg):
        option = module.FastGlobalRegistrationOption(tuple_test=False)
        found.append(module.registration_fgr_based_on_correspondence(*scans[:2], corres, option))
    np.testing.assert_allclose(found[1].transformation, found[0].transformation, atol=1e-12)
    assert "only 9 correspondences agree" in found[1].verdict_reasons[-1]


def test_fgr_with_triples_is_as_good(scans, features):
    option = reg.FastGlobalRegistrationOption(decrease_mu=True, maximum_correspondence_distance=1.5 * VOXEL)
    for seed in range(5):
        result = reg.registration_fgr_based_on_feature_matching(*scans[:2], *features[1], option, seed=seed)
        assert float(rotation_error(result.transformation, scans[2])) < np.radians(3)
        assert float(translation_error(result.transformation, scans[2])) < VOXEL


@pytest.mark.parametrize(
    "options",
    [
        {"voxel_size": 0.02},
        {"voxel_size": 0.01, "neighbor_search_type": 0, "min_points_per_voxel": 4},
        {"voxel_size": 0.015, "covariance_regularization": 0.1, "max_iteration": 4},
        {"voxel_size": 0.02, "outlier_threshold": 2.0, "transformation_epsilon": 1e-3, "relative_objective": 1e-3},
    ],
    ids=str,
)
def test_ndt_gives_the_same_pose(scans, bunny_pair, options):
    source, target = (
        o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points[::3].copy()))
        for points in (bunny_pair.source, bunny_pair.target)
    )
    init = about(bunny_pair.target.mean(axis=0), (1, 2, 3), 5) @ scans[2]
    expected, result = (
        module.registration_ndt(source, target, module.NormalDistributionsTransformOption(**options), init)
        for module in (theirs, reg)
    )
    assert np.abs(result.transformation - init).max() > 1e-3
    np.testing.assert_allclose(result.transformation, expected.transformation, atol=1e-9)
    assert result.fitness == pytest.approx(expected.fitness, abs=1e-12)
    assert result.inlier_rmse == pytest.approx(expected.inlier_rmse, rel=1e-9)
    pairs = np.asarray(expected.correspondence_set)
    assert np.array_equal(result.correspondence_set, pairs[np.argsort(pairs[:, 0])])


def test_texts():
    makers = [
        lambda m: m.RANSACConvergenceCriteria(),
        lambda m: m.FastGlobalRegistrationOption(),
        lambda m: m.NormalDistributionsTransformOption(),
        lambda m: m.Feature(),
        lambda m: m.CorrespondenceCheckerBasedOnEdgeLength(),
        lambda m: m.CorrespondenceCheckerBasedOnDistance(0.1),
        lambda m: m.CorrespondenceCheckerBasedOnNormal(0.1),
        lambda m: m.CorrespondenceCheckerBasedOnSourceRotation(np.array([0.1, -1, 2])),
    ]
    for make in makers:
        assert repr(make(reg)) == repr(make(theirs))


def test_open3ds_own_objects_are_understood(scans, features):
    """Code that migrates step by step may still hold theirs."""
    corres = theirs.correspondences_from_features(*features[0], True)
    arguments = [
        (m.TransformationEstimationPointToPoint(), 3, [m.CorrespondenceCheckerBasedOnEdgeLength(0.9)],
         m.RANSACConvergenceCriteria(500, 0.9))
        for m in (theirs, reg)
    ]  # fmt: skip
    a, b = (reg.registration_ransac_based_on_correspondence(*scans[:2], corres, 0.006, *rest) for rest in arguments)
    assert np.array_equal(a.transformation, b.transformation)
    options = [m.FastGlobalRegistrationOption(maximum_correspondence_distance=0.006) for m in (theirs, reg)]
    a, b = (reg.registration_fgr_based_on_correspondence(*scans[:2], corres, option) for option in options)
    assert np.array_equal(a.transformation, b.transformation)
    with pytest.raises(TypeError, match="checkers"):
        reg.registration_ransac_based_on_correspondence(*scans[:2], corres, 0.006, checkers=[object()])


def test_the_pose_graph_is_open3ds_and_takes_our_results(scans):
    """Three nodes, two odometry edges and a loop closure that disagrees: optimised, the loop closes."""
    steps = [pose([0, 0, 0.1], [1, 0, 0]), pose([0, 0.1, 0], [0, 1, 0])]
    graph = reg.PoseGraph()
    assert type(graph) is theirs.PoseGraph
    node = np.eye(4)
    graph.nodes.append(reg.PoseGraphNode(node))
    for step in steps:
        node = node @ np.linalg.inv(step)
        graph.nodes.append(reg.PoseGraphNode(node))
    information = reg.get_information_matrix_from_point_clouds(*scans[:2], 0.01, scans[2])
    for i, step in enumerate(steps):
        graph.edges.append(reg.PoseGraphEdge(i, i + 1, step, information, uncertain=False))
    loop = pose([0, 0, 0], [0, 0, 0.01]) @ steps[1] @ steps[0]
    graph.edges.append(reg.PoseGraphEdge(0, 2, loop, information, uncertain=True))
    reg.global_optimization(
        graph,
        reg.GlobalOptimizationLevenbergMarquardt(),
        reg.GlobalOptimizationConvergenceCriteria(),
        reg.GlobalOptimizationOption(0.1, 0.25, 1.0, 0),
    )
    assert 1e-4 < np.abs(graph.nodes[2].pose - node).max() < 0.02
    assert {"PoseGraph", "global_optimization"} <= set(dir(reg))
