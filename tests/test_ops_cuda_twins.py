"""The CUDA operators against the readable twins in float64, and at the edges: nothing to do, few points, masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_ops_cuda import DEVICES, assignment, cloud, host, on, rigid, same
from torch import Tensor

from dlc_reg import ops
from dlc_reg.ops import _cuda, _hypotheses_reference, _reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not DEVICES, reason="no CUDA device, or a build without kernels")]

POSE = rigid(torch.tensor([0.02, -0.03, 0.01, 0.01, 0.0, 0.02], dtype=torch.float64))
SCALE = 0.02


@pytest.fixture(params=DEVICES or ["none"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    yield from on(request.param, monkeypatch)


@pytest.fixture
def only_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared with a twin must not be answered by one."""
    monkeypatch.delattr(_cuda, "_reference")


def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "takes", lambda tensor: False)


# --- against the twins in float64 -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("only_the_device")
@pytest.mark.parametrize(("k", "limit"), [(5, None), (20, None), (64, 0.1)])
def test_normals_and_covariances_are_the_twins(device: torch.device, k: int, limit: float | None) -> None:
    points = cloud(800, 13)
    arguments = points.double(), k, float("inf") if limit is None else limit
    covariances = ops.estimate_covariances(points.to(device), k, max_distance=limit).cpu().double()
    expected = _reference.estimate_covariances(*arguments)
    torch.testing.assert_close(covariances, expected, rtol=1e-5, atol=1e-7)
    normals = ops.estimate_normals(points.to(device), k, max_distance=limit).cpu().double()
    spread = torch.linalg.eigvalsh(expected)
    clear = spread[:, 1] - spread[:, 0] > 0.1 * spread[:, 2]
    assert clear.float().mean() > 0.5
    alike = (normals * _reference.estimate_normals(*arguments)).sum(1)[clear]
    torch.testing.assert_close(alike.abs(), torch.ones_like(alike), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [0.03, 0.4, 10.0])
def test_voxels_are_the_twins(device: torch.device, size: float) -> None:
    points = cloud(900, 14)
    means, inverse = (x.cpu() for x in ops.voxel_groups(points.to(device), size))
    expected, groups = _reference.voxel_groups(points.double(), size)
    assert torch.equal(inverse, groups)
    torch.testing.assert_close(means.double(), expected, rtol=0, atol=1e-7)


def test_gradients_of_voxels_are_the_twins(device: torch.device) -> None:
    points, weight = cloud(200, 15).to(device).requires_grad_(), cloud(200, 16).to(device)
    means = ops.voxel_groups(points, 0.2)[0]
    (found,) = torch.autograd.grad((means * weight[: len(means)]).sum(), points)
    double = points.detach().cpu().double().requires_grad_()
    truth = _reference.voxel_groups(double, 0.2)[0]
    (expected,) = torch.autograd.grad((truth * weight[: len(means)].cpu().double()).sum(), double)
    assert found.device == device and expected.abs().max() > 0.1
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by", ["knn", "radius"])
def test_gradients_of_an_indexs_distances_are_the_twins(device: torch.device, by: str) -> None:
    points, query = cloud(3000, 17), cloud(80, 18)
    q = query.to(device).requires_grad_()
    index = ops.SearchIndex(points.to(device))
    distances = index.knn(q, 3, 0.05)[0] if by == "knn" else index.radius(q, 0.05)[0]
    (found,) = torch.autograd.grad(distances[distances.isfinite()].square().sum(), q)
    double = query.double().requires_grad_()
    if by == "knn":
        truth = _reference.knn(double, points.double(), 3, 0.05)[0]
    else:
        truth = _reference.radius_search(double, points.double(), 0.05)[0]
    (expected,) = torch.autograd.grad(truth[truth.isfinite()].square().sum(), double)
    assert found.device == device and expected.abs().max() > 0.01
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-4, atol=1e-6)


