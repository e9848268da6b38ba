"""Whether a pose can be trusted: evidence that tells right from wrong without ground truth, and what it is worth.

The evidence was chosen, and the probability fitted, on registrations with known answers, matching pairs and pairs that
do not match at all: `python tools/calibrate_verdict.py` prints the numbers below with their hold-out figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg.iterate import Status
from dlc_reg.registration.budget import Budget
from dlc_reg.registration.constraint import TOLERANCE, Constraint
from dlc_reg.registration.freedom import FreeMotion, free_motions, weakest_motion
from dlc_reg.registration.global_search import NORMAL_COSINE, Candidates, GlobalSearch
from dlc_reg.registration.probing import backward, landscape
from dlc_reg.registration.result import RegistrationResult, Verdict

Array = NDArray[np.float64]

OTHER_ANGLE = math.radians(15)  # poses further apart than this, or than OTHER_VOXELS, are different answers
OTHER_VOXELS = 6.0
MAX_GAP = 4.0


@dataclass(frozen=True)
class Evidence:
    """What speaks for a pose.

    gap: its score minus the best score of any different candidate (at most `MAX_GAP`, negative if a rival is better).
    overlap: mean over both clouds of the share of points with the other surface near, at the fine scale.
    rival_overlap: the same of the best different candidate.
    matches: feature matches explained. violations: share of points that contradict free space, -1 unknown.
    closeness: 0 (the matched surfaces lie at the limit of the distance allowed) to 1 (they coincide).
    weakest: least curvature of the matched surfaces over all permitted motions (six, without a constraint) relative to
        the stiffest; 0: one is free. weakest_motion: which one that is, in words.
    starts: how many of the search's candidates end near the pose.
    backward: how far, in voxels, refining target onto source ends from refining source onto target.
    landscape: the share of rays about the pose along which the objective is not unimodal (`probing.landscape`).
    quick: whether the search went no further than the histograms, for they made its best pose certain.
    viewpoints: whether the search knew where both sensors stood.
    free_motions: those that leave the matched surfaces where they are. They come from the thinned clouds, whose normals
        span several spacings, so that noise does not hide them.
    """

    gap: float
    overlap: float
    rival_overlap: float
    matches: float
    violations: float
    closeness: float
    weakest: float
    weakest_motion: str = ""
    starts: int = 0
    backward: float = 0.0
    landscape: float = 0.0
    quick: bool = False
    viewpoints: bool = False
    free_motions: tuple[FreeMotion, ...] = ()


def gather(
    search: GlobalSearch,
    pose: Tensor,
    candidates: Candidates,
    target_origin: Array | None = None,
    *,
    probe: bool = True,
) -> Evidence:
    """The evidence for `pose` (4, 4) float64, local, against the candidates that differ from it.

    `target_origin` (3,) lets the free motions be told in the user's coordinates. Without `probe` nobody looks at the
    landscape, which takes longer than all the rest and has no part in the trust.
    """
    points, normals = _matched(search, pose)
    mine = search.judge(pose[None])
    others = candidates.without_near(pose, search.source.center, OTHER_ANGLE, OTHER_VOXELS * search.voxel)
    at = points + (0.0 if target_origin is None else target_origin)
    weakest, weakest_text = weakest_motion(at, normals, search.constraint.basis)
    alone = MAX_GAP if search.constraint.free else 0.0  # a constraint may leave no rival to be found
    return Evidence(
        gap=min(float(mine.scores[0] - others.scores[0]), MAX_GAP) if len(others) else alone,
        overlap=float(mine.overlap[0]),
        rival_overlap=float(others.overlap[0]) if len(others) else 0.0,
        matches=float(mine.matches[0]),
        violations=float(mine.violations[0]),
        closeness=float(mine.closeness[0]),
        weakest=weakest,
        weakest_motion=weakest_text,
        starts=len(candidates) - len(others),
        backward=backward(search, pose),
        landscape=landscape(search, pose) if probe else 0.0,
        quick=search.quick,
        viewpoints=search.oriented,
        free_motions=tuple(free_motions(at, normals, search.constraint.basis)),
    )


def _matched(search: GlobalSearch, pose: Tensor) -> tuple[Array, Array]:
    """Points and normals (m, 3) float64 of the thinned target that the source meets, within a voxel."""
    source, target = search.source.coarse, search.target.coarse
    moved = source.points.double() @ pose[:3, :3].T + pose[:3, 3]
    normals = source.normals.double() @ pose[:3, :3].T
    _, indices = search.target.index.knn(moved.float(), max_distance=search.voxel, num_threads=search.num_threads)
    inside, nearest = indices[:, 0] >= 0, indices[:, 0].clamp(min=0)
    cosine = (normals * target.normals[nearest]).sum(1)
    inside &= (cosine if search.oriented else cosine.abs()) > NORMAL_COSINE
    at = nearest[inside]
    return target.points[at].double().numpy(), target.normals[at].double().numpy()


def features(evidence: Evidence) -> list[float]:
    """What the trust is made of: gap, log matches, log weakest curvature, closeness, minus log of the way back."""
    return [
        evidence.gap,
        math.log(evidence.matches + 1),
        math.log(evidence.weakest + 1e-3),
        evidence.closeness,
        -math.log(evidence.backward + 0.1),
    ]


@dataclass(frozen=True)
class _Model:
    """Logistic regression on `features`: weights, intercept, the trust from which a pose is called aligned, and that
    from which a quick search is enough."""

    weights: tuple[float, ...]
    intercept: float
    threshold: float
    certain: float = math.inf


# By (viewpoints, quick): tools/calibrate_verdict.py on four scenes of 3DMatch and 3DLoMatch, and with --viewpoints
_MODELS = {
    (False, True): _Model((1.706, 1.502, 0.902, 6.356, 1.027), -7.879, 0.956, 0.961),
    (False, False): _Model((2.75, 1.267, 1.012, 10.309, 0.785), -11.454, 0.957),
    (True, True): _Model((1.866, 1.040, 0.266, 8.227, 0.992), -10.322, 0.845, 0.871),
    (True, False): _Model((1.536, 1.129, 0.264, 10.997, 1.014), -13.009, 0.879),
}


def _model(evidence: Evidence) -> _Model:
    return _MODELS[evidence.viewpoints, evidence.quick]


HOPELESS = 0.02  # below this trust a pose is called failed
PLAUSIBLE_OVERLAP = 0.3  # from which on the surfaces do meet, in this pose or in several
RIVAL_OVERLAP = 0.9  # a different pose with this share of the best one's overlap, and
RIVAL_GAP = 0.7  # a score no further below, explains the clouds as well


def trust(evidence: Evidence) -> float:
    """Probability in [0, 1] that the pose is right, as far as the calibration goes."""
    model = _model(evidence)
    logit = float(np.dot(model.weights, features(evidence))) + model.intercept
    return 1 / (1 + math.exp(-min(max(logit, -50.0), 50.0)))


def firmly(evidence: Evidence) -> bool:
    """Whether a quick search's evidence is enough."""
    return trust(evidence) >= _model(evidence).certain and not evidence.free_motions


