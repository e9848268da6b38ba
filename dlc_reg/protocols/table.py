"""The protocols of the literature by name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from dlc_reg.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """How a pair is made of a shape. Angles in degrees, lengths in the unit sphere's radius.

    `points`: of a cloud before its crop; it ends with ceil(keep * points). `sampling`: "same", both clouds are the same
    points of the shape; "overlapping", each draws its own from the same 2 * points of them; "apart", each from its own
    half of the shape. `rotation`: "euler", Rx Ry Rz with each angle uniform in [0, max_angle_deg]; "axis_angle", a
    uniform axis and an angle uniform in `rotation_range`. `moves`: the cloud that the drawn motion is applied to.
    """

    name: str
    points: int = 1024
    sampling: Literal["same", "overlapping", "apart"] = "same"
    crop: Literal["none", "nearest_to_far_point", "half_space"] = "none"
    keep: float = 1.0
    common_far_point: bool = False
    rotation: Literal["euler", "axis_angle"] = "euler"
    max_angle_deg: float = 45.0
    rotation_range: tuple[float, float] = (0.0, 180.0)
    max_translation: float = 0.5
    noise_sigma: float = 0.0
    noise_clip: float = 0.05
    moves: Literal["source", "target"] = "target"

    def __post_init__(self) -> None:
        if self.points < 1 or not 0 < self.keep <= 1:
            raise InputError("points, keep", f"{self.points}, {self.keep}", "at least one point, keep in (0, 1]")
        low, high = self.rotation_range
        if not 0 <= low <= high <= 180:
            raise InputError("rotation_range", str(self.rotation_range), "0 <= low <= high <= 180 degrees")

    @property
    def independent(self) -> bool:
        """Whether no point of one cloud is a point of the other, up to the motion."""
        return self.sampling == "apart"

    @property
    def count(self) -> int:
        """Points of each cloud."""
        return math.ceil(self.keep * self.points - 1e-9)


def _table() -> dict[str, Protocol]:
    dcp = Protocol("dcp")
    prnet = Protocol("prnet", crop="nearest_to_far_point", keep=0.75, common_far_point=True)
    rpmnet = Protocol("rpmnet", sampling="overlapping", crop="half_space", keep=0.7, noise_sigma=0.01, moves="source")
    modelonet = replace(rpmnet, name="modelonet", keep=0.5)
    clean = [dcp, _independent(dcp, "dcp-resampled"), prnet, _independent(prnet, "prnet-independent")]
    noisy = [rpmnet, _independent(rpmnet, "rpmnet-independent")]
    noisy += [modelonet, _independent(modelonet, "modelonet-independent")]
    return {p.name: p for p in [*clean, *(_with_noise(p) for p in clean), *noisy]}


def _independent(protocol: Protocol, name: str) -> Protocol:
    return replace(protocol, name=name, sampling="apart", common_far_point=False)


def _with_noise(protocol: Protocol) -> Protocol:
    return replace(protocol, name=f"{protocol.name}-noise", noise_sigma=0.01)


PROTOCOLS = _table()
"""By name.

dcp             Wang and Solomon, Deep Closest Point, ICCV 2019: the same 1,024 points, the target moved. As in their
                loader both clouds are shuffled, so that row i of one is not row i of the other.
dcp-resampled   The clouds share no point.
prnet           Wang and Solomon, PRNet, NeurIPS 2019: of the same 1,024 points each cloud keeps the 768 nearest to one
                far point. As in their loader it is 500 (1, 1, 1) or its opposite, plus less than 1 an axis, in the
                frame *after* the motion, so the crops differ by the motion. Theirs leaves the points sorted by the
                distance to it; ours are shuffled.
rpmnet          Yew and Lee, RPM-Net, CVPR 2020: both clouds start as the same 2,048 points of the shape; each is
                cropped by its own half-space to 70%, thinned to 717 and jittered, all apart, and the source is moved.
                So a quarter of what both show is the same point, up to the jitter.
modelonet       Huang et al., Predator, CVPR 2021: the same with 50%, 512 points. As in their loader the plane passes
                through the mean there, so that a crop holds about half the points; too few are repeated.
*-independent   The clouds come from two halves of the shape's points, so they have none in common, and each far point
                is drawn for itself, uniformly over the directions.
*-noise         Jitter, sigma 0.01 clipped at 0.05, for each cloud on its own (DCP's loader adds it before the motion,
                so that both clouds have the same; PRNet's as here). rpmnet and modelonet have it by definition.
full-LO-HI      By `protocol()`: whole clouds without a point in common, uniform axis, angle uniform in [LO, HI]
                degrees; full-LO-HI-noise too.
Where a shape has fewer than twice the points, "apart" falls back to two subsets drawn freshly, which overlap.
"""


def protocol(name: str) -> Protocol:
    """The protocol of this name: one of PROTOCOLS, or full-LO-HI, full-LO-HI-noise with whole degrees."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    full = re.fullmatch(r"full-(\d{1,3})-(\d{1,3})(-noise)?", name, re.ASCII)
    if not full or not int(full[1]) <= int(full[2]) <= 180:
        raise InputError("protocol", repr(name), f"{', '.join(PROTOCOLS)}, or full-LO-HI[-noise], 0 <= LO <= HI <= 180")
    bounds = float(full[1]), float(full[2])
    found = Protocol(name.removesuffix("-noise"), sampling="apart", rotation="axis_angle", rotation_range=bounds)
    return _with_noise(found) if full[3] else found
