"""Soft-assignment ICP with learned, pose-invariant features: the energy of `assignment.py`, both ways."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.networks.invariant import InvariantEncoder
from dlc_reg.networks.neighbours import ABSENT, blanked, gather, weights
from dlc_reg.registration.assignment import Assignment, SoftAssignment
from dlc_reg.registration.global_search import super_fibonacci
from dlc_reg.registration.learned.frame import RegistrationNetwork, architecture

MATCHES, TOLERANCE, SEEDS = 256, 0.08, 64  # of the features' matches that propose poses; clouds are about two wide
SCREENED = 256  # points of the source that choose among starts
MATRIX = 1 << 24  # affinities, 64 MB, up to which a matrix of them is faster than its factors
STRIP = 1 << 22  # affinities that are searched for matches at once
WIDENING = ((1 / 64, 24), (1 / 16, 12), (1 / 4, 6))  # factors of the sharpness, and how many starts survive each


@architecture("softicp")
class SoftICP(RegistrationNetwork):
    """E of `SoftAssignment` with a_ij = -gamma |phi(p_i) - phi(q_j)|^2 + log s_i + log s_j, s the probability that a
    point has a counterpart; gamma, beta and the outlier level are learned.

    In `eval()` it starts from several poses: the given one, the one that the features alone say, `hypotheses` from
    matches of features whose distances agree, and `turns` spread evenly that bring the centres together. All descend E,
    widened at first, and the worse ones are given up on the way. The lowest is the answer, but it has to beat the given
    start's by `preference` [nat a point]. Without hypotheses and turns only the given start is used.
    """

    def __init__(
        self,
        width: int = 64,
        out: int = 64,
        heads: int = 4,
        blocks: int = 2,
        anchors: int = 128,
        hypotheses: int = 8,
        turns: int = 60,
        preference: float = 0.02,
    ) -> None:
        super().__init__()
        if min(hypotheses, turns) < 0:
            raise InputError("hypotheses, turns", f"{hypotheses}, {turns}", "numbers from 0")
        self.encoder = InvariantEncoder(width, out, heads, blocks, anchors)
        self.energy = SoftAssignment(both_ways=True)
        self.hypotheses, self.turns, self.preference = hypotheses, turns, preference
        self.log_gamma = nn.Parameter(torch.tensor(2.0))
        self.log_beta = nn.Parameter(torch.tensor(5.0))
        self.outlier = nn.Parameter(torch.tensor(-6.0))

    def encode(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Assignment:
        source, target = blanked(source, source_mask), blanked(target, target_mask)
        features = self.encoder(source, target, source_mask, target_mask)
        a, b, a_logit, b_logit = (part.to(source.dtype) for part in features)  # energies are sharp, under autocast too
        scale = 2 * self.log_gamma.exp()  # features have unit length: -gamma |a_i - b_j|^2 = scale (a_i . b_j - 1)
        a_bias, b_bias = functional.logsigmoid(a_logit) - scale, functional.logsigmoid(b_logit)
        factors = ops.Affinity(
            scale * a, b, _without_padding(a_bias, source_mask), _without_padding(b_bias, target_mask)
        )
        affinity = factors.matrix() if torch.is_grad_enabled() else _kept(factors)  # torch's formulas take the matrix
        mass = weights(source, source_mask), weights(target, target_mask)
        batch = len(source)
        return Assignment(
            source, target, affinity, self.log_beta.exp().expand(batch), self.outlier.expand(batch), *mass
        )

    def value(self, omega: Tensor, encoded: Assignment) -> Tensor:
        return self.energy.value(omega, encoded)

    def step(self, omega: Tensor, encoded: Assignment) -> Tensor:
        return self.energy.step(omega, encoded)

    def matching_loss(self, encoded: Assignment, truth: Tensor) -> Tensor:
        """(B,): minus the log-likelihood of both clouds at the true pose; it trains features, gamma, beta and o."""
        return self.energy.negative_log_likelihood(truth, encoded)

    def begin(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, given: Tensor
    ) -> tuple[Assignment, Tensor]:
        if self.training or not (self.hypotheses or self.turns):
            return super().begin(source, target, source_mask, target_mask, given)
        with torch.no_grad():
            encoded = self.encode(source, target, source_mask, target_mask)
            return encoded, self.choose(_thinned(encoded), self.starts(encoded, given))

    def starts(self, encoded: Assignment, given: Tensor) -> Tensor:
        """(2 + hypotheses + turns, B, 4, 4): the given start (B, 4, 4) first."""
        flat = encoded._replace(sharpness=torch.zeros_like(encoded.sharpness))
        parts = [given[None], self.step(given, flat)[None], self._turned(encoded)]
        if self.hypotheses:
            parts.append(torch.stack([self._proposals(encoded, b) for b in range(len(given))], dim=1).to(given))
        return torch.cat(parts)

    def choose(self, encoded: Assignment, starts: Tensor) -> Tensor:
        """The best (B, 4, 4) of `starts` (S, B, 4, 4), the first of which is the given one, after a short descent."""
        omega = starts
        for factor, count in WIDENING:
            wide = encoded._replace(sharpness=encoded.sharpness * factor)
            for _ in range(2):
                omega = self.step(omega, wide)
            energy = self.value(omega, wide)
            energy[0] = -torch.inf  # never given up
            kept = energy.argsort(dim=0, stable=True)[:count, :, None, None]
            omega = omega.take_along_dim(kept, 0)
        omega = self.step(omega, encoded)
        energy = self.value(omega, encoded)
        energy[0] -= self.preference
        return omega.take_along_dim(energy.argmin(0)[None, :, None, None], 0)[0]

    def _turned(self, encoded: Assignment) -> Tensor:
        """(turns, B, 4, 4): rotations spread evenly, with the translation that takes centre to centre."""
        p, q = (
            (weight[..., None] * points).sum(1)
            for weight, points in (
                (encoded.source_weight, encoded.source),
                (encoded.target_weight, encoded.target),
            )
        )
        poses = self.start(encoded.source).repeat(self.turns, 1, 1, 1)
        poses[..., :3, :3] = super_fibonacci(self.turns).to(p)[:, None]
        poses[..., :3, 3] = q - (poses[..., :3, :3] @ p[..., None])[..., 0]
        return poses

    def _proposals(self, encoded: Assignment, b: int) -> Tensor:
        """(hypotheses, 4, 4): poses on which matches of features agree, the lowest energies of one pair."""
        one = _pair(encoded, b)
        rows, columns = _matches(one)
        poses, _ = ops.propose_poses(
            one.source[0, rows].cpu(), one.target[0, columns].cpu(), TOLERANCE, max_seeds=SEEDS
        )
        poses = poses.to(one.source)[:, None]
        if not len(poses):
            return self.start(one.source).expand(self.hypotheses, 4, 4)
        thin = _thinned(one)._replace(sharpness=one.sharpness / 8)
        order = self.value(poses, thin)[:, 0].argsort()[: self.hypotheses]
        chosen = poses[order, 0]
        return torch.cat([chosen, chosen[:1].expand(self.hypotheses - len(chosen), 4, 4)])


def _kept(factors: ops.Affinity) -> Tensor | ops.Affinity:
    """As a matrix where that is small."""
    size = factors.source_bias.numel() * factors.target_bias.shape[1]
    return factors.matrix() if size <= MATRIX else factors


def _without_padding(bias: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N), so low at padding that affinities are below `ABSENT` whatever the features add."""
    return bias if mask is None else bias.masked_fill(~mask, 2 * ABSENT)


