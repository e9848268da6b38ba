"""What the neighbourhood of an answer says of it: whether the objective falls towards it, and the way back agrees."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dlc_reg import ops
from dlc_reg.manifold import SE3, invert_rigid
from dlc_reg.registration.global_search import NORMAL_COSINE, GlobalSearch

RAYS = 24  # twelve directions and their opposites
STEPS = 10  # along a ray, a voxel each
SAMPLES = 400  # points a cloud that are judged
RISE = 0.05  # of the answer's own score: what rises less on the way out is noise


def landscape(search: GlobalSearch, pose: Tensor) -> float:
    """The share of rays about `pose` (4, 4), local, along which the objective is not unimodal.

    The objective is 1 - overlap * closeness of the thinned clouds within two voxels: the mean squared distance of all
    points, truncated there. Rays leave in the tangent space about the source's centre, with rotations measured at its
    radius, and are ten voxels long. Along one that only rises no other optimum lies, as Deep Loss Convexification wants
    of all: `convexify.star_violation` asks for more, the chord, which no truncated distance keeps.
    """
    points = search.source.coarse.points.double()
    centre = search.source.center
    radius = (points - centre).square().sum(1).mean().sqrt().clamp(min=1e-300)
    lengths = torch.arange(STEPS + 1, dtype=torch.float64) * search.voxel
    xi = lengths[:, None] * _directions(search)[:, None]
    xi = torch.cat([xi[..., :3] / radius, xi[..., 3:]], -1).reshape(-1, 6)
    there = torch.eye(4, dtype=torch.float64)
    there[:3, 3] = pose[:3, :3] @ centre + pose[:3, 3]
    about = (invert_rigid(there) @ pose).expand(len(xi), 4, 4)
    judged = ops.judge_poses(
        search.source.coarse,
        search.target.coarse,
        (there @ SE3().retract(about, xi)).contiguous(),
        distance=2 * search.voxel,
        normal_cosine=NORMAL_COSINE,
        oriented=search.oriented,
        free_margin=2 * search.voxel,
        samples=SAMPLES,
        num_threads=search.num_threads,
    )
    scores = (0.5 * (judged.source_overlap + judged.target_overlap) * judged.closeness).reshape(RAYS, STEPS + 1)
    again = scores - scores.cummin(1).values
    return float((again.amax(1) > RISE * scores[0, 0]).double().mean())


def backward(search: GlobalSearch, pose: Tensor) -> float:
    """How far refining target onto source ends from refining source onto target, both from `pose`.

    Root mean square over the source's points, in voxels.
    """
    constraint, down = search.constraint, search.constraint.down
    swapped = replace(
        search,
        source=search.target,
        target=search.source,
        p=search.q,
        q=search.p,
        constraint=constraint if down is None else replace(constraint, down=(down[1], down[0])),
    )
    forth = search.refine(pose[None])[0]
    back = invert_rigid(swapped.refine(invert_rigid(pose)[None])[0])
    points = search.source.coarse.points.double()
    apart = points @ (forth - back)[:3, :3].T + (forth - back)[:3, 3]
    return float(apart.square().sum(1).mean().sqrt()) / search.voxel


def _directions(search: GlobalSearch) -> Tensor:
    """(RAYS, 6) float64 unit vectors among the permitted motions, each beside its opposite; always the same."""
    basis = torch.eye(6, dtype=torch.float64)
    if search.constraint.basis is not None:
        basis = torch.from_numpy(search.constraint.basis)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(RAYS // 2, basis.shape[1], dtype=torch.float64, generator=generator)
    unit = torch.nn.functional.normalize(drawn, dim=1) @ basis.T
    return torch.cat([unit, -unit])
