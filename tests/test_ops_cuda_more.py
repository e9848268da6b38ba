"""The CUDA operators' batches, graphs and transfers, as tests/test_ops_cuda.py runs them: on a GPU, or emulated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dlc_reg import _core, ops
from dlc_reg.networks.neighbours import neighbourhoods
from dlc_reg.ops import _cuda, _library, _validate

DEVICES = [f"cuda:{i}" for i in range(min(2, torch.cuda.device_count()))] if _core.CUDA_BUILT else []
if _core.CUDA_EMULATED:
    DEVICES = ["emulated"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not DEVICES, reason="no CUDA device, or a build without kernels")]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph needs a GPU")


@pytest.fixture(params=DEVICES or ["none"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    if request.param == "emulated":
        monkeypatch.setattr(_cuda, "takes", lambda tensor: True)
        yield torch.device("cpu")
        return
    chosen = torch.device(request.param)
    stream = torch.cuda.Stream(chosen)
    stream.wait_stream(torch.cuda.default_stream(chosen))
    with torch.cuda.stream(stream):
        yield chosen
    torch.cuda.synchronize(chosen)


def cloud(n: int, seed: int) -> Tensor:
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))
    points[:, 2] = 0.3 * (7 * points[:, 0]).sin() * (5 * points[:, 1]).cos()
    return points


def on_host(function: Callable[[], object]) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "takes", lambda tensor: False)
        return function()


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], device: torch.device) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.device == device and a.dtype == b.dtype and torch.equal(a.cpu(), b)


def batch_of(sizes: list[int], width: int, seed: int) -> tuple[Tensor, Tensor]:
    mask = torch.arange(width) < torch.tensor(sizes)[:, None]
    mask = mask[:, torch.randperm(width, generator=torch.Generator().manual_seed(seed))]
    points = torch.stack([cloud(width, seed + b) for b in range(len(sizes))])
    return torch.where(mask[..., None], points, math.nan), mask


@pytest.mark.parametrize("limit", [None, 0.1])
@pytest.mark.parametrize("k", [1, 8, 20, 64, 65, 128, 140])
def test_batches_are_the_hosts(device: torch.device, k: int, limit: float | None) -> None:
    query, q_mask = batch_of([0, 130, 7, 60], 130, 1)
    points, p_mask = batch_of([40, 0, 300, 1], 300, 5)
    found = ops.knn_batch(
        query.to(device),
        points.to(device),
        k,
        query_mask=q_mask.to(device),
        points_mask=p_mask.to(device),
        max_distance=limit,
    )
    expected = on_host(
        lambda: ops.knn_batch(query, points, k, query_mask=q_mask, points_mask=p_mask, max_distance=limit)
    )
    assert isinstance(expected, tuple) and torch.isfinite(expected[0]).any()
    if k <= 128:
        return same(found, expected, device)
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1e-6, atol=0)  # the twin, in torch's rounding
    assert (found[1].cpu() == expected[1]).float().mean() > 0.99


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
@pytest.mark.parametrize("k", [3, 70, 140])
def test_empty_batches(device: torch.device, shape: tuple[int, int, int], k: int) -> None:
    batch, n, m = shape
    distances, indices = ops.knn_batch(torch.zeros(batch, n, 3).to(device), torch.zeros(batch, m, 3).to(device), k)
    assert distances.shape == indices.shape == (batch, n, k)
    assert m or ((indices == -1).all() and torch.isinf(distances).all())


def test_gradients_of_batches(device: torch.device) -> None:
    query, q_mask = batch_of([20, 5, 0], 20, 2)
    points, p_mask = batch_of([9, 30, 30], 30, 6)
    gradients = []
    for place in (device, None):
        to = place or torch.device("cpu")
        q, p = query.to(to).requires_grad_(), points.to(to).requires_grad_()

        def differentiate(q: Tensor = q, p: Tensor = p, to: torch.device = to) -> tuple[Tensor, ...]:
            found = ops.knn_batch(q, p, 4, query_mask=q_mask.to(to), points_mask=p_mask.to(to))
            return torch.autograd.grad(torch.where(found[1] >= 0, found[0], 0.0).square().sum(), (q, p))

        gradients.append(differentiate() if place else on_host(differentiate))
    for found, expected in zip(*gradients, strict=True):  # type: ignore[call-overload]
        assert expected.isfinite().all() and expected.abs().max() > 0.01
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-6)


def test_networks_take_their_neighbourhoods_on_the_device(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, mask = batch_of([80, 25, 3], 80, 3)
    expected = on_host(lambda: neighbourhoods(points, mask, 9, radius=0.3, itself=False, normals_from=20))
    there, mask_there = points.to(device), mask.to(device)
    monkeypatch.setattr(_library, "unchecked", lambda tensor: pytest.fail("brought to the host"))
    found = neighbourhoods(there, mask_there, 9, radius=0.3, itself=False, normals_from=20)
    same(found[:2], expected[:2], device)  # type: ignore[index]
    assert found.normals is not None
    torch.testing.assert_close(found.normals.cpu(), expected.normals, rtol=1e-5, atol=1e-6)  # type: ignore[attr-defined]


def test_linearisations_share_a_flag_that_stays_zero(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    source, index = cloud(900, 8).to(device), ops.SearchIndex(cloud(700, 9).to(device))

    def run() -> Tensor:
        return ops.linearize("point_to_point", source, index, torch.eye(4), max_distance=0.1).sums

    first, flag = run(), _cuda.flag(source)
    assert flag is _cuda.flag(source) and flag.item() == 0
    for _ in range(3):
        assert torch.equal(run(), first)
    assert flag.item() == 0
    monkeypatch.setattr(_validate, "capturing", lambda tensor: True)
    assert _cuda.flag(source) is not flag


def test_nothing_is_looked_at_while_a_graph_records(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad values pass there: whatever looked at one would wait for the device, which a capture forbids."""
    source, index = cloud(300, 10).to(device), ops.SearchIndex(cloud(250, 11).to(device))
    pose = torch.eye(4, dtype=torch.float64, device=device)
    pose[0, 3] = 0.02
    matches = torch.arange(300, device=device) % 251 - 1
    searched, given = (
        ops.linearize("point_to_point", source, index, pose, max_distance=0.2, correspondences=x).sums
        for x in (None, matches)
    )
    clouds = torch.stack([source, source + 0.01])
    start = pose.expand(2, 4, 4).clone()
    expected = ops.icp_batch(clouds, index.points.expand(2, -1, -1), start, max_distance=0.2)
    monkeypatch.setattr(_validate, "capturing", lambda tensor: True)
    for x, sums in ((None, searched), (matches, given)):
        found = ops.linearize("point_to_point", source, index, pose, max_distance=0.2, correspondences=x)
        assert found.totals.device == device and torch.equal(found.sums, sums)
    again = ops.icp_batch(clouds, index.points.expand(2, -1, -1), start, max_distance=0.2)
    assert torch.equal(again.transformations, expected.transformations)
    source[5, 0] = pose[3, 1] = start[1, 3, 0] = clouds[0, 0, 0] = math.nan
    ops.linearize("point_to_point", source, index, pose, max_distance=0.2)
    ops.icp_batch(clouds, index.points.expand(2, -1, -1), start, max_distance=0.2)
    ops.knn_batch(clouds, clouds, 3)
    ops.soft_assignment(*soft_problem(clouds, sharpness=-1.0))


