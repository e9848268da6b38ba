"""What gpu.py measures: clouds of clouds.py on the device, checked as the CPU's benchmarks check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import assignment
import clouds
import gpu_peers
import neighbours
import numpy as np
import radius
import roofline
import torch
import voxels
from harness import OURS, Call, Cases, Checked, Work
from oracle import Found, Oracle
from scipy.spatial import cKDTree
from torch import Tensor

from dlc_reg import _core, ops
from dlc_reg.manifold import SE3


@dataclass(frozen=True)
class Sizes:
    growth: tuple[int, ...]
    middle: int
    large: int
    pairs: int
    points: int
    soft: tuple[int, int]
    backward: int


FULL = Sizes((1_000, 10_000, 100_000, 1_000_000, 10_000_000), 100_000, 1_000_000, 256, 1024, (1024, 1024), 64)
DRY = Sizes((300, 900), 600, 900, 2, 1024, (3, 16), 2)
K, NEIGHBOURS, VOXEL, DISTANCE, ITERATIONS = 16, 20, 0.03, 0.2, 20
SAMPLE, ROUNDING, PART = 20_000, 1e-6, 64


def on(device: torch.device, points: clouds.Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32)).to(device)


def nearest(device: torch.device, target: clouds.Array, queries: clouds.Array, ready: bool = False) -> Work:
    oracle = Oracle(target.astype(np.float32), queries.astype(np.float32))
    costs = [roofline.search(len(queries), len(target))] + ([] if ready else [roofline.build(len(target))])
    contenders = gpu_peers.searchers(on(device, queries), on(device, target), ready)

    def check(name: str, indices: Tensor) -> Checked:
        return oracle(name, Found(indices.cpu().numpy()))

    return Work(len(target), contenders, check, roofline.both(*costs))


def sampled(device: torch.device, kind: str, n: int, how: str, ready: bool = False) -> Work:
    return nearest(device, clouds.cloud(kind, n, 0), clouds.away(clouds.cloud(kind, n, 1), how), ready)


def scanned(device: torch.device) -> Work:
    target, queries = clouds.scans([], 0)
    return nearest(device, target, clouds.away(queries, "near"))


def normals(device: torch.device, n: int, kind: str = "surface") -> Work:
    points = clouds.cloud(kind, n, 0)
    true = neighbours.Normals(points, K)
    cost = roofline.both(roofline.build(n), roofline.search(n, n, K), roofline.geometry(n, K))
    contenders = gpu_peers.normals(on(device, points), K)
    return Work(n, contenders, lambda name, answer: true(name, answer.cpu().numpy()), cost)


def downsampling(device: torch.device, n: int) -> Work:
    points = clouds.cloud("surface", n, 0)
    true = voxels.Means(points, VOXEL)
    names = {OURS: OURS, "Open3D": "Open3D tensor"}  # whose grids they are
    contenders = gpu_peers.voxels(on(device, points), VOXEL)
    return Work(
        n, contenders, lambda name, answer: true(names[name], answer.cpu().numpy()), roofline.voxels(n, min(n, 33_000))
    )


def balls(device: torch.device, n: int) -> Work:
    points = clouds.cloud("surface", n, 0).astype(np.float32)
    limit = radius.radius_for(points.astype(np.float64), NEIGHBOURS)
    true = radius.Neighbours(points, limit)

    def check(name: str, answer: tuple[Tensor, Tensor, Tensor | None]) -> Checked:
        return true(name, radius.Balls(*(None if x is None else x.cpu().numpy() for x in answer)))

    cost = roofline.both(roofline.build(n), roofline.search(n, n, NEIGHBOURS))
    return Work(n, gpu_peers.balls(on(device, points), limit), check, cost)


def pair(device: torch.device, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source in Morton order, target and its normals, T_target_source."""
    moved, truth = clouds.start(clouds.surface(n, 1)[0])
    target, true_normals = clouds.surface(n, 0)
    source = on(device, moved)
    return source[ops.morton_order(source)], on(device, target), on(device, true_normals), torch.from_numpy(truth)


