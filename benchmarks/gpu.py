"""The CUDA operators timed on the GPU at hand, each checked first; run by gpu.sh.

Times are of CUDA events around whole calls, the device idle before each, medians with quartiles; contenders alternate.
A call whose answer's size depends on the data, or that returns sums to the host, waits for the device: that is part of
it. Beside each time: the least bytes it must move, and what they take at the bandwidth of a large copy measured here.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dlc_reg
from dlc_reg import ops

Call = Callable[[], Any]
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


@dataclass
class Row:
    case: str
    contender: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    least_ms: float | None
    target: str = ""


def surface(n: int, seed: int, device: torch.device) -> Tensor:
    """A wavy sheet of 3 by 3 m in random order."""
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))
    points[:, 2] = 0.1 * (7 * points[:, 0]).sin() * (5 * points[:, 1]).cos()
    return (3 * points).to(device)


def rotation(angle: float, device: torch.device) -> Tensor:
    pose = torch.eye(4, dtype=torch.float64, device=device)
    c, s = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    pose[0, 0] = pose[1, 1] = c
    pose[0, 1], pose[1, 0] = -s, s
    return pose


def milliseconds(call: Call) -> float:
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


class Bench:
    def __init__(self, repeats: int, pattern: str, device: torch.device) -> None:
        self.repeats, self.pattern, self.rows = repeats, pattern, list[Row]()
        big = torch.empty(1 << 28, dtype=torch.float32, device=device)
        other = torch.empty_like(big)
        times = [milliseconds(lambda: other.copy_(big)) for _ in range(12)][2:]
        self.bytes_per_ms = 2 * 4 * big.numel() / statistics.median(times)

    def __call__(
        self, case: str, contenders: dict[str, Call], least_bytes: float | None = None, target: str = ""
    ) -> None:
        """Times the contenders in turns; the first is ours. One that fails is left out, and that is said."""
        if self.pattern not in case:
            return
        ready = {}
        for name, call in contenders.items():
            try:
                for _ in range(2):
                    call()
                torch.cuda.synchronize()
                ready[name] = call
            except Exception as error:
                if name == "dlc_reg":
                    raise
                print(f"  {case}: {name} left out ({type(error).__name__}: {error})")
        times: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(self.repeats):
            for name, call in ready.items():
                times[name].append(milliseconds(call))
        least = None if least_bytes is None else least_bytes / self.bytes_per_ms
        for name, taken in times.items():
            quartiles = statistics.quantiles(taken, n=4)
            row = Row(case, name, statistics.median(taken), (quartiles[0], quartiles[2]), least)
            row.target = target if name == "dlc_reg" else ""
            self.rows.append(row)
            floor = "" if least is None else f"  memory alone {least:.3f}"
            print(
                f"  {case:44} {name:12} {row.median_ms:10.3f} ms [{quartiles[0]:.3f}, {quartiles[2]:.3f}]{floor}"
                f"  {row.target}"
            )


def peer(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        return None


def check_nearest(query: Tensor, points: Tensor, distances: Tensor) -> None:
    few = max(8, min(256, 200_000_000 // len(points)))  # of float64 rows that fit
    some = torch.randperm(len(query), device=query.device)[:few]
    truth = torch.cdist(query[some].double(), points.double()).amin(1)
    assert torch.allclose(distances[some, 0].double(), truth, rtol=1e-5, atol=1e-7), "a wrong neighbour"


def nearest(bench: Bench, device: torch.device, sizes: tuple[int, ...]) -> None:
    pytorch3d, torch_cluster = peer("pytorch3d.ops"), peer("torch_cluster")
    for n in sizes:
        query, points = surface(n, 0, device), surface(n, 1, device)
        check_nearest(query, points, ops.knn(query, points)[0])
        contenders: dict[str, Call] = {"dlc_reg": lambda q=query, p=points: ops.knn(q, p)}
        if n <= 10_000:
            contenders["torch.cdist"] = lambda q=query, p=points: torch.cdist(q, p).min(1)
        if pytorch3d and n <= 100_000:
            contenders["pytorch3d"] = lambda q=query, p=points: pytorch3d.knn_points(q[None], p[None])
        if torch_cluster and n <= 100_000:
            contenders["torch_cluster"] = lambda q=query, p=points: torch_cluster.knn(p, q, 1)
        target = {1_000_000: "target 2 ms", 10_000_000: "target 2 x memory alone"}.get(n, "")
        bench(f"1-NN, build included, {n}", contenders, n * (12 + 12 + 12), target)
        index = ops.SearchIndex(points)
        bench(f"1-NN, built, {n}", {"dlc_reg": lambda q=query, i=index: i.knn(q)}, n * (12 + 16 + 12))
    del query, points, index


def groups(bench: Bench, device: torch.device, n: int = 1_000_000) -> None:
    points = surface(n, 2, device)
    bench(f"kNN 16 + normals, {n}", {"dlc_reg": lambda: ops.estimate_normals(points, 16)}, n * (12 + 36))
    bench(f"voxels of 2 cm, {n}", {"dlc_reg": lambda: ops.voxel_groups(points, 0.02)}, n * (12 + 8))
    query = points[::10].contiguous()
    bench(f"radius 2 cm, {n // 10} in {n}", {"dlc_reg": lambda: ops.radius_search(query, points, 0.02)})


def icp(bench: Bench, device: torch.device, sizes: tuple[int, ...] = (100_000, 1_000_000), pairs: int = 256) -> None:
    for n in sizes:
        target = surface(n, 3, device)
        source = surface(n, 4, device)
        source = source[ops.morton_order(source)].contiguous()
        index, normals = ops.SearchIndex(target), ops.estimate_normals(target, 20)
        pose = rotation(0.01, torch.device("cpu"))

        def iteration(s: Tensor = source, i: ops.SearchIndex = index, m: Tensor = normals, t: Tensor = pose) -> Any:
            return ops.linearize("point_to_plane", s, i, t, max_distance=0.1, target_normals=m)

        assert iteration().count > 0.9 * n
        bench(
            f"point-to-plane linearisation, {n}", {"dlc_reg": iteration}, n * (12 + 16 + 12 + 12),
            "target 0.1 ms" if n == 100_000 else "",
        )  # fmt: skip
    clouds = torch.stack([surface(1024, seed, device) for seed in range(pairs)])
    turn = rotation(0.1, device)[:3, :3].float()
    moved = clouds @ turn.T
    answer = ops.icp_batch(clouds, moved, max_distance=0.3)
    assert float((answer.transformations[:, :3, :3].float() - turn).abs().amax()) < 0.05, "a wrong pose"
    bench(f"{pairs} ICPs of 1024 points", {"dlc_reg": lambda: ops.icp_batch(clouds, moved, max_distance=0.3)})


def soft(bench: Bench, device: torch.device, batch: int = 1024, n: int = 1024) -> None:
    generator = torch.Generator(device).manual_seed(0)
    source = torch.rand(batch, n, 3, device=device, generator=generator)
    affinity = -torch.rand(batch, n, n, device=device, generator=generator)
    weight = torch.full((batch, n), 1 / n, device=device)
    start = rotation(0.1, device).expand(1, batch, 4, 4).contiguous()
    beta, outlier = torch.tensor(20.0, device=device), torch.tensor(-3.0, device=device)

    def iterations(count: int) -> Tensor:
        pose = start
        for _ in range(count):
            pose = ops.soft_assignment(source, source, affinity, pose, beta, outlier, weight, weight)[1]
        return pose

    moved = source[:2] @ start[0, :2, :3, :3].float().mT
    logits = affinity[:2].double() - 20 * torch.cdist(moved.double(), source[:2].double()).square()
    rows = torch.logaddexp(logits.logsumexp(2), outlier.double()).mean(1)
    columns = torch.logaddexp(logits.logsumexp(1), outlier.double()).mean(1)
    energy, _ = ops.soft_assignment(source, source, affinity, start, beta, outlier, weight, weight)
    assert torch.allclose(energy[0, :2], -(rows + columns) / 2, rtol=1e-5), "a wrong energy"
    least = 20 * 4.0 * batch * n * n
    bench(f"{batch} pairs of {n}, 20 soft steps", {"dlc_reg": lambda: iterations(20)}, least, "target 20 ms")

    some = affinity[:64].clone().requires_grad_()
    part = (source[:64], source[:64], some, start[:, :64], beta, outlier, weight[:64], weight[:64])

    def backward() -> Tensor:
        return torch.autograd.grad(ops.soft_assignment(*part, moments=False)[0].sum(), some)[0]

    def plain() -> Tensor:
        moved = part[0] @ part[3][0, :, :3, :3].float().mT
        logits = some - beta * torch.cdist(moved, part[1]).square()
        explained = [torch.logaddexp(logits.logsumexp(side), outlier).mean(1) for side in (1, 2)]
        return torch.autograd.grad(-sum(explained).sum() / 2, some)[0]

    bench(
        f"soft energy and gradient, {min(64, batch)} of {n}",
        {"dlc_reg": backward, "torch": plain},
        3 * 4.0 * 64 * n * n,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="points of the largest 1-NN")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    bench = Bench(options.repeats, options.only, device)
    properties = torch.cuda.get_device_properties(device)
    where = {
        "device": properties.name,
        "copy_GB_per_s": bench.bytes_per_ms / 1e6,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dlc_reg": dlc_reg.__version__,
        "repeats": options.repeats,
    }
    print("  ".join(f"{name}: {value}" for name, value in where.items()))
    nearest(bench, device, tuple(n for n in SIZES if n <= options.largest))
    groups(bench, device)
    icp(bench, device)
    soft(bench, device)
    if options.out:
        options.out.write_text(json.dumps({**where, "rows": [asdict(row) for row in bench.rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
