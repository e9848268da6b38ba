"""The operators under torch: schema, shapes without data, gradients, compilation, subclasses."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dlc_reg import ops
from dlc_reg.ops import _library


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