def linearisation(device: torch.device, n: int, how: str) -> Work:
    """One iteration, "near" at the true pose or "far" at the start; against SciPy's tree and NumPy's sums."""
    source, target, given, truth = pair(device, n)
    pose = truth if how == "near" else torch.eye(4, dtype=torch.float64)
    index = ops.SearchIndex(target)
    p, q, m = (x.cpu().double() for x in (source, target, given))
    moved = p @ pose[:3, :3].T + pose[:3, 3]

    def check(name: str, found: ops.Linearization) -> Checked:
        del name
        indices = found.indices.cpu()
        rows = indices >= 0
        at = indices[rows]
        some = np.random.default_rng(0).permutation(n)[:SAMPLE]
        least = cKDTree(q.numpy(), balanced_tree=False, compact_nodes=False).query(moved[some].numpy())[0]
        own = torch.where(rows, (moved - q[indices.clamp(min=0)]).norm(dim=1), DISTANCE)[some].numpy()
        wrong = int((np.abs(own - np.minimum(least, DISTANCE)) > ROUNDING).sum())
        r = ((moved[rows] - q[at]) * m[at]).sum(1)
        jacobian = torch.cat([torch.linalg.cross(moved[rows], m[at]), m[at]], 1)
        hessian, gradient = jacobian.T @ jacobian, jacobian.T @ r
        off = float(torch.stack([found.hessian - hessian, (found.gradient - gradient).expand(6, 6)]).abs().max())
        off /= float(hessian.abs().max())
        return Checked(wrong == 0 and off < 1e-9, f"sums to {off:.0e}, {wrong} of {len(some)} neighbours wrong")

    def call() -> ops.Linearization:
        return ops.linearize("point_to_plane", source, index, pose, max_distance=DISTANCE, target_normals=given)

    cost = roofline.both(roofline.search(n, n), roofline.Cost(n * 24.0, n * 84.0))  # the pairs gathered, 27 sums
    return Work(n, {OURS: call}, check, cost)


def registration(device: torch.device, n: int) -> Work:
    """ICP with normals given, from points to pose."""
    source, target, given, truth = pair(device, n)

    def ours() -> Tensor:
        index, pose = ops.SearchIndex(target), torch.eye(4, dtype=torch.float64)
        for _ in range(ITERATIONS):
            found = ops.linearize("point_to_plane", source, index, pose, max_distance=DISTANCE, target_normals=given)
            pose = SE3().retract(pose, torch.linalg.solve(found.hessian, -found.gradient))
        return pose

    def check(name: str, pose: Tensor) -> Checked:
        del name
        error = float((pose.double() - truth)[:3].norm())
        return Checked(error < 0.01, f"error {error:.1e}")

    contenders = gpu_peers.gather({
        OURS: lambda: ours,
        "Open3D": lambda: gpu_peers.open3d_icp(source, target, given, DISTANCE, ITERATIONS),
    })  # fmt: skip
    return Work(n, contenders, check, roofline.icp("point_to_plane", n, n, ITERATIONS))


def batch(device: torch.device, pairs: int, n: int, kind: str) -> Work:
    sources, targets, truths = [], [], []
    for seed in range(pairs):
        moved, truth = clouds.start(clouds.surface(n, 2 * seed)[0])
        sources.append(on(device, moved))
        targets.append(on(device, clouds.surface(n, 2 * seed + 1)[0]))
        truths.append(torch.from_numpy(truth))
    source, target, true = torch.stack(sources), torch.stack(targets), torch.stack(truths)

    def register() -> ops.BatchResult:
        return ops.icp_batch(source, target, kind=kind, max_distance=2 * DISTANCE, max_iterations=30)

    def check(name: str, answer: Any) -> Checked:
        del name
        poses = answer.transformations if isinstance(answer, ops.BatchResult) else answer
        error = (poses.cpu().double() - true)[:, :3].flatten(1).norm(dim=1)
        right = float((error < (0.05 if kind == "point_to_plane" else 0.15)).double().mean())  # which creeps along
        return Checked(right > 0.9, f"{right:.0%} right, median error {float(error.median()):.1e}")

    makers: dict[str, Callable[[], Call]] = {OURS: lambda: register}
    if kind == "point_to_point":
        makers["PyTorch3D"] = lambda: gpu_peers.pytorch3d_icp(source, target, 30)
    iterations = float(register().iterations.double().mean())
    cost = roofline.small_icps(kind, pairs, n, iterations, NEIGHBOURS if kind == "point_to_plane" else 0)
    return Work(n, gpu_peers.gather(makers), check, cost)


def problem(device: torch.device, pairs: int, n: int) -> dict[str, Tensor]:
    """assignment.py's inputs, made where they are needed: a billion affinities take long to come over."""
    some, _ = assignment.inputs((pairs, n, 1, 1), 0)
    random = torch.Generator(device).manual_seed(0)
    given = {name: value.to(device) for name, value in some.items()}
    given["target"] = torch.nn.functional.normalize(torch.randn(pairs, n, 3, device=device, generator=random), dim=2)
    given["affinity"] = torch.randn(pairs, n, n, device=device, generator=random)
    given["target_weight"] = given["source_weight"]
    return given