def scene(device: torch.device, kind: str, kernel: str, **options: object) -> tuple[ops.Linearization, dict[str, Any]]:
    """What the device makes of two clouds, and the corresponding pairs in float64 as the twin takes them."""
    source, target = cloud(500, 19), cloud(600, 20)
    turn = POSE[:3, :3]
    data: dict[str, Tensor] = {}
    for side, points in (("source", source), ("target", target)):
        data[f"{side}_normals"], data[f"{side}_covariances"] = (
            host(f"estimate_{what}", points)[0] for what in ("normals", "covariances")
        )
        data[f"{side}_covariances"] += 1e-4 * torch.eye(3)
    data |= {"source_intensities": torch.rand(500, 1), "target_intensities": torch.rand(600, 4)}
    there = {name: x.to(device) for name, x in data.items()}
    found = ops.linearize(
        kind, source.to(device), ops.SearchIndex(target.to(device)), POSE, max_distance=0.1, kernel=kernel,
        kernel_parameter=SCALE, **there,  # type: ignore[arg-type]
    )  # fmt: skip
    indices = found.indices.cpu()
    rows = indices >= 0
    at = indices[rows]
    pairs: dict[str, Any] = {"p": source.double()[rows] @ turn.T + POSE[:3, 3], "q": target.double()[at]}
    if kind in ("symmetric", "point_to_plane", "colored"):
        pairs["target_normals"] = data["target_normals"].double()[at]
    if kind == "symmetric":
        pairs["source_normals"] = data["source_normals"].double()[rows] @ turn.T
    if kind == "colored":
        pairs["intensities"] = (data["source_intensities"].double()[rows], data["target_intensities"].double()[at])
    if kind == "generalized":
        pairs["covariances"] = (
            data["target_covariances"].double()[at] + turn @ data["source_covariances"].double()[rows] @ turn.T
        )
    return found, pairs


@pytest.mark.parametrize("kernel", list(ops.KERNELS))
@pytest.mark.parametrize("kind", list(ops.KINDS))
def test_linearisations_are_the_twins_with_every_kernel(device: torch.device, kind: str, kernel: str) -> None:
    found, pairs = scene(device, kind, kernel)
    assert 200 < found.count == len(pairs["p"])
    if kind == "point_to_point":  # its own closed form: weighted moments
        length = (pairs["p"] - pairs["q"]).norm(dim=1)
        weight = _reference.robust_weight(kernel, SCALE, length)
        moments = found.moments()
        expected = (weight[:, None] * pairs["q"]).T @ pairs["p"]
        torch.testing.assert_close(moments.cross, expected, rtol=0, atol=1e-10 * float(weight.sum()))
        torch.testing.assert_close(moments.weight, weight.sum(), rtol=1e-10, atol=0)
        cost = _reference.robust_cost(kernel, SCALE, length).sum()
    else:
        hessian, gradient, cost = _reference.normal_equations(kind, kernel=kernel, kernel_parameter=SCALE, **pairs)
        size = float(hessian.abs().max())
        torch.testing.assert_close(found.hessian, hessian, rtol=0, atol=1e-10 * size)
        torch.testing.assert_close(found.gradient, gradient, rtol=0, atol=1e-10 * size)
    assert found.cost == pytest.approx(float(cost), rel=1e-10)


@pytest.mark.parametrize("kind", ["point_to_plane", "point_to_point"])
def test_batched_icp_is_the_twins(device: torch.device, kind: str) -> None:
    """Its fixed points are those of searches and steps in float64."""
    truth = rigid(torch.tensor([0.05, -0.04, 0.1, 0.02, 0.01, -0.01], dtype=torch.float64))
    source = torch.stack([cloud(200, seed) for seed in range(2)])
    target = torch.stack([cloud(250, seed + 9) @ truth[:3, :3].T.float() + truth[:3, 3].float() for seed in range(2)])
    given = (source.to(device), target.to(device))
    found = ops.icp_batch(*given, kind=kind, max_distance=0.2, max_iterations=200, tolerance=0.0)
    for b in range(2):
        pose = found.transformations[b].cpu()
        p = source[b].double() @ pose[:3, :3].T + pose[:3, 3]
        distances, indices = (x[:, 0] for x in _reference.knn(p, target[b].double(), 1, 0.2))
        rows = indices >= 0
        q = target[b].double()[indices[rows]]
        if kind == "point_to_plane":
            normals = _reference.estimate_normals(target[b].double(), 20)[indices[rows]]
            hessian, gradient, _ = _reference.normal_equations(kind, p[rows], q, target_normals=normals)
            step = torch.linalg.solve(hessian, gradient).abs().max()
        else:
            step = (_hypotheses_reference.fit(p[rows], q) - torch.eye(4)).abs().max()
        assert step < 1e-5
        assert float(found.fitness[b]) == pytest.approx(float(rows.double().mean()), abs=1e-12)
        assert float(found.inlier_rmse[b]) == pytest.approx(float(distances[rows].square().mean().sqrt()), rel=1e-5)


