"""Streams and devices as docs/architecture.md states them. All of it needs GPUs, the guard's part two of them."""

from __future__ import annotations

import pytest
import torch
from test_ops_cuda import assignment, cloud, host, rigid, same

from dlc_reg import _core, ops
from dlc_reg.ops import _validate

GPUS = torch.cuda.device_count() if _core.CUDA_BUILT and not _core.CUDA_EMULATED else 0
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 1, reason="no CUDA device, or a build without kernels")]


@pytest.fixture
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host, which waits for a stream to check numbers, would put in order what streams leave unordered."""
    monkeypatch.setattr(_validate, "finite", lambda *_: None)


@pytest.mark.usefixtures("no_checks")
def test_an_index_is_queried_on_another_stream_after_an_event() -> None:
    device = torch.device("cuda", 0)
    points, query = cloud(300_000, 1), cloud(20_000, 2)
    there = points.to(device), query.to(device)
    torch.cuda.synchronize(device)
    building, querying = torch.cuda.Stream(device), torch.cuda.Stream(device)
    with torch.cuda.stream(building):
        torch.cuda._sleep(100_000_000)  # tens of milliseconds: a query that did not wait would find no tree
        index = ops.SearchIndex(there[0])
        built = building.record_event()
    with torch.cuda.stream(querying):
        querying.wait_event(built)
        found = index.knn(there[1], 4)
        linearized = ops.linearize("point_to_point", there[1], index, torch.eye(4).double(), max_distance=0.1)
    querying.synchronize()
    same(found, host("knn", query, points, 4), device)
    assert torch.equal(linearized.indices[linearized.indices >= 0], found[1][:, 0][found[0][:, 0] < 0.1])


@pytest.mark.usefixtures("no_checks")
def test_work_follows_the_current_stream() -> None:
    device = torch.device("cuda", 0)
    points = cloud(5000, 3)
    query = torch.zeros(100, 3, device=device)
    index = ops.SearchIndex(points.to(device))
    late = cloud(100, 4).to(device)
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        query.copy_(late)  # seen only by what is queued behind it
        found = index.knn(query, 2)
    stream.synchronize()
    same(found, host("knn", late.cpu(), points, 2), device)


@pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices")
def test_tensors_of_another_device_than_the_current_one() -> None:
    torch.cuda.set_device(0)
    device = torch.device("cuda", 1)
    points, query = cloud(4000, 5), cloud(6000, 6)
    p, q = points.to(device), query.to(device)
    same(ops.knn(q, p, 3), host("knn", query, points, 3), device)
    same(ops.knn(q[:9], p[:50], 3), host("knn", query[:9], points[:50], 3), device)
    same(ops.radius_search(q, p, 0.05), host("radius_search", query, points, 0.05), device)
    same(ops.voxel_groups(p, 0.1), host("voxel_groups", points, 0.1), device)
    same((ops.morton_order(p),), host("morton_order", points), device)
    (normals,) = host("estimate_normals", points)
    torch.testing.assert_close(ops.estimate_normals(p).cpu(), normals, rtol=1e-5, atol=1e-6)
    pose = rigid(torch.tensor([0.01, 0.0, 0.02, 0.0, 0.01, 0.0], dtype=torch.float64))
    found = ops.linearize(
        "point_to_plane", q, ops.SearchIndex(p), pose, max_distance=0.1, target_normals=normals.to(device)
    )
    expected = ops.linearize(
        "point_to_plane", query, ops.SearchIndex(points), pose, max_distance=0.1, target_normals=normals
    )
    same((found.indices,), (expected.indices,), device)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-9, atol=1e-9 * float(expected.sums.abs().max()))
    batch = ops.icp_batch(q[None, :300], p[None, :300], max_distance=0.3)
    on_host = ops.icp_batch(query[None, :300], points[None, :300], max_distance=0.3)
    torch.testing.assert_close(batch.transformations.cpu(), on_host.transformations, rtol=0, atol=1e-6)
    data = assignment(device, 40, 70, -2.0)
    (energy, _), wanted = ops.soft_assignment(**data), host("soft_assignment", **{k: x.cpu() for k, x in data.items()})
    assert energy.device == device
    torch.testing.assert_close(energy.cpu(), wanted[0], rtol=3e-6, atol=3e-6)
    assert torch.cuda.current_device() == 0
