"""The CUDA operators against the host's: one suite, run on a GPU where there is one.

Where the module was built with DLC_REG_CUDA=EMULATED the same kernels run on the host, over host memory: then the suite
tests them, and all of the Python around them, without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dlc_reg import _core, ops
from dlc_reg.manifold import so3_exp
from dlc_reg.ops import _cuda, _reference
from dlc_reg.registration.assignment import Assignment, SoftAssignment

DEVICES = [f"cuda:{i}" for i in range(min(2, torch.cuda.device_count()))] if _core.CUDA_BUILT else []
if _core.CUDA_EMULATED:
    DEVICES = ["emulated"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not DEVICES, reason="no CUDA device, or a build without kernels")]


def on(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """One of DEVICES, for the length of a test."""
    if name == "emulated":
        monkeypatch.setattr(_cuda, "takes", lambda tensor: True)
        yield torch.device("cpu")
        return
    chosen = torch.device(name)
    stream = torch.cuda.Stream(chosen)  # not the default one
    stream.wait_stream(torch.cuda.default_stream(chosen))
    with torch.cuda.stream(stream):
        yield chosen
    torch.cuda.synchronize(chosen)


@pytest.fixture(params=DEVICES or ["none"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    yield from on(request.param, monkeypatch)


def cloud(n: int, seed: int, scale: float = 1.0) -> Tensor:
    points = scale * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))
    points[:, 2] = 0.3 * (7 * points[:, 0]).sin() * (5 * points[:, 1]).cos()
    return points


def rigid(twist: Tensor) -> Tensor:
    """(..., 6) rotation vector and translation -> (..., 4, 4)."""
    pose = torch.zeros(*twist.shape[:-1], 4, 4, dtype=twist.dtype)
    pose[..., :3, :3], pose[..., :3, 3], pose[..., 3, 3] = so3_exp(twist[..., :3]), twist[..., 3:], 1
    return pose


def host(function: str, *arguments: object, **options: object) -> tuple[Tensor, ...]:
    """What the host answers, even where the kernels are emulated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "takes", lambda tensor: False)
        answer = getattr(ops, function)(*arguments, **options)
    return answer if isinstance(answer, tuple) else (answer,)


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], device: torch.device) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.device == device and a.dtype == b.dtype and torch.equal(a.cpu(), b)


@pytest.mark.parametrize("limit", [None, 0.05])
@pytest.mark.parametrize("k", [1, 8, 20, 64, 70])
@pytest.mark.parametrize(("n", "m"), [(0, 3), (30, 5), (500, 900), (300, 3000)])
def test_knn_is_the_hosts(device: torch.device, n: int, m: int, k: int, limit: float | None) -> None:
    query, points = cloud(n, 1), cloud(m, 2)
    found = ops.knn(query.to(device), points.to(device), k, max_distance=limit)
    expected = host("knn", query, points, k, max_distance=limit)
    if k <= 64:
        return same(found, expected, device)
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1e-6, atol=0)  # the twin, in torch's rounding
    assert (found[1].cpu() == expected[1]).float().mean() > 0.99 if n else True


