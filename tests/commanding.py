"""A stand-in for `register`, a small surface and a runner for the tests of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from dlc_reg import cli
from dlc_reg.geometry import PointCloud
from dlc_reg.iterate import Status
from dlc_reg.registration.result import RegistrationResult, Verdict

TURN = np.array([[0.8, -0.6, 0, 0.3], [0.6, 0.8, 0, -0.2], [0, 0, 1, 0.1], [0, 0, 0, 1]])


def surface(n: int = 900, seed: int = 0) -> np.ndarray:
    """(n, 3): a bumpy sheet without symmetry."""
    x, y = np.random.default_rng(seed).uniform(-1, 1, (2, n))
    return np.column_stack([x, y, 0.3 * np.sin(3 * x) * np.cos(2 * y) + 0.2 * x * y + 0.1 * x])


class Library:
    """Stands in for `dlc_reg.register` and knows the answer; `calls` holds what it was given."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.verdict: Verdict | None = Verdict.ALIGNED
        self.reasons = ["all of the source lies on the target"]

    def __call__(self, source: PointCloud, target: PointCloud, **options: Any) -> RegistrationResult:
        self.calls.append(options | {"source": source, "target": target})
        return RegistrationResult(
            transformation=TURN.copy(),
            fitness=0.75,
            inlier_rmse=0.0125,
            iterations=2,
            status=Status.CONVERGED,
            history=[{"fitness": 0.5, "inlier_rmse": np.nan}, {"fitness": 0.75, "inlier_rmse": np.float32(0.5)}],
            verdict=self.verdict,
            verdict_reasons=self.reasons,
            settings={
                "voxel_size": 0.05,
                "max_correspondence_distance": 0.125,
                "seed": 0,
                "with_scaling": options.get("with_scaling", False),
            },
            timings={"search": 0.25, "refine": 0.5},
            clouds=(source, target),
        )


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
