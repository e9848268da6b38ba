"""Fills `_report.html`: everything that a user named is escaped, and nothing is fetched."""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import json
import math
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlc_reg._report_scene import Scene
from dlc_reg.registration.result import RegistrationResult, Verdict, rotation_angle

SIGNS = {Verdict.ALIGNED: "✓", Verdict.AMBIGUOUS: "?", Verdict.DOUBTFUL: "?", Verdict.FAILED: "✕"}


def page(result: RegistrationResult, scene: Scene, still: bytes) -> str:
    """The whole document. `still` is a PNG for paper, and for browsers without WebGL or scripts."""
    from plotly.offline import get_plotlyjs

    here = Path(__file__).parent
    scripts = [get_plotlyjs(), (here / "_report.js").read_text(encoding="utf-8")]
    source, target = (cloud.name for cloud in result.clouds or ())
    verdict = result.verdict.value if result.verdict else "none"
    fields = {
        "csp": " ".join(_digest(script) for script in scripts),
        "style": (here / "_report.css").read_text(encoding="utf-8"),
        "plotly": scripts[0],
        "script": scripts[1],
        "data": _json(_data(result, scene)),
        "still": base64.b64encode(still).decode(),
        "source": html.escape(source),
        "target": html.escape(target),
        "verdict": html.escape(verdict),
        "sign": SIGNS[result.verdict] if result.verdict else "·",
        "status": html.escape(str(result.status.value)),
        "reasons": "".join(f"<li>{html.escape(reason)}</li>" for reason in result.verdict_reasons),
        "figures": "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _figures(result)),
        "scene_note": html.escape(scene_note(scene)),
        "residual_note": html.escape(_residual_note(result, scene)),
        "matrix": html.escape(matrix_text(result.transformation)),
        "pose": _rows(_pose(result)),
        "settings": _rows(_flat(result.settings)),
        "timings": _rows([(name, f"{seconds:.3f} s") for name, seconds in result.timings.items()]),
        "versions": _rows(versions().items()),
        "made": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    template = (here / "_report.html").read_text(encoding="utf-8")
    # One pass, so that a value that looks like a field stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], template)


def versions() -> dict[str, str]:
    """What ran: names and versions."""
    from dlc_reg import __version__  # not above: the package imports this module's neighbours

    found = {"dlc_reg": __version__, "Python": platform.python_version(), "platform": platform.platform()}
    return found | {"numpy": np.__version__, "torch": torch.__version__}


def matrix_text(matrix: Any) -> str:
    """Rows of 17 significant digits: reading them back gives the same float64."""
    return "\n".join(" ".join(f"{value: .17g}".ljust(24) for value in row).rstrip() for row in np.asarray(matrix))


def rotation_axis(rotation: Any) -> Any:
    """(3,) unit axis of a (3, 3) rotation or scaled rotation, zeros where there is none."""
    r = np.asarray(rotation) / np.cbrt(np.linalg.det(rotation))
    twist = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])  # axis times 2 sin(angle)
    if np.trace(r) > 0:  # below 109 degrees
        length = np.linalg.norm(twist)
        return twist / length if length > 1e-15 else np.zeros(3)
    _, vectors = np.linalg.eigh(r + r.T)  # near 180 degrees the sine is lost, and the symmetric part holds the axis
    axis = vectors[:, -1]
    return -axis if axis @ twist < 0 else axis


def scene_note(scene: Scene) -> str:
    """How much of the clouds is drawn, and where the drawing departs from the data."""
    (n, m), (all_n, all_m) = (len(scene.after), len(scene.target)), scene.totals
    note = f"Drawn: {n:,} of {all_n:,} source points, {m:,} of {all_m:,} target points."
    if scene.gap is not None:
        note += f" The clouds were given {number(scene.gap)} apart; “before” shows the source beside the target."
    return note


def number(value: float) -> str:
    """Four significant digits, thousands grouped, no exponent where none is needed."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _figures(result: RegistrationResult) -> list[tuple[str, str]]:
    rotation, shift = result.transformation[:3, :3], result.transformation[:3, 3]
    return [
        ("Rotation", f"{math.degrees(rotation_angle(rotation)):.2f}°"),
        ("Translation", number(float(np.linalg.norm(shift)))),
        ("Fitness", f"{result.fitness:.1%}"),
        ("Inlier RMSE", number(result.inlier_rmse)),
        ("Iterations", str(result.iterations)),
        *([("Trust", f"{min(result.settings['trust'], 0.99):.2f}")] if "trust" in result.settings else []),
        ("Time", f"{total_seconds(result.timings):.2f} s"),
    ]


def total_seconds(timings: dict[str, float]) -> float:
    return float(timings["total"]) if "total" in timings else float(sum(timings.values()))


def _pose(result: RegistrationResult) -> list[tuple[str, str]]:
    rotation, shift = result.transformation[:3, :3], result.transformation[:3, 3]
    rows = [
        ("rotation", f"{math.degrees(rotation_angle(rotation)):.4f}° about {_vector(rotation_axis(rotation))}"),
        ("translation", f"{_vector(shift)}, length {number(float(np.linalg.norm(shift)))}"),
    ]
    scale = float(np.cbrt(np.linalg.det(rotation)))
    if abs(scale - 1) > 1e-9:
        rows.append(("scale", f"{scale:.6g}"))
    if result.covariance is not None:
        sigma = np.sqrt(np.maximum(np.diag(result.covariance), 0))
        rows.append(("standard deviation, rotation", f"{_vector(np.degrees(sigma[:3]))}° about x, y, z"))
        rows.append(("standard deviation, translation", f"{_vector(sigma[3:])} along x, y, z"))
    return rows


def _vector(values: Any) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _residual_note(result: RegistrationResult, scene: Scene) -> str:
    limit = result.settings.get("max_correspondence_distance")
    median = number(float(np.median(scene.residuals)))
    note = f"Distance from each aligned source point to the nearest target point, in the points’ unit; median {median}."
    if not limit:
        return note
    share = float(np.mean(scene.residuals < limit))
    return f"{note} {share:.1%} lie within the correspondence distance, {number(limit)}; the rest has no counterpart."


def _data(result: RegistrationResult, scene: Scene) -> dict[str, Any]:
    setting = result.settings.get("max_correspondence_distance")
    limit = float(setting or max(np.quantile(scene.residuals, 0.95), 1e-6 * np.ptp(scene.after)))
    near = scene.residuals[scene.residuals < limit]
    return {
        "before": _packed(scene.before),
        "after": _packed(scene.after),
        "target": _packed(scene.target),
        "beforeShade": _packed(scene.before_shade),
        "afterShade": _packed(scene.after_shade),
        "targetShade": _packed(scene.target_shade),
        "residuals": _packed(scene.residuals),
        "limit": limit,
        "heatMax": max(float(np.quantile(near, 0.97)), 0.1 * limit) if len(near) else limit,
        "view": scene.view.tolist(),
        "up": scene.up.tolist(),
        "history": [
            {
                "voxel": _finite(record.get("voxel_size")),
                "fitness": _finite(record.get("fitness")),
                "rmse": _finite(record.get("inlier_rmse")),
            }
            for record in result.history
        ],
    }


def _packed(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f'<tr><th scope="row">{html.escape(name).replace("_", "_<wbr>")}</th><td>{html.escape(value)}</td></tr>'
        for name, value in pairs
    )


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in settings.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "unknown" if value is None else str(value)
