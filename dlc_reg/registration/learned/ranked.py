"""ICP from many poses about the given start, the best of which a learned judge takes: for objects cut in part."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dlc_reg.errors import InputError
from dlc_reg.iterate import Solution
from dlc_reg.manifold import invert_rigid
from dlc_reg.metrics import rotation_error
from dlc_reg.networks.judge import Judge, describe, evidence
from dlc_reg.networks.neighbours import blanked, weights
from dlc_reg.registration.assignment import Assignment, SoftAssignment
from dlc_reg.registration.learned.dcp import without_padding
from dlc_reg.registration.learned.frame import RegistrationNetwork, architecture
from dlc_reg.registration.learned.nearby import angles, poses_near

RIGHT = math.radians(6), 0.15  # a pose as near to the truth as this is right in training
FAR = math.radians(60), 0.5  # from here on poses are equally wrong


@architecture("ranked")
class RankedICP(RegistrationNetwork):
    """Hypotheses by matches and votes of features, refined by point-to-plane ICP, and ranked by `Judge`.

    The energy is that of `SoftAssignment` both ways, without features: E is ICP's with a learned width and outlier
    level. In `eval()` its iterations are taken only where asked for, as they lose of what point-to-plane ICP has gained
    (70% crops: a median of 2.3 degrees after eight, 1.25 before). In `eval()` the choice is made among poses that
    turn by at most `max_turn_deg` from the given start (the identity, where none is given): the method has to be told
    how well the start is known, and the judge has learned how far from it the answers of its training lay. With
    turns = 0 only the given start is used.
    """

    def __init__(
        self,
        width: int = 32,
        max_turn_deg: float = 85.0,
        turns: int = 800,
        refined: int = 100,
        points: int = 160,
    ) -> None:
        super().__init__()
        if not 0 < max_turn_deg <= 180 or min(refined, points) < 1 or turns < 0:
            given = f"{max_turn_deg}, {turns}, {refined}, {points}"
            raise InputError("max_turn_deg, turns, refined, points", given, "(0, 180] degrees and counts")
        self.judge = Judge(width)
        self.energy = SoftAssignment(both_ways=True)
        self.max_turn_deg, self.turns, self.refined, self.points = max_turn_deg, turns, refined, points
        self.log_beta = nn.Parameter(torch.tensor(5.5))
        self.outlier = nn.Parameter(torch.tensor(-2.0))

    def encode(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Assignment:
        source, target = blanked(source, source_mask), blanked(target, target_mask)
        alike = source.new_zeros(len(source), source.shape[1], target.shape[1])
        batch = len(source)
        return Assignment(
            source,
            target,
            without_padding(alike, source_mask, target_mask),
            self.log_beta.exp().expand(batch),
            self.outlier.expand(batch),
            weights(source, source_mask),
            weights(target, target_mask),
        )

    def value(self, omega: Tensor, encoded: Assignment) -> Tensor:
        return self.energy.value(omega, encoded)

    def step(self, omega: Tensor, encoded: Assignment) -> Tensor:
        return self.energy.step(omega, encoded)

    def matching_loss(self, encoded: Assignment, truth: Tensor) -> Tensor:
        """(B,): minus the log-likelihood of the clouds at the truth, and what the judge's choice from the identity
        costs: the expected error of a pose drawn by its scores, and minus the log of the share of the right ones."""
        likelihood = self.energy.negative_log_likelihood(truth, encoded)
        start = torch.eye(4, dtype=torch.float64)
        choices = []
        for b in range(len(truth)):
            poses, scores = self.scored(encoded, b, start)
            choices.append(choice_loss(scores, poses, truth[b].double().cpu()))
        return likelihood + torch.stack(choices).to(likelihood)

    def begin(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, given: Tensor
    ) -> tuple[Assignment, Tensor]:
        encoded = self.encode(source, target, source_mask, target_mask)
        if self.training or not self.turns:
            return encoded, given
        chosen = []
        for b, start in enumerate(given.detach().double().cpu()):
            with torch.no_grad():
                poses, scores = self.scored(encoded, b, start)
            chosen.append(poses[int(scores.argmax())])
        return encoded, torch.stack(chosen).to(given)

    def solve(self, encoded: Assignment, omega: Tensor, iterations: int | None = None) -> Solution:
        return super().solve(encoded, omega, 0 if iterations is None and not self.training else iterations)

    def scored(self, encoded: Assignment, b: int, start: Tensor) -> tuple[Tensor, Tensor]:
        """Of pair `b` the poses (K, 4, 4) float64 on the host about `start` (4, 4), and their scores (K,)."""
        source = encoded.source[b, encoded.source_weight[b] > 0].detach().float().cpu()
        target = encoded.target[b, encoded.target_weight[b] > 0].detach().float().cpu()
        try:
            poses = poses_near(
                source, target, start, max_turn_deg=self.max_turn_deg, turns=self.turns, refined=self.refined
            )
        except InputError:  # on one line, say: nothing to tell poses apart by
            return start[None], start.new_zeros(1)
        a, b_ = describe(source), describe(target)
        ways = [
            evidence(a, b_, poses, self._rows(len(source))),
            evidence(b_, a, invert_rigid(poses), self._rows(len(target))),
        ]
        count = min(len(way[0]) for way in ways)
        seen = torch.stack([way[:, :count] for way in ways], 1).to(self.log_beta)
        return poses, self.judge(seen, angles(poses, start).to(seen))

    def _rows(self, count: int) -> Tensor:
        """The points that are looked at: evenly chosen, or in training at random."""
        if self.training:
            return torch.randperm(count)[: self.points]
        return torch.linspace(0, count - 1, min(self.points, count)).round().long()


def choice_loss(scores: Tensor, poses: Tensor, truth: Tensor) -> Tensor:
    """() of scores (K,) and poses (K, 4, 4) about the truth (4, 4): errors count up to `FAR`."""
    turned = rotation_error(poses, truth[None])
    moved = (poses - truth)[:, :3, 3].norm(dim=-1)
    right = ((turned < RIGHT[0]) & (moved < RIGHT[1])).to(scores.device)
    error = 2 * (turned / FAR[0]).clamp(max=1) + (moved / FAR[1]).clamp(max=1)
    logs = scores.log_softmax(0)
    loss: Tensor = (logs.exp() * error.to(scores)).sum()
    return loss - logs[right].logsumexp(0) if right.any() else loss
