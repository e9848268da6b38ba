"""PointNetLK (Aoki et al., CVPR 2019): Lucas and Kanade's alignment with PointNet's feature in the image's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dlc_reg.networks.neighbours import blanked, weights
from dlc_reg.networks.pointnet import PointNet
from dlc_reg.registration.assignment import transform
from dlc_reg.registration.learned.frame import RegistrationNetwork, architecture
from dlc_reg.updates import LevenbergMarquardt


class Aligned(NamedTuple):
    """A batch of pairs; the target has become a feature."""

    source: Tensor  # (B, N, 3)
    source_mask: Tensor | None
    center: Tensor  # (B, 3) of the target
    feature: Tensor  # (B, C) phi(q - center)
    scale: Tensor  # (B, 1)


@architecture("pointnetlk")
class PointNetLK(RegistrationNetwork):
    """E(omega) = 1/2 |r|^2, r = (phi(T p - c) - phi(q - c)) / s, with c the target's mean and s such that E of the
    target turned a quarter about x, y or z is 1 on average: E has no unit, and features cannot shrink it.

    The Jacobian is the analytic one of PointNetLK revisited (Li et al., CVPR 2021), at the present pose where the first
    paper has finite differences at the target, and steps are damped, so that E never rises.
    """

    iterations = 10

    def __init__(self, widths: Sequence[int] = (64, 64, 64, 128, 1024), pool: Literal["max", "mean"] = "max") -> None:
        super().__init__()
        self.encoder = PointNet(widths, pool)

    @property
    def update(self) -> LevenbergMarquardt:
        return LevenbergMarquardt(self.manifold)

    def encode(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Aligned:
        source, target = blanked(source, source_mask), blanked(target, target_mask)
        center = (weights(target, target_mask)[..., None] * target).sum(1)
        centered = target - center[:, None]
        with torch.autocast(source.device.type, enabled=False):  # as precise as the source's, which comes later
            feature = self.encoder(centered, target_mask)
            masks = None if target_mask is None else target_mask.expand(3, *target_mask.shape)
            turned = self.encoder(_quarter_turns(centered), masks)
        square = 0.5 * (turned - feature).square().sum(-1, keepdim=True).mean(0)
        return Aligned(source, source_mask, center, feature, (square + 1e-8).sqrt())

    def residual(self, omega: Tensor, encoded: Aligned) -> Tensor:
        """r `(*lead, B, C)`."""
        feature: Tensor = self.encoder(self._moved(omega, encoded), self._mask(omega, encoded))
        return (feature - encoded.feature) / encoded.scale

    def value(self, omega: Tensor, encoded: Aligned) -> Tensor:
        residual = self.residual(omega, encoded)
        return 0.5 * residual.square().sum(-1)

    def linearize(self, omega: Tensor, encoded: Aligned) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Gauss and Newton's J^T J and J^T r, and the value."""
        residual, jacobian = self.jacobian(omega, encoded)
        gradient = (jacobian.mT @ residual[..., None])[..., 0]
        return jacobian.mT @ jacobian, gradient, {"value": 0.5 * residual.square().sum(-1)}

    def jacobian(self, omega: Tensor, encoded: Aligned) -> tuple[Tensor, Tensor]:
        """r `(*lead, B, C)`, and its derivative `(*lead, B, C, 6)` along exp(xi) omega at xi = 0."""
        feature, by_twist = self.encoder.with_jacobian(self._moved(omega, encoded), self._mask(omega, encoded))
        # the encoder turns about the target's mean c, exp(xi) about the origin: w x p = w x (p - c) + w x c
        turn, move = by_twist[..., :3], by_twist[..., 3:]
        turn = turn + torch.linalg.cross(encoded.center[:, None, :].expand_as(move), move)
        scale = encoded.scale
        return (feature - encoded.feature) / scale, torch.cat([turn, move], dim=-1) / scale[..., None]

    @staticmethod
    def _moved(omega: Tensor, encoded: Aligned) -> Tensor:
        return transform(omega, encoded.source) - encoded.center[:, None]

    @staticmethod
    def _mask(omega: Tensor, encoded: Aligned) -> Tensor | None:
        mask = encoded.source_mask
        return None if mask is None else mask.expand(*omega.shape[:-2], mask.shape[-1])


def _quarter_turns(points: Tensor) -> Tensor:
    """(3, ...): points (..., 3) turned about x, y and z."""
    x, y, z = points.unbind(-1)
    return torch.stack([torch.stack(p, dim=-1) for p in ((x, -z, y), (z, y, -x), (-y, x, z))])
