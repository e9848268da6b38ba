"""The other poses of a symmetric or repetitive shape: those that lay its surfaces on each other as well."""

from __future__ import annotations

import torch
from torch import Tensor

from dlc_reg.manifold import invert_rigid
from dlc_reg.registration.global_search import Candidates, GlobalSearch
from dlc_reg.registration.verification import OTHER_ANGLE, OTHER_VOXELS, RIVAL_OVERLAP

MOST = 60  # the largest group of turns of a body that is not free to turn is the icosahedron's


def equivalent_poses(search: GlobalSearch, pose: Tensor, candidates: Candidates) -> Tensor:
    """(K, 4, 4) float64, local, best first: poses that differ from `pose` and from each other, and overlap as much.

    Two motions of a shape onto itself make a third, so that what the candidates lack is made of those that they have.
    They are as exact as the thinned clouds; a refinement from one of them (`init`) makes it as exact as the answer.
    """
    enough = RIVAL_OVERLAP * search.judge(pose[None]).overlap[0]
    found = _distinct(candidates[candidates.overlap > enough], search, pose)
    motions = found @ invert_rigid(pose)
    products = (motions[:, None] @ motions[None] @ pose).reshape(-1, 4, 4)
    new = _distinct(Candidates(products, *[torch.zeros(len(products), dtype=torch.float64)] * 6), search, pose, *found)
    if len(new):
        refined = search.refine(search.constraint.admit(new[:MOST], search.source.center))
        judged = search.judge(torch.cat([found, refined]))
        found = _distinct(judged[judged.overlap > enough], search, pose)
    return found


def _distinct(candidates: Candidates, search: GlobalSearch, *known: Tensor) -> Tensor:
    """The poses (K, 4, 4) that are near none before them and none of the `known`, at most `MOST`."""
    center, shift = search.source.center, OTHER_VOXELS * search.voxel
    for pose in known:
        candidates = candidates.without_near(pose, center, OTHER_ANGLE, shift)
    found: list[Tensor] = []
    while len(candidates) and len(found) < MOST:
        found.append(candidates.poses[0])
        candidates = candidates.without_near(found[-1], center, OTHER_ANGLE, shift)
    return torch.stack(found) if found else candidates.poses[:0]