def certain(search: GlobalSearch, candidates: Candidates) -> bool:
    """Whether the best candidate of a quick search can be trusted already, so that looking further is for nothing."""
    if not len(candidates):
        return False
    return firmly(gather(search, candidates.poses[0], candidates, probe=False))


def decide(
    evidence: Evidence, result: RegistrationResult, *, held_by_colors: bool = False
) -> tuple[Verdict, list[str]]:
    """The verdict, and its reasons as sentences. `held_by_colors`: the colours hold what the shapes leave free."""
    if result.status in (Status.NO_CORRESPONDENCES, Status.DIVERGED) or not len(result.correspondence_set):
        status = result.status if len(result.correspondence_set) else Status.NO_CORRESPONDENCES
        return Verdict.FAILED, [status.value]
    p = trust(evidence)
    facts = (
        f"{evidence.overlap:.0%} of the surfaces overlap, {evidence.matches:.0f} feature matches agree, "
        f"trust {min(p, 0.99):.2f}"
    )
    free = [
        f"the matched surface {motion.text}, so that the pose is not determined" for motion in evidence.free_motions
    ]
    hopeless = p < HOPELESS and evidence.overlap < PLAUSIBLE_OVERLAP
    if evidence.free_motions and held_by_colors and not hopeless:
        shape = "; ".join(f"the matched surface {motion.text}" for motion in evidence.free_motions)
        return Verdict.DOUBTFUL, [f"{shape}: only the colours hold the pose, and no evidence here looks at colours"]
    if free and evidence.overlap > PLAUSIBLE_OVERLAP:
        return Verdict.AMBIGUOUS, [*free, facts]
    rival = evidence.rival_overlap > RIVAL_OVERLAP * evidence.overlap and abs(evidence.gap) < RIVAL_GAP
    if rival and evidence.overlap > PLAUSIBLE_OVERLAP:
        return Verdict.AMBIGUOUS, [f"a different pose explains the clouds as well (symmetric or repetitive?): {facts}"]
    if hopeless:
        return Verdict.FAILED, [f"no pose explains both clouds: {facts}"]
    if evidence.gap < 0:
        return Verdict.DOUBTFUL, [f"a different pose explains the clouds better; method 'auto' would find it: {facts}"]
    if p < _model(evidence).threshold:
        return Verdict.DOUBTFUL, [f"too little singles this pose out: {facts}"]
    return Verdict.ALIGNED, [f"no other pose explains the clouds as well: {facts}"]


def qualify(
    judged: tuple[Verdict, list[str]], constraint: Constraint, pose: Array, budget: Budget
) -> tuple[Verdict, list[str]]:
    """The verdict with what gravity and the budget say of it: either can take an `aligned` back, neither gives one."""
    verdict, reasons = judged[0], list(judged[1])
    doubt = False
    if constraint.down is not None and constraint.dof != "yaw+translation":
        tilt = float(constraint.tilt(pose))
        doubt = tilt > TOLERANCE
        more = f", more than the {math.degrees(TOLERANCE):.0f} allowed" if doubt else ""
        reasons.append(f"the answer disagrees with gravity by {math.degrees(tilt):.1f} degrees{more}")
    if budget.skipped:
        doubt = doubt or budget.search_cut
        rivals = "; poses that explain the clouds as well may be unknown" if budget.search_cut else ""
        reasons.append(f"the budget of {budget.seconds:g} s left out {', '.join(budget.skipped)}{rivals}")
    return (Verdict.DOUBTFUL if doubt and verdict is Verdict.ALIGNED else verdict), reasons