def test_equal_distances_come_by_index(device: torch.device) -> None:
    grid = torch.stack(torch.meshgrid(*[torch.arange(6.0)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
    points = torch.cat([grid, grid[::7], grid] * 6)  # more than are compared without a tree
    query = torch.cat([grid, grid + 0.5])
    same(ops.knn(query.to(device), points.to(device), 12), host("knn", query, points, 12), device)


def test_many_queries_in_any_order(device: torch.device) -> None:
    query, points = cloud(6000, 3)[torch.randperm(6000, generator=torch.Generator().manual_seed(0))], cloud(2500, 4)
    same(ops.knn(query.to(device), points.to(device)), host("knn", query, points), device)


@pytest.mark.parametrize("radius", [0.0, 0.03, 3.0])
def test_radius_search_is_the_hosts(device: torch.device, radius: float) -> None:
    query, points = cloud(200, 5), cloud(700, 6)
    found = ops.radius_search(query.to(device), points.to(device), radius)
    same(found, host("radius_search", query, points, radius), device)


def test_ragged_batches(device: torch.device) -> None:
    sizes, counts = [40, 0, 300, 1], [3, 5, 0, 200]
    points, query = cloud(sum(sizes), 7), cloud(sum(counts), 8)
    splits = [torch.tensor([0, *x]).cumsum(0).to(device) for x in (counts, sizes)]
    found = _cuda.knn_ragged(query.to(device), splits[0], points.to(device), splits[1], 4, float("inf"), 200)
    at = (0, 0)
    for count, size in zip(counts, sizes, strict=True):
        rows = slice(at[0], at[0] + count)
        expected = _reference.knn(query[rows], points[at[1] : at[1] + size], 4)
        torch.testing.assert_close(found[0][rows].cpu(), expected[0], rtol=2e-7, atol=0)
        assert torch.equal(found[1][rows].cpu(), expected[1])
        at = (at[0] + count, at[1] + size)


def test_gradients_of_distances(device: torch.device) -> None:
    gradients = []
    for place in (device, torch.device("cpu")):
        query = cloud(50, 9).to(place).requires_grad_()
        points = cloud(80, 10).to(place).requires_grad_()
        if place == device:
            loss = ops.knn(query, points, 3)[0].square().sum() + ops.radius_search(query, points, 0.2)[0].sum()
        else:
            loss = (
                _reference.knn(query, points, 3)[0].square().sum()
                + _reference.radius_search(query, points, 0.2)[0].sum()
            )
        gradients.append([g.cpu() for g in torch.autograd.grad(loss, (query, points))])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_index_answers_like_the_functions(device: torch.device) -> None:
    points, query = cloud(3000, 11).to(device), cloud(100, 12).to(device)
    index = ops.SearchIndex(points)
    for found, expected in (
        (index.knn(query, 3, 0.1), ops.knn(query, points, 3, max_distance=0.1)),
        (index.radius(query, 0.1), ops.radius_search(query, points, 0.1)),
    ):
        same(found, tuple(x.cpu() for x in expected), device)


@pytest.mark.parametrize(("k", "limit"), [(5, None), (20, None), (64, 0.1)])
def test_normals_and_covariances_are_the_hosts(device: torch.device, k: int, limit: float | None) -> None:
    points = cloud(800, 13)
    for function in ("estimate_normals", "estimate_covariances"):
        found = getattr(ops, function)(points.to(device), k, max_distance=limit).cpu()
        (expected,) = host(function, points, k, max_distance=limit)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [0.001, 0.1, 10.0])
def test_voxels_are_the_hosts(device: torch.device, size: float) -> None:
    points = cloud(900, 14)
    same(ops.voxel_groups(points.to(device), size), host("voxel_groups", points, size), device)
    same((ops.morton_order(points.to(device)),), host("morton_order", points), device)
    with pytest.raises(ValueError, match=r"2\^21 voxels"):
        ops.voxel_groups(points.to(device), 1e-9)


@pytest.mark.parametrize("kernel", ["l2", "huber"])
@pytest.mark.parametrize("kind", list(ops.KINDS))
@pytest.mark.parametrize("search", [True, False])
def test_linearisations_are_the_hosts(device: torch.device, kind: str, kernel: str, search: bool) -> None:
    source, target = cloud(700, 15), cloud(600, 16)
    pose = rigid(torch.tensor([0.02, -0.03, 0.01, 0.01, 0.0, 0.02], dtype=torch.float64))
    given = None if search else torch.arange(700) % 601 - 1
    data: dict[str, Tensor] = {}
    for side, points in (("source", source), ("target", target)):
        data[f"{side}_normals"], data[f"{side}_covariances"] = (
            host(f"estimate_{what}", points)[0] for what in ("normals", "covariances")
        )
    data |= {"source_intensities": torch.rand(700, 1), "target_intensities": torch.rand(600, 4)}
    answers = []
    for place in (device, None):
        with pytest.MonkeyPatch.context() as patch:
            if place is None:
                patch.setattr(_cuda, "takes", lambda tensor: False)
            to = place or torch.device("cpu")
            there = {name: x.to(to) for name, x in data.items()}
            index = ops.SearchIndex(target.to(to))
            answers.append(
                ops.linearize(
                    kind,
                    source.to(to),
                    index,
                    pose,
                    max_distance=0.1,
                    kernel=kernel,
                    kernel_parameter=0.02,
                    correspondences=None if given is None else given.to(to),
                    **there,  # type: ignore[arg-type]
                )
            )
    found, expected = answers
    same((found.indices, found.distances), (expected.indices, expected.distances), device)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-9, atol=1e-9 * float(expected.sums.abs().max()))


@pytest.mark.parametrize("kind", ["point_to_plane", "point_to_point"])
def test_batched_icp_is_the_hosts(device: torch.device, kind: str) -> None:
    source = torch.stack([cloud(300, seed) for seed in range(3)])
    pose = rigid(torch.tensor([0.05, -0.04, 0.1, 0.02, 0.01, -0.01])).float()
    target = torch.stack([cloud(250, seed + 9) @ pose[:3, :3].T + pose[:3, 3] for seed in range(3)])
    masks = {"source_mask": torch.rand(3, 300) < 0.9, "target_mask": torch.rand(3, 250) < 0.9}
    options = {"max_distance": 0.2, "kind": kind}
    found = ops.icp_batch(
        source.to(device), target.to(device), **{k: v.to(device) for k, v in masks.items()}, **options
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "takes", lambda tensor: False)
        expected = ops.icp_batch(source, target, **masks, **options)
    assert torch.equal(found.iterations.cpu(), expected.iterations) and found.converged.device == device
    for name in ("transformations", "fitness", "inlier_rmse"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=0, atol=1e-6)


def assignment(device: torch.device, n: int, m: int, level: float, factored: bool = False) -> dict[str, Tensor]:
    """Arguments of `soft_assignment`; affinities by the fields of `ops.Affinity` if `factored`."""
    g = torch.Generator().manual_seed(n + m)
    twist = 0.1 * torch.randn(2, 3, 6, dtype=torch.float64, generator=g)
    data = {
        "source": torch.randn(3, n, 3, generator=g),
        "target": torch.randn(3, m, 3, generator=g),
        "affinity": -torch.rand(3, n, m, generator=g),
        "poses": rigid(twist),
        "sharpness": torch.rand(3, dtype=torch.float64, generator=g) + 0.5,
        "outlier": level - torch.rand(3, dtype=torch.float64, generator=g),
        "source_weight": torch.rand(3, n, generator=g) / n,
        "target_weight": torch.rand(3, m, generator=g) / m,
    }
    data["affinity"][:, :, -1] = -3e4  # padding
    data["target_weight"][:, -1] = 0
    if factored:
        del data["affinity"]
        sizes = ((3, n, 5), (3, m, 5), (3, n), (3, m))
        factors = (torch.rand(size, generator=g) - 0.5 for size in sizes)
        data |= dict(zip(ops.Affinity._fields, factors, strict=True))
        data["target_bias"][:, -1] = -3e4
    return {name: x.to(device) for name, x in data.items()}


def assigned(data: dict[str, Tensor]) -> dict[str, Tensor | ops.Affinity]:
    """With the fields of `ops.Affinity` put together."""
    if "affinity" in data:
        return {**data}
    factors = ops.Affinity(*(data[name] for name in ops.Affinity._fields))
    return {name: x for name, x in data.items() if name not in ops.Affinity._fields} | {"affinity": factors}


@pytest.fixture
def short_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 rows."""
    monkeypatch.setattr("dlc_reg.ops._assignment_problem.STRIP", 1)


@pytest.mark.usefixtures("short_strips")
@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize(("n", "m", "level"), [(1, 2, -1.0), (70, 40, -2.0), (40, 600, -40.0), (40, 20, -150.0)])
def test_soft_assignment_is_the_hosts(
    device: torch.device, n: int, m: int, level: float, factored: bool, both_ways: bool
) -> None:
    data = assignment(device, n, m, level, factored)
    energy, after = ops.soft_assignment(**assigned(data), both_ways=both_ways)
    there = assigned({k: x.cpu() for k, x in data.items()})
    expected = host("soft_assignment", **there, both_ways=both_ways)
    assert after is not None and energy.device == after.device == device
    torch.testing.assert_close(energy.cpu(), expected[0], rtol=3e-6, atol=3e-6)
    if n > 3:
        torch.testing.assert_close(after.cpu(), expected[1], rtol=0, atol=3e-5)


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0)])
def test_factors_of_one_cloud_without_points(device: torch.device, n: int, m: int) -> None:
    data = assignment(device, 5, 5, -2.0, factored=True)
    for name, count in (("source", n), ("target", m)):
        for field in (name, f"{name}_weight", f"{name}_features", f"{name}_bias"):
            data[field] = data[field][:, :count]
    energy, _ = ops.soft_assignment(**assigned(data))
    expected, _ = host("soft_assignment", **assigned({k: x.cpu() for k, x in data.items()}))
    torch.testing.assert_close(energy.cpu(), expected, rtol=3e-6, atol=3e-6)


def test_the_networks_objective_takes_the_kernel(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: x.float() for name, x in assignment(device, 40, 70, -2.0).items()}
    omega, data = given.pop("poses"), Assignment(**given)
    kernel, calls = ops.soft_assignment, []
    monkeypatch.setattr(ops, "soft_assignment", lambda *a, **k: calls.append(a[0].device) or kernel(*a, **k))
    energy = SoftAssignment(both_ways=True)
    found = energy.value(omega, data), energy.step(omega, data)
    assert [place.type for place in calls] == [device.type] * 2
    watched = omega.clone().requires_grad_()
    for answer, by_torch in zip(found, (energy.value(watched, data), energy.step(watched, data)), strict=True):
        torch.testing.assert_close(answer, by_torch.detach(), rtol=1e-5, atol=3e-5)
    assert len(calls) == 2


@pytest.mark.parametrize("factored", [False, True])
def test_poses_in_turns(device: torch.device, monkeypatch: pytest.MonkeyPatch, factored: bool) -> None:
    from dlc_reg.ops import _cuda_assignment

    data = assigned(assignment(device, 20, 30, -2.0, factored))
    expected = ops.soft_assignment(**data)
    monkeypatch.setattr(_cuda_assignment, "SCRATCH", 1)
    for found, want in zip(ops.soft_assignment(**data), expected, strict=True):
        assert found is not None and want is not None
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("short_strips")
@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("factored", [False, True])
def test_gradients_of_soft_energies(device: torch.device, factored: bool, both_ways: bool) -> None:
    data = {name: x.requires_grad_() for name, x in assignment(device, 70, 35, -2.0, factored).items()}
    factors = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    energy, _ = ops.soft_assignment(**assigned(data), both_ways=both_ways)
    found = torch.autograd.grad((energy * factors.to(device)).sum(), list(data.values()), allow_unused=True)
    exact = {name: x.detach().cpu().double().requires_grad_() for name, x in data.items()}
    p, q, poses, beta = (exact[name] for name in ("source", "target", "poses", "sharpness"))
    o, u, v = (exact[name] for name in ("outlier", "source_weight", "target_weight"))
    if factored:
        f, g, r, c = (exact[name] for name in ops.Affinity._fields)
        a = torch.einsum("bic,bjc->bij", f, g) + r[:, :, None] + c[:, None, :]
    else:
        a = exact["affinity"]
    moved = p @ poses[..., :3, :3].mT + poses[..., None, :3, 3]
    logits = a - beta[:, None, None] * (moved[..., :, None, :] - q[:, None]).square().sum(-1)
    sides = [(u, logits), (v, logits.mT)][: 1 + both_ways]
    outlier = o[:, None, None].expand(2, 3, -1, 1)
    energies = [
        -(w * torch.cat([x, outlier.expand(-1, -1, x.shape[2], -1)], -1).logsumexp(-1)).sum(-1) for w, x in sides
    ]
    loss = (torch.stack(energies).mean(0) * factors).sum()
    expected = torch.autograd.grad(loss, list(exact.values()), allow_unused=True)
    for name, x, y in zip(data, found, expected, strict=True):
        want = torch.zeros_like(data[name], device="cpu") if y is None else y
        if name == "poses":
            want = want.clone()
        torch.testing.assert_close(
            x.cpu().double(), want.double(), rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_bad_values_are_refused(device: torch.device) -> None:
    points = cloud(20, 17)
    points[3, 1] = float("nan")
    for call in (
        lambda p: ops.knn(p, p),
        lambda p: ops.SearchIndex(p),
        lambda p: ops.voxel_groups(p, 0.1),
        lambda p: ops.estimate_normals(p),
        lambda p: ops.icp_batch(p[None], p[None], max_distance=None),
    ):
        with pytest.raises(ValueError, match="NaN or infinity"):
            call(points.to(device))
    with pytest.raises(ValueError, match="at most 64 on a CUDA device"):
        clean = cloud(20, 18)[None].to(device)
        ops.icp_batch(clean, clean, max_distance=None, neighbours=65)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph needs a GPU")
def test_a_graph_records_and_replays(device: torch.device) -> None:
    query, points = cloud(500, 19).to(device), cloud(5000, 20).to(device)
    index = ops.SearchIndex(points)
    index.knn(query, 4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        distances, indices = index.knn(query, 4)
    query.copy_(cloud(500, 21))
    graph.replay()
    torch.cuda.synchronize(device)
    same((distances, indices), host("knn", query.cpu(), points.cpu(), 4), device)