def pairs_of(given: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {name: value[:, part] if name == "poses" else value[part] for name, value in given.items()}


def soft_steps(device: torch.device, pairs: int, n: int, steps: int = 20) -> Work:
    given = problem(device, pairs, n)

    def ours() -> Tensor:
        pose = given["poses"]
        for _ in range(steps):
            pose = ops.soft_assignment(**(given | {"poses": pose}))[1]
        return pose

    def plain(dtype: torch.dtype, count: int) -> Tensor:
        """In parts, whose temporaries fit."""
        found = []
        for at in range(0, count, PART):
            data = pairs_of(given, slice(at, min(at + PART, count)))
            for _ in range(steps):
                data["poses"] = assignment.plain(data, True, dtype)[1]
            found.append(data["poses"])
        return torch.cat(found, 1)

    def check(name: str, pose: Tensor) -> Checked:
        del name
        off = float((pose[:, :2].double() - plain(torch.float64, 2)).abs().max())
        return Checked(off < assignment.POSE, f"poses to {off:.0e}")

    contenders: dict[str, Call] = {OURS: ours, "plain torch": lambda: plain(torch.float32, pairs)}
    once = roofline.assignment(pairs * n * n, True)
    return Work(n, contenders, check, roofline.Cost(steps * once.bytes, steps * once.operations))


def soft_gradient(device: torch.device, pairs: int, n: int) -> Work:
    """The energy, and its gradient by the affinities."""
    given = problem(device, pairs, n)

    def gradient(energy: Callable[[dict[str, Tensor]], Tensor], data: dict[str, Tensor]) -> Tensor:
        watched = data | {"affinity": data["affinity"].detach().requires_grad_()}
        return torch.autograd.grad(energy(watched).sum(), watched["affinity"])[0]

    def plain(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda data: assignment.energies(data, True, dtype)

    few = pairs_of(given, slice(2))

    def check(name: str, found: Tensor) -> Checked:
        del name
        true = gradient(plain(torch.float64), few)
        off = float((found[:2].double() - true).abs().max() / true.abs().max())
        return Checked(off < 1e-4, f"gradient to {off:.0e}")

    contenders: dict[str, Call] = {
        OURS: lambda: gradient(lambda data: ops.soft_assignment(**data, moments=False)[0], given),
        "plain torch": lambda: gradient(plain(torch.float32), given),
    }
    once = roofline.assignment(pairs * n * n, True)
    written = roofline.Cost(4.0 * pairs * n * n + once.bytes, once.operations)
    return Work(n, contenders, check, roofline.both(once, written))


def cases(device: torch.device, sizes: Sizes, largest: int) -> Cases:
    """What has targets comes first, the largest clouds last: time may run out."""
    found: Cases = {}

    def add(name: str, make: Callable[..., Work], *arguments: Any) -> None:
        found[name] = lambda: make(device, *arguments)

    def search(kind: str, n: int, how: str, ready: bool = False) -> None:
        add(f"1-NN {kind} {how}{' built' if ready else ''}, {n:,} points", sampled, kind, n, how, ready)

    growing = [n for n in sizes.growth if n <= largest]
    for n in growing:
        if n <= sizes.large:
            search("surface", n, "near")
    for n in (sizes.middle, sizes.large):
        add(f"point-to-plane linearisation near, {n:,} points", linearisation, n, "near")
    pairs, points = sizes.soft
    add(f"20 soft steps, {pairs} pairs of {points} points", soft_steps, pairs, points)
    add(f"point-to-plane linearisation far, {sizes.middle:,} points", linearisation, sizes.middle, "far")
    add(f"point-to-plane ICP, {sizes.middle:,} points, {ITERATIONS} iterations", registration, sizes.middle)
    for kind in ("point_to_plane", "point_to_point"):
        add(f"{sizes.pairs} ICPs {kind}, {sizes.points} points", batch, sizes.pairs, sizes.points, kind)
    for n in (sizes.middle, sizes.large):
        add(f"normals of {K}, {n:,} points", normals, n)
        add(f"voxels, {n:,} points", downsampling, n)
        add(f"radius for {NEIGHBOURS}, {n:,} points", balls, n)
    add(f"normals of {K} on the street, {sizes.middle:,} points", normals, sizes.middle, "lidar")
    search("surface", sizes.large, "far")
    search("surface", sizes.large, "near", True)
    for kind in ("uniform", "lidar"):
        search(kind, sizes.large, "near")
    add("1-NN bunny near", scanned)
    if device.type == "cuda" or _core.CUDA_EMULATED:  # the host's energies have no gradient
        name = f"soft energy and gradient, {sizes.backward} pairs of {points} points"
        add(name, soft_gradient, sizes.backward, points)
    for n in growing:
        if n > sizes.large:
            search("surface", n, "near")
    return found