# --- at the edges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [5, 3000])
def test_no_queries_have_no_neighbours(device: torch.device, m: int) -> None:
    query, points = torch.empty(0, 3), cloud(m, 21)
    expected = host("radius_search", query, points, 0.1)
    assert [x.tolist() for x in expected] == [[], [], [0]]
    same(ops.radius_search(query.to(device), points.to(device), 0.1), expected, device)
    index = ops.SearchIndex(points.to(device))
    same(index.radius(query.to(device), 0.1), expected, device)
    same(index.knn(query.to(device), 4), host("knn", query, points, 4), device)


@pytest.mark.parametrize("kind", list(ops.KINDS))
def test_no_points_linearise_to_zero(device: torch.device, kind: str) -> None:
    target = cloud(50, 22).to(device)
    data = {f"{side}_normals": torch.zeros(n, 3, device=device) for side, n in (("source", 0), ("target", 50))}
    data |= {f"{side}_covariances": torch.zeros(n, 6, device=device) for side, n in (("source", 0), ("target", 50))}
    data |= {"source_intensities": target[:0, :1], "target_intensities": torch.zeros(50, 4, device=device)}
    for given in (None, torch.empty(0, dtype=torch.int64, device=device)):
        found = ops.linearize(
            kind, target[:0], ops.SearchIndex(target), POSE, max_distance=0.1, correspondences=given, **data
        )
        assert found.count == 0 and torch.equal(found.sums, torch.zeros_like(found.sums))
        assert found.indices.shape == found.distances.shape == (0,) and found.indices.device == device


@pytest.mark.parametrize(("batch", "n", "m"), [(0, 20, 30), (2, 0, 30), (2, 20, 0), (0, 0, 0)])
@pytest.mark.parametrize("kind", ["point_to_plane", "point_to_point"])
def test_no_clouds_and_clouds_without_points(
    device: torch.device, kind: str, batch: int, n: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = torch.rand(batch, n, 3), torch.rand(batch, m, 3)
    found = ops.icp_batch(source.to(device), target.to(device), kind=kind, max_distance=0.2)
    on_the_host(monkeypatch)
    expected = ops.icp_batch(source, target, kind=kind, max_distance=0.2)
    assert len(expected.fitness) == batch
    for name, value in vars(expected).items():
        same((getattr(found, name),), (value,), device)


@pytest.mark.parametrize("kind", ["point_to_plane", "point_to_point"])
def test_masked_points_may_hold_anything(device: torch.device, kind: str) -> None:
    source = torch.stack([cloud(150, seed) for seed in range(3)])
    target = torch.stack([cloud(140, seed + 9) for seed in range(3)]) + 0.02
    sizes = [(150, 140), (90, 60), (0, 140)]
    masks = [torch.arange(n) < torch.tensor([s[side] for s in sizes])[:, None] for side, n in enumerate((150, 140))]
    clouds = [x.masked_fill(~mask[:, :, None], float("nan")) for x, mask in zip((source, target), masks, strict=True)]
    given = [x.to(device) for x in (*clouds, *masks)]
    found = ops.icp_batch(*given[:2], source_mask=given[2], target_mask=given[3], kind=kind, max_distance=0.3)
    for b, (n, m) in enumerate(sizes):
        alone = (x[b : b + 1, :count].to(device) for x, count in ((source, n), (target, m)))
        one = ops.icp_batch(*alone, kind=kind, max_distance=0.3)
        torch.testing.assert_close(found.transformations[b], one.transformations[0], rtol=0, atol=1e-9)
        assert found.iterations[b] == one.iterations[0] and found.fitness[b] == one.fitness[0]
    assert float(found.fitness[0]) > 0.5 and float(found.fitness[2]) == 0.0


@pytest.mark.parametrize("poses", [0, 2])
def test_no_pairs_and_no_poses_have_no_energies(device: torch.device, poses: int) -> None:
    data = assignment(device, 8, 9, -2.0)
    data = {name: x[:, :0] if name == "poses" else x[:0] for name, x in data.items()} if poses else data
    data["poses"] = data["poses"][:poses]
    energy, after = ops.soft_assignment(**data)
    assert after is not None
    same((energy, after), host("soft_assignment", **{name: x.cpu() for name, x in data.items()}), device)
    assert energy.shape == (poses, 0 if poses else 3)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_normals_of_fewer_points_than_neighbours(device: torch.device, n: int) -> None:
    points = cloud(n, 23)
    for function in ("estimate_normals", "estimate_covariances"):
        for k in (8, 64, 100):
            found = getattr(ops, function)(points.to(device), k).cpu()
            torch.testing.assert_close(found, host(function, points, k)[0], rtol=1e-5, atol=1e-6)
    if n < 3:
        assert torch.equal(ops.estimate_normals(points.to(device), 8).cpu(), torch.tensor([[0.0, 0.0, 1.0]] * n))
