"""The operators under torch: schema, shapes without data, gradients, compilation, subclasses."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dlc_reg import ops
from dlc_reg.ops import _icp_batch, _library, _linearize


def cloud(n: int, seed: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


INF = float("inf")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("k", "limit"), [(1, INF), (4, 0.5), (50, INF)])
def test_opcheck_knn(k: int, limit: float, grad: bool) -> None:
    torch.library.opcheck(_library.knn_op, (cloud(9, 1, grad), cloud(20, 2, grad), k, limit, 1))


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_the_others(grad: bool) -> None:
    torch.library.opcheck(_library.radius_search_op, (cloud(9, 1, grad), cloud(20, 2, grad), 0.8, 1))
    torch.library.opcheck(_library.voxel_groups_op, (cloud(20, 3, grad), 0.5, 1))
    if not grad:
        torch.library.opcheck(_library.local_geometry_op, (cloud(20, 3), 5, INF, 1))


def test_knn_compiles_into_one_graph() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(query: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        distances, indices = ops.knn(query, points, 3, max_distance=5.0)
        return (distances * (indices % 2)).sum()

    query, points = cloud(30, 4, True), cloud(40, 5, True)
    compiled = loss(query, points)
    gradients = torch.autograd.grad(compiled, (query, points))
    distances, indices = ops.knn(query, points, 3, max_distance=5.0)
    eager = (distances * (indices % 2)).sum()
    torch.testing.assert_close(compiled, eager)
    for found, expected in zip(gradients, torch.autograd.grad(eager, (query, points)), strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(found, expected)


def test_voxels_and_radius_compile_with_sizes_that_depend_on_data() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        means = ops.voxel_downsample(points, 0.7)
        distances, _, splits = ops.radius_search(means, points, 0.5)
        return means, distances, splits

    for n in (30, 31, 50):
        points = cloud(n, n)
        means = ops.voxel_downsample(points, 0.7)
        distances, _, splits = ops.radius_search(means, points, 0.5)
        for found, expected in zip(function(points), (means, distances, splits), strict=True):
            torch.testing.assert_close(found, expected)


def test_compiled_calls_still_check_their_values() -> None:
    function = torch.compile(ops.knn, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        function(torch.full((2, 3), float("nan")), cloud(5, 6))


def test_shapes_are_known_without_data() -> None:
    with FakeTensorMode():
        distances, indices = ops.knn(torch.empty(7, 3), torch.empty(9, 3), 4)
    assert distances.shape == indices.shape == (7, 4) and indices.dtype == torch.int64


def test_a_call_without_gradients_leaves_the_dispatcher_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("through the dispatcher")

    monkeypatch.setattr(_library, "knn_op", refuse)
    points = cloud(5, 7, grad=True)
    with torch.no_grad():
        ops.knn(points, points)
    ops.knn(points.detach(), torch.nn.Parameter(points.detach(), requires_grad=False))
    with pytest.raises(AssertionError):
        ops.knn(points, points)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_tensors_come_back_to_their_device() -> None:
    query, points = cloud(10, 8), cloud(20, 9)
    for found, expected in zip(ops.knn(query.cuda(), points.cuda(), 2), ops.knn(query, points, 2), strict=True):
        assert found.is_cuda and torch.equal(found.cpu(), expected)
    assert ops.estimate_normals(points.cuda(), 5).is_cuda and ops.voxel_downsample(points.cuda(), 0.5).is_cuda
    with pytest.raises(ValueError, match="device"):
        ops.knn(query.cuda(), points)


def scene() -> tuple[ops.SearchIndex, torch.Tensor, torch.Tensor]:
    index = ops.SearchIndex(cloud(60, 20))
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor([0.01, -0.02, 0.03])
    return index, index.points[::2] + 0.01 * cloud(30, 21), pose


@pytest.mark.parametrize("dynamic", [None, True])
def test_linearize_compiles_into_one_graph(dynamic: bool | None) -> None:
    index, source, pose = scene()

    def step(source: torch.Tensor, pose: torch.Tensor, index: ops.SearchIndex, normals: torch.Tensor) -> Any:
        found = ops.linearize("point_to_plane", source, index, pose, max_distance=0.5, target_normals=normals)
        return torch.linalg.solve(found.hessian, -found.gradient), found.indices

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for moved, other in ((source, index), (source[:20], index), (source, ops.SearchIndex(cloud(55, 24)))):
        arguments = (moved, pose, other, ops.estimate_normals(other))
        for found, expected in zip(compiled(*arguments), step(*arguments), strict=True):
            torch.testing.assert_close(found, expected)


def test_morton_order_and_icp_batch_compile_into_one_graph() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(source: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        order = ops.morton_order(source[0])
        start = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
        found = ops.icp_batch(source[:, order], target, start, max_distance=None, target_mask=mask)
        return order, found.transformations, found.fitness, found.inlier_rmse, found.iterations, found.converged

    target = torch.stack([cloud(40, 22), cloud(40, 23)])
    mask = torch.arange(40).expand(2, 40) < 35
    order = ops.morton_order(target[0])
    expected = ops.icp_batch(target[:, order] + 0.02, target, max_distance=None, target_mask=mask)
    assert expected.iterations.min() > 0
    for found, other in zip(function(target + 0.02, target, mask), (order, *vars(expected).values()), strict=True):
        torch.testing.assert_close(found, other)


def test_opcheck_of_what_has_no_gradient() -> None:
    index, source, pose = scene()
    torch.library.opcheck(_library.morton_order_op, (source, 1))
    common = (source, index.points, pose)
    normals = ops.estimate_normals(index)
    for given in (None, torch.arange(30)):
        data = (None, None, normals, None, given)
        torch.library.opcheck(_linearize.linearize_op, (*common, *data, ops.KINDS["point_to_plane"], INF, 0, 1.0, 1))
    batch = (source[None], index.points[None])
    options = (None, None, pose[None], ops.KINDS["point_to_point"], INF, 5, 1e-6, 20, 1)
    torch.library.opcheck(_icp_batch.icp_batch_op, (*batch, *options))


def test_what_has_no_gradient_refuses_a_backward_pass() -> None:
    index, source, pose = scene()
    source.requires_grad_(), pose.requires_grad_()
    for moving in ((source, pose.detach()), (source.detach(), pose)):
        found = ops.linearize("point_to_point", moving[0], index, moving[1], max_distance=None)
        with pytest.raises(RuntimeError, match=r"dlc_reg\.linearize"):
            found.sums.sum().backward()
    found = ops.icp_batch(source[None], index.points[None], max_distance=None)
    with pytest.raises(RuntimeError, match=r"dlc_reg\.icp_batch"):
        found.transformations.sum().backward()
    assert not ops.morton_order(source).requires_grad


def test_the_operator_finds_the_tree_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    index, source, pose = scene()
    built = []
    build = _library.build_tree
    monkeypatch.setattr(_library, "build_tree", lambda *a: built.append(1) or build(*a))
    rest = (None, None, None, None, None, ops.KINDS["point_to_point"], INF, 0, 1.0, 1)
    expected = ops.linearize("point_to_point", source, index, pose, max_distance=None).sums
    for points, trees in ((index.points, 0), (index.points.clone(), 1), (index.points[:20], 2)):
        sums = _linearize.linearize_op(source, points, pose, *rest)[0]
        assert len(built) == trees and torch.equal(sums, expected) == (len(points) == 60)
    points = index.points
    del index
    assert torch.equal(_linearize.linearize_op(source, points, pose, *rest)[0], expected) and len(built) == 3


@pytest.mark.parametrize("bad", ["source", "pose", "last row"])
def test_compiled_linearisations_still_check_their_values(bad: str) -> None:
    index, source, pose = scene()
    function = torch.compile(
        lambda p, t: ops.linearize("point_to_point", p, index, t, max_distance=None).totals,
        fullgraph=True,
        backend="aot_eager",
    )
    if bad == "source":
        source[3, 1] = float("nan")
    else:
        pose[3 if bad == "last row" else 1, 2] = 5.0 if bad == "last row" else float("nan")
    with pytest.raises(RuntimeError, match="the last row" if bad == "last row" else "NaN or infinity"):
        function(source, pose)