def _pair(encoded: Assignment, b: int) -> Assignment:
    """Pair `b` as a batch of one."""
    some = slice(b, b + 1)
    affinity = encoded.affinity
    cut = affinity[some] if isinstance(affinity, Tensor) else ops.Affinity(*(x[some] for x in affinity))
    fields = {name: field[some] for name, field in encoded._asdict().items() if name != "affinity"}
    return encoded._replace(affinity=cut, **fields)


def _matches(one: Assignment) -> tuple[Tensor, Tensor]:
    """Rows and columns of the at most `MATCHES` pairs of points that choose one another most, by features alone."""
    n, m = one.source.shape[1], one.target.shape[1]
    height = max(1, STRIP // m)
    strips = [slice(i, i + height) for i in range(0, n, height)]
    width = min(MATCHES, n * m)
    # in place: what is allocated between strips would keep the allocator from using their memory again
    columns = one.source.new_full((m,), -torch.inf)
    scores = one.source.new_full((len(strips), width), -torch.inf)
    places = torch.zeros(scores.shape, dtype=torch.long, device=scores.device)
    for strip in strips:
        torch.logaddexp(columns, one.matrix(strip)[0].logsumexp(0), out=columns)
    for k, strip in enumerate(strips):
        affinity = one.matrix(strip)[0]
        log_p = affinity.log_softmax(-1) + (affinity - columns)
        best = log_p.masked_fill(affinity <= ABSENT, -torch.inf).flatten().topk(min(width, log_p.numel()))
        scores[k, : len(best.values)] = best.values
        places[k, : len(best.values)] = best.indices + strip.start * m
    chosen = scores.flatten().topk(width)
    order = places.flatten()[chosen.indices[chosen.values > -torch.inf]]
    return order // m, order % m


def _thinned(encoded: Assignment) -> Assignment:
    """With at most `SCREENED` rows of the source, evenly chosen among the real ones."""
    real = encoded.source_weight > 0
    order = (~real).long().argsort(dim=1, stable=True)
    share = torch.linspace(0, 1, min(SCREENED, real.shape[1]), dtype=encoded.source.dtype, device=real.device)
    few = order.gather(1, (share * (real.sum(1, keepdim=True) - 1)).round().long())
    weight = encoded.source_weight.gather(1, few)
    if isinstance(encoded.affinity, Tensor):
        affinity: Tensor | ops.Affinity = gather(encoded.affinity, few)
    else:
        features, targets, bias, target_bias = encoded.affinity
        affinity = _kept(ops.Affinity(gather(features, few), targets, bias.gather(1, few), target_bias))
    return encoded._replace(
        source=gather(encoded.source, few),
        affinity=affinity,
        source_weight=weight / weight.sum(1, keepdim=True),
    )
