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
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dlc_reg import _report_charts, _report_picture
from dlc_reg._report_scene import Scene
from dlc_reg.registration.result import RegistrationResult, Verdict, rotation_angle

SIGNS = {Verdict.ALIGNED: "✓", Verdict.AMBIGUOUS: "?", Verdict.DOUBTFUL: "?", Verdict.FAILED: "✕"}
ADVICE = {
    Verdict.ALIGNED: "the pose can be trusted",
    Verdict.AMBIGUOUS: "not the only pose that fits",
    Verdict.DOUBTFUL: "look before you use it",
    Verdict.FAILED: "do not use this pose",
}

VIEWS = {"before": ("target", "before"), "after": ("target", "after"), "heat": ("heat",)}
STILL = (708, 600)  # pixels, in the proportions of the page's views on a wide screen


class Cloud(NamedTuple):
    """Points of a `Scene` and how they are coloured."""

    points: str  # the scene's field
    shares: NDArray[np.float32]  # (n,) along the ramp, in [0, 1]; NaN for grey
    ramp: _report_picture.Ramp


def page(result: RegistrationResult, scene: Scene) -> str:
    """The whole document."""
    here = Path(__file__).parent
    script = (here / "_report.js").read_text(encoding="utf-8")
    source, target = (cloud.name for cloud in result.clouds or ())
    verdict = result.verdict.value if result.verdict else "none"
    limit, hottest = _limits(result, scene)
    clouds = _clouds(scene, limit, hottest)
    evidence: dict[str, Any] = {
        name: result.settings[name] for name in ("trust", "evidence") if name in result.settings
    }
    fields = {
        "csp": _digest(script),
        "style": (here / "_report.css").read_text(encoding="utf-8"),
        "script": script,
        "data": _json(_data(scene, clouds)),
        **{f"still_{name}": _still(scene, [clouds[part] for part in parts]) for name, parts in VIEWS.items()},
        "source": html.escape(source),
        "target": html.escape(target),
        "verdict": html.escape(verdict),
        "sign": SIGNS[result.verdict] if result.verdict else "·",
        "advice": ADVICE[result.verdict] if result.verdict else "",
        "reasons": "".join(f"<li>{html.escape(reason)}</li>" for reason in why(result)),
        "figures": "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _figures(result)),
        "scene_note": html.escape(scene_note(scene)),
        "histogram": _report_charts.histogram(scene.residuals, limit, hottest),
        "residual_note": html.escape(_residual_note(result, scene)),
        "iterations": _iterations(result),
        "matrix": html.escape(matrix_text(result.transformation)),
        "pose": _rows(_pose(result)),
        "evidence": _rows(_flat(evidence)),
        "settings": _rows(_flat({name: value for name, value in result.settings.items() if name not in evidence})),
        "timings": _rows([(name, f"{seconds:.3f} s") for name, seconds in result.timings.items()]),
        "versions": _rows(versions().items()),
        "made": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    template = (here / "_report.html").read_text(encoding="utf-8")
    # One pass, so that a value that looks like a field stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], template)


def why(result: RegistrationResult) -> list[str]:
    """The verdict's reasons, or, where there are none, how the iteration ended."""
    return result.verdict_reasons or [str(result.status.value)]


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
        ("Inlier RMSE", number(result.inlier_rmse) if result.fitness else "none"),
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


def _limits(result: RegistrationResult, scene: Scene) -> tuple[float, float]:
    """The distance where "farther away" begins, and the one where the colours end."""
    setting = result.settings.get("max_correspondence_distance")
    far = float(np.quantile(scene.residuals, 0.95))
    limit = float(setting or max(far, 1e-6 * float(np.ptp(scene.after)), 1e-12))
    near = scene.residuals[scene.residuals < limit]
    if not len(near):  # nothing has a counterpart: how far away everything is says more than an empty chart
        limit, near = 1.001 * float(scene.residuals.max()), scene.residuals
    return limit, max(float(np.quantile(near, 0.97)), 0.1 * limit)


def _clouds(scene: Scene, limit: float, hottest: float) -> dict[str, Cloud]:
    heat = np.where(scene.residuals < limit, np.minimum(scene.residuals / hottest, 1), np.nan)
    return {
        "before": Cloud("before", scene.before_shade, _report_picture.SOURCE),
        "after": Cloud("after", scene.after_shade, _report_picture.SOURCE),
        "target": Cloud("target", scene.target_shade, _report_picture.TARGET),
        "heat": Cloud("after", heat, _report_picture.HEAT),
    }


def _data(scene: Scene, clouds: dict[str, Cloud]) -> dict[str, Any]:
    """What the script draws. Values are bytes: 0 to 254 along the ramp, 255 grey."""
    return {
        "points": {name: _packed(getattr(scene, name), "<f4") for name in ("before", "after", "target")},
        "clouds": {
            name: {
                "points": cloud.points,
                "values": _packed(np.nan_to_num(np.rint(254 * cloud.shares), nan=255), "u1"),
                "ramp": cloud.ramp,
            }
            for name, cloud in clouds.items()
        },
        "views": VIEWS,
        "view": scene.view.tolist(),
        "up": scene.up.tolist(),
    }


def _still(scene: Scene, clouds: list[Cloud]) -> str:
    points = np.concatenate([getattr(scene, cloud.points) for cloud in clouds])
    painted = np.concatenate([_report_picture.colours(cloud.ramp, cloud.shares) for cloud in clouds])
    image = _report_picture.picture(points, painted, scene.view, scene.up, STILL)
    return base64.b64encode(_report_picture.png(image)).decode()


def _iterations(result: RegistrationResult) -> str:
    """Both curves, or why there are none, and how it ended."""
    history, status = result.history, html.escape(result.status.value)
    if not any(_report_charts.is_number(record.get("fitness")) and record["fitness"] > 0 for record in history):
        return f'<p class="note">No iterations were recorded; {status}.</p>'
    charts = [
        ("Fitness: share of source points with a counterpart", "fitness", "Fitness", "%"),
        ("Inlier RMSE, in the points’ unit", "inlier_rmse", "Inlier RMSE", ""),
    ]
    figures = "".join(
        f"<figure><figcaption>{caption}</figcaption>{_report_charts.curves(history, key, label, unit)}</figure>"
        for caption, key, label, unit in charts
    )
    note = (
        "From coarse to fine: a curve for each voxel size, which stands above it. Matches must lie closer from one to "
        f"the next, so compare within a curve. In the end: {status}."
    )
    return f'<div class="pair">{figures}</div><p class="note">{note}</p>'


def _packed(values: Any, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode()


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
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
