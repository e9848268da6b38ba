"""Soft assignment: energies of poses and a step of expectation-maximisation, beside the same in plain torch.

    python benchmarks/assignment.py [--shapes 64x128x128x8 16x1024x1024x1] [--one-way]

A shape is pairs x N x M x poses. Clouds are independent samples of the unit sphere's surface, affinities products of 64
normal features with a variance of one, the poses a few degrees off. Plain torch works in float32 and holds N x M
matrices for every pose; ours is given the matrix of affinities, or its factors. All are compared with float64 before
they are timed: energies to 1e-5, poses to 1e-3.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import harness
import roofline
import torch
from harness import OURS, Call, Cases, Checked, Work, gather
from torch import Tensor

from dlc_reg import ops
from dlc_reg.manifold import SE3

SHARPNESS, OUTLIER, CHANNELS = 100.0, -2.0, 64
ENERGY, POSE = 1e-5, 1e-3


def inputs(shape: tuple[int, int, int, int], seed: int) -> tuple[dict[str, Tensor], ops.Affinity]:
    """Arguments of `ops.soft_assignment`, and the factors of their affinities."""
    pairs, n, m, poses = shape
    random = torch.Generator().manual_seed(seed)
    source, target = (
        torch.nn.functional.normalize(torch.randn(pairs, size, 3, generator=random), dim=2) for size in (n, m)
    )
    twists = 0.1 * torch.randn(poses, pairs, 6, generator=random, dtype=torch.float64)
    features = (torch.randn(pairs, size, CHANNELS, generator=random) / CHANNELS**0.25 for size in (n, m))
    factors = ops.Affinity(*features, torch.zeros(pairs, n), torch.zeros(pairs, m))
    given = {
        "source": source,
        "target": target,
        "affinity": factors.matrix(),
        "poses": SE3().retract(torch.eye(4, dtype=torch.float64).expand(poses, pairs, 4, 4), twists),
        "sharpness": torch.full((pairs,), SHARPNESS, dtype=torch.float64),
        "outlier": torch.full((pairs,), OUTLIER, dtype=torch.float64),
        "source_weight": torch.full((pairs, n), 1 / n),
        "target_weight": torch.full((pairs, m), 1 / m),
    }
    return given, factors


def plain(given: dict[str, Tensor], both_ways: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Energies (K, B) and the poses after the step (K, B, 4, 4), all at once."""
    x = {name: value.to(dtype) for name, value in given.items()}
    scores = _scores(x)
    energy, shares = torch.zeros(()), torch.zeros(())
    for dim, weight, total in _totals(x, scores, both_ways):
        energy = energy - (weight * total).sum(-1)
        shares = shares + weight.unsqueeze(dim) * (scores - total.unsqueeze(dim)).exp()
    return energy / (2 if both_ways else 1), _procrustes(x["source"], x["target"], shares)


def energies(given: dict[str, Tensor], both_ways: bool, dtype: torch.dtype) -> Tensor:
    """Energies (K, B) alone, for their gradients."""
    x = {name: value.to(dtype) for name, value in given.items()}
    sides = _totals(x, _scores(x), both_ways)
    return -torch.stack([(weight * total).sum(-1) for _, weight, total in sides]).mean(0)


def _scores(x: dict[str, Tensor]) -> Tensor:
    p, q, poses = x["source"], x["target"], x["poses"]
    moved = p @ poses[..., :3, :3].mT + poses[..., None, :3, 3]
    squared = (moved[..., :, None, :] - q[..., None, :, :]).square().sum(-1)
    return x["affinity"] - x["sharpness"][:, None, None] * squared


def _totals(x: dict[str, Tensor], scores: Tensor, both_ways: bool) -> list[tuple[int, Tensor, Tensor]]:
    """Of each side: the dimension that is summed over, the weights and the logarithms of the sums."""
    found = []
    for dim, weight in ((-1, x["source_weight"]), (-2, x["target_weight"]))[: 2 if both_ways else 1]:
        found.append((dim, weight, torch.logaddexp(scores.logsumexp(dim), x["outlier"][:, None].expand(weight.shape))))
    return found


def _procrustes(p: Tensor, q: Tensor, shares: Tensor) -> Tensor:
    rows, columns = shares.sum(-1, keepdim=True), shares.sum(-2).unsqueeze(-1)
    total = rows.sum(-2, keepdim=True)
    p_mean, q_mean = ((w * x).sum(-2, keepdim=True) / total for w, x in ((rows, p), (columns, q)))
    u, _, vh = torch.linalg.svd((p - p_mean).mT @ shares @ (q - q_mean))
    sign = torch.ones_like(u[..., 0])
    sign[..., 2] = torch.det(u) * torch.det(vh)
    rotation = (vh.mT * sign.unsqueeze(-2)) @ u.mT
    poses = torch.eye(4, dtype=p.dtype, device=p.device).repeat(*rotation.shape[:-2], 1, 1)
    poses[..., :3, :3] = rotation
    poses[..., :3, 3] = (q_mean - p_mean @ rotation.mT).squeeze(-2)
    return poses


def work(shape: tuple[int, int, int, int], options: argparse.Namespace) -> Work:
    (given, factors), both_ways = inputs(shape, options.seed), not options.one_way
    by_factors: dict[str, Any] = {**given, "affinity": factors}
    makers: dict[str, Callable[[], Call]] = {
        OURS: lambda: lambda: ops.soft_assignment(**given, both_ways=both_ways, num_threads=options.threads),
        f"{OURS}, by factors": lambda: (
            lambda: ops.soft_assignment(**by_factors, both_ways=both_ways, num_threads=options.threads)
        ),
        "plain torch": lambda: lambda: plain(given, both_ways, torch.float32),
    }
    true: list[tuple[Tensor, Tensor]] = []

    def check(name: str, answer: Any) -> Checked:
        if not true:
            true.append(plain(given, both_ways, torch.float64))
        energy, poses = true[0]
        error = float(((answer[0] - energy) / energy.abs().clamp(min=1)).abs().max())
        off = float((answer[1] - poses).abs().max())
        return Checked(error < ENERGY and off < POSE, f"energy to {error:.0e}, poses to {off:.0e}")

    pairs, n, m, poses = shape
    return Work(n, gather(makers), check, roofline.assignment(pairs * n * m * poses, both_ways))


def cases(options: argparse.Namespace) -> Cases:
    ways = "one way" if options.one_way else "both ways"
    return {
        f"{b} pairs, {n:,} by {m:,} points, {k} poses, {ways}": lambda s=(b, n, m, k): work(s, options)  # type: ignore[misc]
        for b, n, m, k in options.shapes
    }


def shape(text: str) -> tuple[int, int, int, int]:
    pairs, n, m, poses = (int(x) for x in text.split("x"))
    return pairs, n, m, poses


def arguments(parser: argparse.ArgumentParser) -> None:
    usual = [(64, 128, 128, 8), (16, 1024, 1024, 1)]
    parser.add_argument("--shapes", type=shape, nargs="+", default=usual, metavar="BxNxMxK")
    parser.add_argument("--one-way", action="store_true")


if __name__ == "__main__":
    harness.main(__file__, __doc__, cases, arguments)
