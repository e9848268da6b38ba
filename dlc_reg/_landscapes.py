"""How star-convex a learned network's energy is about the truth, and how many steps its update needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlc_reg import convexify
from dlc_reg._around import Around
from dlc_reg.manifold import SE3
from dlc_reg.metrics import rotation_error, translation_error
from dlc_reg.protocols import PairBatch, PairDataset, collate
from dlc_reg.registration.learned.frame import RegistrationNetwork

TRANSLATION = 0.5  # length that a ray moves by while it turns by one radian
NOISE_DEG = 10.0  # within which a minimum may lie beside the truth
SETTLED = (0.5, 0.005)  # degrees and length from where an iteration ends


def violation_rate(
    network: RegistrationNetwork, pairs: PairDataset, *, radius_deg: float = 60.0, rays: int = 64, seed: int = 0
) -> float:
    """Share of rays of this length from the truth along which the energy is not star-convex.

    Rays turn about the middle of the source, and move it by `TRANSLATION` a radian, in all mixtures of the two.
    """
    curve = _curve(network, pairs, radius_deg, rays, seed, steps=16)
    return float(curve[1][-1].mean())


def basin_radius(
    network: RegistrationNetwork, pairs: PairDataset, *, largest_deg: float = 180.0, rays: int = 64, seed: int = 0
) -> float:
    """`basin_of` the network's `violation_curve`, [deg]."""
    return basin_of(*violation_curve(network, pairs, largest_deg=largest_deg, rays=rays, seed=seed))


def basin_of(lengths_deg: Sequence[float], shares: Sequence[float], share: float = 0.05) -> float:
    """The largest length of rays [deg] at which, and at all shorter ones from `NOISE_DEG`, fewer than `share` violate.

    0 where there is none. Shorter rays are not judged: sampling and noise put the minimum itself beside the truth.
    """
    curve = torch.tensor(lengths_deg, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64)
    return float(convexify.basin_of(*curve, share, NOISE_DEG - 1e-3))


def violation_curve(
    network: RegistrationNetwork, pairs: PairDataset, *, largest_deg: float = 180.0, rays: int = 64, seed: int = 0
) -> tuple[list[float], list[float]]:
    """Lengths [deg], every 5 degrees up to 180, and the share of rays that violate there."""
    lengths, shares = _curve(network, pairs, largest_deg, rays, seed, steps=36)
    return torch.rad2deg(lengths).tolist(), shares.mean(1).tolist()


def iterations_to_converge(network: RegistrationNetwork, pairs: PairDataset, *, most: int = 50) -> Tensor:
    """(P,): after how many steps from the identity each pair stays within `SETTLED` of where `most` steps end."""
    counts = []
    for batch in _batches(network, pairs):
        with evaluating(network):
            encoded = network.encode(batch.source, batch.target, batch.source_mask, batch.target_mask)
            start = network.start(batch.source)
            poses = torch.cat([start[None], network.trajectory(encoded, start, most)])
        turned = rotation_error(poses, poses[-1].expand_as(poses)).rad2deg()
        moved = translation_error(poses, poses[-1].expand_as(poses))
        away = (turned > SETTLED[0]) | (moved > SETTLED[1])
        steps = torch.arange(1, most + 2, device=away.device)[:, None]
        counts.append((away * steps).amax(0))
    return torch.cat(counts).cpu()


class Slices(NamedTuple):
    """The energy less that at the truth, on rays (P, D, S) at angles (S,) [deg] and on a plane (P, S, S) at offsets
    (S,) [deg]; and whether the ray that ends at a point violates star-convexity, (P, D, S)."""

    angles_deg: Tensor
    rays: Tensor
    violated: Tensor
    offsets_deg: Tensor
    plane: Tensor


def slices(
    network: RegistrationNetwork,
    pairs: PairDataset,
    *,
    extent_deg: float = 180.0,
    directions: int = 24,
    steps: int = 61,
    seed: int = 0,
) -> Slices:
    """What there is to draw of each pair: rotations about the middle of the source, about random axes."""
    found, extent = [], math.radians(extent_deg)
    generator = torch.Generator().manual_seed(seed)
    axes = torch.nn.functional.normalize(torch.randn(directions, 3, generator=generator), dim=1)
    axes = torch.cat([axes, torch.zeros(directions, 3)], dim=1)
    for batch in _batches(network, pairs):
        around = Around.truths(batch)
        with evaluating(network):
            encoded = network.encode(batch.source, batch.target, batch.source_mask, batch.target_mask)
            place: tuple[Any, ...] = (around.objective(network.value), SE3(), around.local, encoded)
            rays = convexify.landscape(*place, directions=axes, extent=extent, steps=steps)
            flat = torch.eye(6)[:2]
            plane = convexify.landscape(*place, directions=flat, extent=extent, steps=steps, plane=True)
        found.append((rays.values, plane.values, rays.values[0, 0]))
    values, surface, truth = (torch.cat([f[i] for f in found], dim=-1).movedim(-1, 0) for i in range(3))
    violated = convexify.violated_ends(values, rays.offsets)
    values, surface = values - truth[:, None, None], surface - truth[:, None, None]
    return Slices(torch.rad2deg(rays.offsets), values, violated, torch.rad2deg(plane.offsets), surface)


@contextmanager
def evaluating(network: RegistrationNetwork) -> Iterator[None]:
    """In eval() and without gradients; afterwards as it was."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def _curve(
    network: RegistrationNetwork, pairs: PairDataset, largest_deg: float, rays: int, seed: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Lengths (steps,) [rad] and the share (steps, P) of each pair's rays that violate."""
    shares = []
    scale = [1.0] * 3 + [TRANSLATION] * 3
    for i, batch in enumerate(_batches(network, pairs)):
        around = Around.truths(batch)
        generator = torch.Generator().manual_seed(seed + i)
        options: dict[str, Any] = {"scale": scale, "directions": rays, "steps": steps, "generator": generator}
        options["radius"] = math.radians(largest_deg)
        with evaluating(network):
            encoded = network.encode(batch.source, batch.target, batch.source_mask, batch.target_mask)
            objective = around.objective(network.value)
            lengths, share = convexify.violation_curve(objective, SE3(), around.local, encoded, **options)
        shares.append(share.cpu())
    return lengths.cpu(), torch.cat(shares, dim=1)


def _batches(network: RegistrationNetwork, pairs: PairDataset, size: int = 32) -> Iterator[PairBatch]:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    for start in range(0, len(pairs), size):
        yield collate([pairs[i] for i in range(start, min(start + size, len(pairs)))]).to(device)
