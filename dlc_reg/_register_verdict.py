"""The last stage of a registration: its evidence, its verdict, and the poses that explain the clouds as well."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

from dlc_reg.geometry import PointCloud, globalize, localize
from dlc_reg.registration import verification
from dlc_reg.registration.equivalence import equivalent_poses
from dlc_reg.registration.global_search import Candidates, GlobalSearch
from dlc_reg.registration.result import RegistrationResult, Verdict, rotation_angle

SUSPECT_EXTENT_RATIO = 5.0  # from which on a failure may be one of units
TOLD = 6  # equivalent poses whose turns the reason names
MANY_RAYS = 0.1  # of the rays: from so many on the reasons say that the objective is not unimodal along them
FAR_BACK = 1.0  # [voxels]: from so far on they say that the way back ends elsewhere


def verify(
    result: RegistrationResult,
    search: GlobalSearch,
    candidates: Candidates,
    source: PointCloud,
    target: PointCloud,
    *,
    colored: bool,
) -> None:
    """Gives `result` its verdict and what that rests on. `colored`: it was refined with colours."""
    pose = torch.from_numpy(localize(result.transformation, source, target))
    evidence = verification.gather(search, pose, candidates, target.origin)
    held = colored and not result.settings["free_motions"]
    if evidence.free_motions and not held:
        result.covariance = None
        result.settings["free_motions"] = [motion.text for motion in evidence.free_motions]
        result.settings["free_twists"] = [motion.about(target.origin).tolist() for motion in evidence.free_motions]
    judged = verification.decide(evidence, result, held_by_colors=held)
    result.verdict, result.verdict_reasons = judged
    if result.verdict is Verdict.AMBIGUOUS and not evidence.free_motions:
        others = equivalent_poses(search, pose, candidates).numpy()
        result.equivalent_poses = np.array([globalize(other, source, target) for other in others]).reshape(-1, 4, 4)
        result.verdict_reasons.append(_told(result))
    if result.verdict is not Verdict.FAILED:
        result.verdict_reasons += _remarks(evidence)
    ratio = max(source.extent, target.extent) / min(source.extent, target.extent)
    if result.verdict is Verdict.FAILED and ratio > SUSPECT_EXTENT_RATIO:
        result.verdict_reasons.append(f"the clouds are {ratio:.0f} times apart in size: one unit? or with_scaling=True")
    result.settings |= {
        "evidence": {name: value for name, value in asdict(evidence).items() if name != "free_motions"},
        "trust": verification.trust(evidence) if len(result.correspondence_set) else 0.0,
    }


def _remarks(evidence: verification.Evidence) -> list[str]:
    """What speaks against the pose without a part in the trust."""
    remarks = []
    if evidence.landscape >= MANY_RAYS:
        remarks.append(f"the objective is not unimodal along {evidence.landscape:.0%} of the rays about this pose")
    if evidence.backward >= FAR_BACK:
        remarks.append(f"registering the other way round ends {evidence.backward:.1f} voxels away")
    return remarks


def _told(result: RegistrationResult) -> str:
    others = result.equivalent_poses
    turns = [f"{np.degrees(rotation_angle(r @ result.transformation[:3, :3].T)):.0f}" for r in others[:, :3, :3]]
    more = "" if len(turns) <= TOLD else ", ..."
    poses = "other pose" if len(turns) == 1 else "other poses"
    return f"{len(turns)} {poses} in equivalent_poses, turned from this one by {', '.join(turns[:TOLD])}{more} degrees"
