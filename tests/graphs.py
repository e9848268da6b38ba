"""Pose graphs with known answers, and a stand-in for `register_many` that gives them, for the tests of multiway."""

from __future__ import annotations

import numpy as np
from registering import any_pose, move

from dlc_reg._multiway_graph import Link
from dlc_reg.many import PairResult
from dlc_reg.registration.result import RegistrationResult, Verdict

MOMENTS = np.diag([0.2, 0.3, 0.1, 1.0])  # of points about 1 wide


def poses(rng, count, shift=1.0):
    """(count, 4, 4), T_world_cloud, the first the identity."""
    found = np.array([any_pose(rng, shift) for _ in range(count)])
    found[0] = np.eye(4)
    return found


def between(truth, i, j):
    return np.linalg.inv(truth[j]) @ truth[i]


def information(rng, least=0.3):
    """(6, 6), of any shape, its eigenvalues from `least` to 30."""
    turning = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    return turning @ np.diag(np.geomspace(least, 30, 6)) @ turning.T


def link(rng, truth, i, j, pose=None, *, trusted=True, trust=0.95, tolerance=0.05):
    return Link(
        source=i,
        target=j,
        pose=between(truth, i, j) if pose is None else pose,
        information=information(rng),
        pivot=rng.normal(size=3),
        moments=MOMENTS,
        tolerance=tolerance,
        trusted=trusted,
        trust=trust,
    )


class Answers:
    """Stands in for `register_many`: the true poses between clouds (`truth` T_world_cloud), but what `wrong` has.

    `verdicts`: (source, target) -> Verdict or a text, the error. `asked`: the pairs, in their order.
    """

    def __init__(self, truth, clouds, *, wrong=None, verdicts=None, origin=None, voxel_size=0.025, seed=0):
        self.truth, self.clouds = truth, clouds
        self.wrong, self.verdicts = wrong or {}, verdicts or {}
        self.origin, self.voxel_size = origin, voxel_size
        self.rng, self.asked, self.options = np.random.default_rng(seed), [], None

    def __call__(self, pairs, **options):
        pairs = list(pairs)
        if pairs:
            self.options = options
        for pair in pairs:
            i, j = map(int, pair["name"].split())
            self.asked.append((i, j))
            verdict = self.verdicts.get((i, j), Verdict.ALIGNED)
            if not isinstance(verdict, Verdict):
                yield PairResult(pair["name"], pair["source"], pair["target"], None, verdict, 0.1)
                continue
            result = RegistrationResult(
                transformation=self.wrong.get((i, j), between(self.truth, i, j)),
                information=information(self.rng),
                verdict=verdict,
                verdict_reasons=["because"],
                settings={
                    "information_origin": self.middle(j).tolist(),
                    "residual_sigma": 0.01,
                    "voxel_size": self.voxel_size,
                    "trust": 0.95,
                },
            )
            yield PairResult(pair["name"], pair["source"], pair["target"], result, None, 0.1)

    def middle(self, cloud):
        return np.asarray(self.clouds[cloud]).mean(axis=0)


def largest_gap(found, truth, clouds):
    """The farthest that any cloud's point is from where the truth has it."""
    return max(
        np.linalg.norm(move(a, np.asarray(c)) - move(b, np.asarray(c)), axis=1).max()
        for a, b, c in zip(found, truth, clouds, strict=True)
    )