def soft_problem(clouds: Tensor, sharpness: float) -> tuple[Tensor, ...]:
    batch, n = clouds.shape[:2]
    poses = torch.eye(4, dtype=torch.float64, device=clouds.device).repeat(1, batch, 1, 1)
    each = clouds.new_full((batch,), sharpness), clouds.new_full((batch,), -6.0)
    mass = clouds.new_full((batch, n), 1 / n)
    return clouds, clouds + 0.01, clouds.new_zeros((batch, n, n)), poses, *each, mass, mass


def capture(function: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    function()  # what is made once, is made before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = function()
    return graph, answer


@needs_gpu
def test_a_graph_of_linearisations(device: torch.device) -> None:
    source, index = cloud(5000, 12).to(device), ops.SearchIndex(cloud(4000, 13).to(device))
    pose = torch.eye(4, dtype=torch.float64, device=device)
    normals = ops.estimate_normals(index)

    def run(pose: Tensor = pose) -> ops.Linearization:
        return ops.linearize("point_to_plane", source, index, pose, max_distance=0.1, target_normals=normals)

    graph, found = capture(run)
    assert isinstance(found, ops.Linearization)
    for step in range(3):
        pose[:3, 3] = torch.tensor([0.01, -0.02, 0.005], device=device) * step
        graph.replay()
        torch.cuda.synchronize(device)
        assert torch.equal(found.sums, run(pose.cpu()).sums)


@needs_gpu
def test_a_graph_of_batches(device: torch.device) -> None:
    source = torch.stack([cloud(300, seed) for seed in range(4)]).to(device)
    target, mask = source + 0.02, torch.rand(4, 300).to(device) < 0.9
    start = torch.eye(4, dtype=torch.float64, device=device).repeat(4, 1, 1)

    def run() -> tuple[Tensor, ...]:
        found = ops.icp_batch(source, target, start, max_distance=0.1, target_mask=mask)
        near = ops.knn_batch(source, target, 5, points_mask=mask)
        normals = ops.neighbour_normals(target, near[1]), ops.estimate_normals(source[1])
        return found.transformations, *near, *normals, ops.morton_order(source[0]), *ops.knn(source[0], target[0], 3)

    graph, found = capture(run)
    start[:, 0, 3] = 0.01
    source.add_(0.005)
    graph.replay()
    torch.cuda.synchronize(device)
    for a, b in zip(found, run(), strict=True):  # type: ignore[call-overload]
        assert torch.equal(a, b)


@needs_gpu
def test_a_graph_of_soft_assignments(device: torch.device) -> None:
    problem = soft_problem(torch.stack([cloud(300, seed) for seed in range(2)]).to(device), sharpness=50.0)
    graph, found = capture(lambda: ops.soft_assignment(*problem))
    problem[0].add_(0.005)
    graph.replay()
    torch.cuda.synchronize(device)
    for a, b in zip(found, ops.soft_assignment(*problem), strict=True):  # type: ignore[call-overload]
        assert torch.equal(a, b)


def test_descriptors_of_an_index_on_a_device(device: torch.device) -> None:
    points = cloud(400, 14)
    normals = ops.estimate_normals(points.to(device))
    for describe in (ops.fpfh, ops.signatures):
        found = describe(ops.SearchIndex(points.to(device)), normals, 0.1)
        expected = on_host(lambda d=describe: d(ops.SearchIndex(points), normals.cpu(), 0.1))
        same((found,), (expected,), device)  # type: ignore[arg-type]


def test_the_global_search_answers_on_the_device(device: torch.device) -> None:
    a, b = torch.rand(40, 33).to(device), torch.rand(50, 33).to(device)
    assert all(x.device == device for x in (*ops.nearest_features(a, b), *ops.mutual_matches(a, b)))
    points = cloud(60, 15).to(device)
    poses, support = ops.propose_poses(points, points + 0.3, 0.01)
    surface = ops.Surface(points, ops.estimate_normals(points), cell=0.05, reach=0.2)
    options = {"iterations": 2, "first_distance": 0.2, "last_distance": 0.1}
    refined = ops.refine_poses(surface, surface, poses, **options)  # type: ignore[arg-type]
    judged = ops.judge_poses(surface, surface, poses, distance=0.1, normal_cosine=0.5, oriented=False, free_margin=0.0)
    assert all(x.device == device for x in (poses, support, refined, *vars(judged).values())) and len(poses)
