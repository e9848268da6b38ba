"""What a registration returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg._answers import Verdict, strict_json
from dlc_reg.iterate import Status

__all__ = ["RegistrationResult", "Verdict", "rotation_angle", "strict_json"]


@dataclass(eq=False)  # arrays have no single truth value: a result equals itself alone
class RegistrationResult:
    """The transformation that maps the source onto the target, with the evidence for it.

    Attributes:
        transformation: (4, 4), T_target_source: p' = R p + t. This and the next three are Open3D's fields.
        fitness: The number of inlier correspondences over the number of **source** points.
        inlier_rmse: Root mean square distance of those correspondences, in the points' unit.
        correspondence_set: (m, 2), rows (source index, target index) into the clouds given.
        information: (6, 6), the Gauss-Newton Hessian, in the tangent order (rotation xyz [rad], translation xyz), of a
            left update of `transformation` about the target's `settings["information_origin"]`.
        covariance: (6, 6), a multiple of its inverse, as repeated registrations scatter. None where the geometry leaves
            a direction free, and zero for motions that a constraint holds.
        iterations: Of the last refinement.
        status: Why it ended; the value is a sentence.
        history: One record an iteration.
        verdict: Whether the answer can be trusted; None where only one start was refined, by Open3D's names.
        verdict_reasons: Sentences.
        equivalent_poses: (K, 4, 4), those of a symmetric or repetitive shape, which explain the clouds as well as
            `transformation` does and make the verdict `ambiguous`; as exact as the thinned clouds.
        settings: Every number that was derived or chosen.
        timings: Seconds a stage.
        clouds: The `PointCloud`s (source, target), or None.
    """

    transformation: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    fitness: float = 0.0
    inlier_rmse: float = 0.0
    correspondence_set: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    information: NDArray[np.float64] | None = None
    covariance: NDArray[np.float64] | None = None
    iterations: int = 0
    status: Status = Status.NOT_STARTED
    history: list[dict[str, Any]] = field(default_factory=list)
    verdict: Verdict | None = None
    verdict_reasons: list[str] = field(default_factory=list)
    equivalent_poses: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4, 4)))
    settings: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    clouds: tuple[Any, Any] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the correspondences and the clouds, in plain Python types."""
        return {
            "transformation": self.transformation.tolist(),
            "fitness": self.fitness,
            "inlier_rmse": self.inlier_rmse,
            "correspondences": len(self.correspondence_set),
            "information": None if self.information is None else self.information.tolist(),
            "covariance": None if self.covariance is None else self.covariance.tolist(),
            "iterations": self.iterations,
            "status": self.status.value,
            "verdict": None if self.verdict is None else self.verdict.value,
            "verdict_reasons": list(self.verdict_reasons),
            "equivalent_poses": self.equivalent_poses.tolist(),
            "settings": self.settings,
            "timings": self.timings,
            "history": self.history,
        }

    def to_json(self, **options: Any) -> str:
        """`to_dict` as `strict_json`; `options` are those of `json.dumps`."""
        return strict_json(self.to_dict(), **options)

    def __str__(self) -> str:
        rotation = np.degrees(rotation_angle(self.transformation[:3, :3]))
        shift = np.linalg.norm(self.transformation[:3, 3])
        lines = [
            f"{self.verdict or 'RegistrationResult'}: " + ("; ".join(self.verdict_reasons) or str(self.status.value)),
            f"rotation {rotation:.3f} deg, translation {shift:.6g}",
            f"fitness {self.fitness:.3f}, inlier RMSE {self.inlier_rmse:.6g}, {self.iterations} iterations",
        ]
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws before and after with Matplotlib (extra `viz`); saves to `path` if given, returns the figure."""
        from dlc_reg.report import plot

        return plot(self, path)

    def report(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Writes one offline HTML page. Raises `FileExistsError` unless `overwrite`."""
        from dlc_reg.report import write_report

        return write_report(self, path, overwrite=overwrite)


def rotation_angle(rotation: NDArray[np.float64]) -> float:
    """Angle of a (3, 3) rotation (or scaled rotation) [rad], accurate near 0 and pi."""
    scale = np.cbrt(max(np.linalg.det(rotation), 1e-300))
    r = rotation / scale
    sine = np.linalg.norm([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    return float(np.arctan2(sine, np.trace(r) - 1))
