"""Batched ICP: against the single-pair path and Open3D, known motions, masks, threads, and hopeless pairs."""

import numpy as np
import pytest
import torch
from surfaces import rigid, terrain

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.registration.icp import Convergence, icp
from dlc_reg.registration.objectives import PointToPlane, PointToPoint
from dlc_reg.registration.result import Status

pytestmark = pytest.mark.usefixtures("one_thread_for_torch")

OBJECTIVES = {"point_to_plane": PointToPlane(), "point_to_point": PointToPoint()}
DISTANCE = 0.4


def pairs(batch: int, n: int, m: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Independent samples of one surface (B, N, 3), (B, M, 3) and T_target_source (B, 4, 4) float64, 11 degrees."""
    truth = torch.stack([rigid(seed + 10 * b, 0.05, 0.2) for b in range(batch)])
    source = torch.stack([terrain(n, seed + b)[0] for b in range(batch)])
    target = torch.stack([terrain(m, seed + 500 + b)[0] for b in range(batch)])
    return ((source.double() - truth[:, None, :3, 3]) @ truth[:, :3, :3]).float(), target, truth


def assert_same(a: ops.BatchResult, b: ops.BatchResult) -> None:
    for name, value in vars(a).items():
        assert torch.equal(value, getattr(b, name)), name


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_pair_ends_where_the_single_path_does(kind: str) -> None:
    source, target, truth = pairs(6, 500, 600)
    start = torch.stack([rigid(b, 0.02, 0.1) for b in range(6)])
    found = ops.icp_batch(source, target, start, kind=kind, max_distance=DISTANCE, num_threads=1)
    for b in range(6):
        p = PointCloud.from_any(source[b])
        q = PointCloud.from_any(target[b]).with_normals(20, num_threads=1)
        one = icp(p, q, OBJECTIVES[kind], start[b].numpy(), max_distance=DISTANCE, num_threads=1)
        np.testing.assert_allclose(found.transformations[b], one.transformation, atol=1e-5)
        assert found.fitness[b].item() == pytest.approx(one.fitness, abs=1e-12)
        assert found.inlier_rmse[b].item() == pytest.approx(one.inlier_rmse, abs=1e-7)
        assert found.iterations[b].item() == one.iterations
        assert found.converged[b].item() == (one.status is Status.CONVERGED)
    if kind == "point_to_plane":
        assert (found.transformations - truth).abs().max() < 0.05


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_pair_ends_where_open3d_does(kind: str) -> None:
    o3d = pytest.importorskip("open3d")
    reg = o3d.pipelines.registration
    source, target, _ = pairs(4, 400, 500, seed=7)
    # Open3D turns about the caller's origin: there the target's mean must be for the same path
    target = target - target.mean(1, keepdim=True)
    found = ops.icp_batch(source, target, kind=kind, max_distance=DISTANCE, max_iterations=50, num_threads=1)
    for b in range(4):
        clouds = [o3d.geometry.PointCloud(o3d.utility.Vector3dVector(c[b].double().numpy())) for c in (source, target)]
        normals = ops.estimate_normals(target[b], 20, num_threads=1).double().numpy()
        clouds[1].normals = o3d.utility.Vector3dVector(normals)
        plane, point = reg.TransformationEstimationPointToPlane, reg.TransformationEstimationPointToPoint
        rule = reg.ICPConvergenceCriteria(1e-6, 1e-6 * PointCloud.from_any(target[b]).extent, 50)
        estimation = plane() if kind == "point_to_plane" else point()
        other = reg.registration_icp(*clouds, DISTANCE, np.eye(4), estimation, rule)
        np.testing.assert_allclose(found.transformations[b], other.transformation, atol=1e-4)
        assert found.fitness[b].item() == pytest.approx(other.fitness)
        assert found.inlier_rmse[b].item() == pytest.approx(other.inlier_rmse, abs=1e-5)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_exact_copies_are_found_exactly(kind: str) -> None:
    _, target, truth = pairs(3, 1, 400)
    source = ((target.double() - truth[:, None, :3, 3]) @ truth[:, :3, :3]).float()
    found = ops.icp_batch(source, target, kind=kind, max_distance=None, max_iterations=200, num_threads=1)
    assert found.converged.all()
    assert (found.fitness == 1).all()
    assert (found.transformations - truth).abs().max() < 1e-5
    assert found.inlier_rmse.max() < 1e-5


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_bits_depend_neither_on_threads_nor_on_the_batch(kind: str) -> None:
    source, target, _ = pairs(5, 200, 300)
    found = ops.icp_batch(source, target, kind=kind, max_distance=DISTANCE, num_threads=1)
    for threads in (2, 3, None):
        assert_same(found, ops.icp_batch(source, target, kind=kind, max_distance=DISTANCE, num_threads=threads))
    last = ops.icp_batch(source[4:], target[4:], kind=kind, max_distance=DISTANCE)
    assert torch.equal(last.transformations[0], found.transformations[4])


def test_padding_may_hold_anything() -> None:
    source, target, _ = pairs(3, 300, 350)
    sizes = [(300, 350), (120, 200), (77, 350)]
    masks = [torch.arange(n) < torch.tensor([s[k] for s in sizes])[:, None] for k, n in enumerate((300, 350))]
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0)), torch.arange(350)
    clouds = [
        cloud.masked_fill(~mask[:, :, None], float("nan"))[:, order]
        for cloud, mask, order in zip((source, target), masks, shuffled, strict=True)
    ]
    found = ops.icp_batch(
        *clouds, source_mask=masks[0][:, shuffled[0]], target_mask=masks[1][:, shuffled[1]], max_distance=DISTANCE
    )
    for b, (n, m) in enumerate(sizes):
        one = ops.icp_batch(source[b : b + 1, :n], target[b : b + 1, :m], max_distance=DISTANCE)
        # the source's points come in another order: sums are rounded otherwise
        assert (one.transformations[0] - found.transformations[b]).abs().max() < 1e-9
        assert one.iterations[0] == found.iterations[b]


def test_far_from_the_origin_nothing_is_lost_but_the_rounding_of_the_points() -> None:
    source, target, _ = pairs(2, 300, 300)
    grid = 2.0**-10  # the shifted points are exact
    source, target = (torch.round(c / grid) * grid for c in (source, target))
    near = ops.icp_batch(source, target, max_distance=DISTANCE)
    offset = torch.tensor([4096.0, -2048.0, 1024.0])
    far = ops.icp_batch(source + offset, target + offset, max_distance=DISTANCE)
    rotation, shift = near.transformations[:, :3, :3], near.transformations[:, :3, 3]
    expected = shift + offset.double() - rotation @ offset.double()
    assert (far.transformations[:, :3, :3] - rotation).abs().max() < 1e-8
    assert (far.transformations[:, :3, 3] - expected).abs().max() < 1e-5


def test_the_start_comes_back_where_nothing_can_be_done() -> None:
    source, target, _ = pairs(4, 300, 300)
    start = torch.stack([rigid(b, 0.1, 0.1) for b in range(4)])
    start[3, :3, 3] += 100.0  # nothing near
    real = torch.ones(4, 300, dtype=torch.bool)
    few = real.clone()
    few[0, 2:] = False
    few_targets = real.clone()
    few_targets[1] = False
    found = ops.icp_batch(
        source, target, start, source_mask=few, target_mask=few_targets, max_distance=DISTANCE, tolerance=1e-3
    )
    for b in (0, 1, 3):
        assert torch.equal(found.transformations[b], start[b])
    assert found.fitness[[0, 1, 3]].eq(0).all() and found.inlier_rmse[[0, 1, 3]].eq(0).all()
    assert found.converged.tolist() == [False, False, True, False]
    nothing = ops.icp_batch(source[:, :0], target, start, max_distance=DISTANCE)
    assert torch.equal(nothing.transformations, start)
    assert len(ops.icp_batch(source[:0], target[:0], max_distance=DISTANCE).fitness) == 0


def test_the_tolerance_is_relative_to_the_size_and_zero_takes_every_step() -> None:
    source, target, _ = pairs(2, 200, 200)
    scale = 1024.0
    small = ops.icp_batch(source, target, max_distance=DISTANCE)
    large = ops.icp_batch(source * scale, target * scale, max_distance=DISTANCE * scale)
    assert torch.equal(small.iterations, large.iterations)
    # not to the bit: the diagonal scales exactly, the curvatures of turning and moving do not mix exactly
    assert (large.transformations[:, :3, :3] - small.transformations[:, :3, :3]).abs().max() < 1e-9
    every = ops.icp_batch(source, target, max_distance=DISTANCE, tolerance=0.0, max_iterations=7)
    assert every.iterations.tolist() == [7, 7] and not every.converged.any()


def test_arrays_and_float64_are_taken() -> None:
    source, target, _ = pairs(2, 100, 100)
    found = ops.icp_batch(source, target, max_distance=DISTANCE)
    masks = {"source_mask": np.ones((2, 100), bool), "target_mask": np.ones((2, 100), bool)}
    start = np.broadcast_to(np.eye(4), (2, 4, 4))
    assert_same(found, ops.icp_batch(source.double().numpy(), target.numpy(), start, max_distance=DISTANCE, **masks))


GOOD: dict[str, object] = {"source": torch.rand(2, 9, 3), "target": torch.rand(2, 8, 3), "max_distance": 1.0}
BAD = {
    "source": [torch.rand(9, 3), torch.rand(2, 9, 2), torch.ones(2, 9, 3, dtype=torch.int64), [[0.0]]],
    "target": [torch.rand(3, 8, 3), torch.full((2, 8, 3), torch.nan), np.full((2, 8, 3), 1e39)],
    "init": [torch.eye(4), torch.full((2, 4, 4), torch.inf), torch.ones(2, 4, 4), torch.ones(2, 4, 4).long()],
    "source_mask": [torch.ones(2, 8, dtype=torch.bool), torch.ones(2, 9)],
    "target_mask": [np.ones((2, 9), bool), "all"],
    "kind": ["generalized", 0],
    "max_distance": [0.0, -1.0, float("nan")],
    "max_iterations": [0, 1.5],
    "tolerance": [-1e-6, float("nan")],
    "neighbours": [2, None],
    "num_threads": [0],
}


@pytest.mark.parametrize(("argument", "value"), [(a, v) for a, values in BAD.items() for v in values])
def test_bad_input_is_named(argument: str, value: object) -> None:
    with pytest.raises(InputError) as error:
        ops.icp_batch(**{**GOOD, argument: value})  # type: ignore[arg-type]
    assert error.value.argument == argument


def test_the_rule_is_that_of_convergence() -> None:
    assert Convergence() == Convergence(fitness=1e-6, rmse=1e-6, max_iterations=30)  # icp_batch's defaults
