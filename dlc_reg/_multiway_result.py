"""What `register_multiway` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg._answers import Verdict, strict_json
from dlc_reg.geometry import PointCloud, apply_transform
from dlc_reg.io import RawCloud
from dlc_reg.registration.result import RegistrationResult

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MultiwayEdge:
    """One pair of clouds in the graph.

    Attributes:
        source, target: Numbers of the two clouds; the registration is of the source onto the target.
        result: What `register` found, without its clouds; None where it raised.
        used: Whether the poses rest on it.
        reason: Why it is used or not.
        residual: By how much `poses` move the source's points from where the registration has them: root mean square,
            in the points' unit. NaN where a pose or the registration is missing.
    """

    source: int
    target: int
    result: RegistrationResult | None
    used: bool
    reason: str
    residual: float


@dataclass(eq=False)
class MultiwayResult:
    """The poses of many clouds in the frame of the first, with the evidence for them.

    Attributes:
        poses: (K, 4, 4) float64, T_world_cloud: p_world = R p + t; the world is the first cloud's frame. NaN for a
            cloud that no chain of trusted pairs connects with the first.
        names: What the clouds are called: a path's last part, else the number.
        edges: Every pair that was registered.
        unconnected: The numbers of the clouds without a pose.
        groups: The clouds that trusted pairs connect, each group in order, that of the first cloud first. Pairs outside
            this one were held against nothing.
        verdict: ALIGNED: all clouds have a pose by pairs with the verdict aligned, and these do not contradict each
            other, or those that hold outvote each one that does not. DOUBTFUL: some clouds have none, or trusted pairs
            contradict each other and nothing else says which are wrong. FAILED: no cloud is connected with the first.
        verdict_reasons: Sentences.
        settings, timings: Every number that was chosen, and seconds a stage.
        clouds: The clouds as `PointCloud`s.
    """

    poses: Array
    names: list[str]
    edges: list[MultiwayEdge]
    unconnected: list[int]
    groups: list[list[int]]
    verdict: Verdict
    verdict_reasons: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    clouds: list[PointCloud] = field(default_factory=list, repr=False)

    def merged(self) -> PointCloud:
        """The clouds that have a pose as one, in the world's frame; normals and colours where all of them have them."""
        points, normals, colors = [], [], []
        for cloud, pose in zip(self.clouds, self.poses, strict=True):
            if np.isfinite(pose).all():
                points.append(apply_transform(pose, cloud.to_absolute()))
                normals.append(None if cloud.normals is None else cloud.normals.double().numpy() @ pose[:3, :3].T)
                colors.append(None if cloud.colors is None else cloud.colors.double().numpy())
        raw = RawCloud(np.concatenate(points), _joined(normals), _joined(colors))
        return PointCloud.from_any(raw, name="merged")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the clouds, in plain Python types; the poses of clouds that have none are None."""
        return {
            "verdict": self.verdict.value,
            "verdict_reasons": list(self.verdict_reasons),
            "names": list(self.names),
            "poses": [pose.tolist() if np.isfinite(pose).all() else None for pose in self.poses],
            "unconnected": list(self.unconnected),
            "groups": [list(group) for group in self.groups],
            "edges": [
                {
                    "source": edge.source,
                    "target": edge.target,
                    "used": edge.used,
                    "reason": edge.reason,
                    "residual": edge.residual,
                    "verdict": None if edge.result is None else str(edge.result.verdict),
                    "fitness": None if edge.result is None else edge.result.fitness,
                    "inlier_rmse": None if edge.result is None else edge.result.inlier_rmse,
                    "transformation": None if edge.result is None else edge.result.transformation.tolist(),
                }
                for edge in self.edges
            ],
            "settings": self.settings,
            "timings": self.timings,
        }

    def to_json(self, **options: Any) -> str:
        """`to_dict` as strict JSON; `options` are those of `json.dumps`."""
        return strict_json(self.to_dict(), **options)

    def __str__(self) -> str:
        used = [edge for edge in self.edges if edge.used]
        worst = max((edge.residual for edge in used), default=0.0)
        return (
            f"{self.verdict}: {'; '.join(self.verdict_reasons)}\n"
            f"{len(self.poses) - len(self.unconnected)} of {len(self.poses)} clouds have a pose, "
            f"{len(used)} of {len(self.edges)} pairs used, largest residual {worst:.6g}"
        )


def _joined(parts: list[Array | None]) -> Array | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if len(present) == len(parts) else None
