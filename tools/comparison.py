"""Methods side by side on the same pairs: errors, figures, the table, and the files that are left.

A pair is given to every method in turn before the next one, beginning with another method each time.
"""

from __future__ import annotations

import csv
import math
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scene_methods import Given, Method, versions

from dlc_reg.errors import InputError
from dlc_reg.evaluation import FILES, markdown, provenance
from dlc_reg.io import replacing
from dlc_reg.metrics import inlier_ratio, mean_over_groups, redwood_rmse, rotation_error, translation_error
from dlc_reg.registration.result import strict_json

Array = NDArray[Any]

REDWOOD = 0.2  # metres
MATCHED = 0.05  # of a pair's matches, for feature-matching recall
ENTRIES = [f"t{row}{column}" for row in range(3) for column in range(4)]


@dataclass(frozen=True)
class Rule:
    """When an answer is right, and when a wrong one is nearly right. A translation is in the points' unit."""

    max_rotation_deg: float
    max_translation: float
    near_rotation_deg: float
    near_translation: float


@dataclass(frozen=True, eq=False)
class Problem:
    """A pair, and what only the judge knows of it."""

    name: str
    scene: str
    given: Given
    truth: Array | None  # (4, 4), T_target_source
    rule: Rule
    information: Array | None = None  # (6, 6); None where Redwood's recall does not apply, or leaves the pair out
    center: Array = field(default_factory=lambda: np.zeros(3))  # the source's point that translations are measured at
    inlier_distance: float | None = None  # None: matches are not asked for


@dataclass(frozen=True, eq=False)
class Row:
    """What a method made of a pair. NaN is a figure that does not apply, or of an answer that there is not."""

    name: str
    scene: str
    method: str
    verdict: str
    trusted: bool | None
    seconds: float
    pose: Array | None
    error: str = ""
    rotation_deg: float = math.nan
    translation: float = math.nan
    redwood_rmse: float = math.nan
    inlier_ratio: float = math.nan
    known: bool = False  # whether there is a truth
    counts_for_redwood: bool = False
    right: bool = False
    near: bool = False


def failed(problem: Problem, method: Method, error: str) -> Row:
    """A miss, which says why."""
    text = "".join(letter if letter.isprintable() else " " for letter in error)
    known, redwood = problem.truth is not None, problem.information is not None
    matches = known and problem.inlier_distance is not None and method.matches is not None
    return Row(problem.name, problem.scene, method.name, "", None, math.nan, None, text, known=known,
               counts_for_redwood=redwood, inlier_ratio=0.0 if matches else math.nan)  # fmt: skip


def run(problems: Iterable[Problem], methods: Sequence[Method]) -> Iterator[list[Row]]:
    """Of each pair, the rows of all methods in their order."""
    for number, problem in enumerate(problems):
        first = number % len(methods)
        rows = {m.name: attempt(problem, m) for m in [*methods[first:], *methods[:first]]}
        yield [rows[m.name] for m in methods]


def attempt(problem: Problem, method: Method) -> Row:
    began = time.perf_counter()
    try:
        answer = method.solve(problem.given)
        seconds = time.perf_counter() - began
    except Exception as error:  # whatever a library raises: it costs the method this pair, and is shown
        return failed(problem, method, f"{type(error).__name__}: {error}")
    pose = np.asarray(answer.pose, dtype=np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        return failed(problem, method, "the pose is not 4x4 finite numbers")
    return Row(problem.name, problem.scene, method.name, answer.verdict, answer.trusted, seconds, pose,
               **_judged(problem, method, pose))  # fmt: skip


def _judged(problem: Problem, method: Method, pose: Array) -> dict[str, Any]:
    truth, rule = problem.truth, problem.rule
    if truth is None:
        return {}
    at = np.eye(4)
    at[:3, 3] = problem.center
    turned = math.degrees(float(rotation_error(pose, truth)))
    moved = float(translation_error(pose @ at, truth @ at))
    found: dict[str, Any] = {"known": True, "rotation_deg": turned, "translation": moved}
    found["right"] = turned < rule.max_rotation_deg and moved < rule.max_translation
    found["near"] = turned < rule.near_rotation_deg and moved < rule.near_translation
    if problem.information is not None:
        found["redwood_rmse"] = float(redwood_rmse(pose, truth, problem.information))
        found["counts_for_redwood"] = True
    if problem.inlier_distance is not None and method.matches is not None:
        found["inlier_ratio"] = _inlier_ratio(problem, method, problem.inlier_distance)
    return found


def _inlier_ratio(problem: Problem, method: Method, distance: float) -> float:
    """0 where the method's library cannot make matches of these clouds."""
    assert method.matches is not None
    try:
        source, target = method.matches(problem.given)
    except Exception:
        return 0.0
    return inlier_ratio(source, target, problem.truth, distance)


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Of one method's rows with a truth; recalls and errors, trust, and time. NaN where there is nothing to count."""
    right = np.array([r.right for r in rows])
    scenes = [r.scene for r in rows]
    redwood = [(r.scene, r.redwood_rmse < REDWOOD) for r in rows if r.counts_for_redwood]
    successes = [r for r in rows if r.right]
    judging = [r for r in rows if r.trusted is not None]
    wrong = [r for r in judging if r.trusted and not r.right]
    ratios = np.array([r.inlier_ratio for r in rows if not math.isnan(r.inlier_ratio)])
    return {
        "pairs": len(rows),
        "recall_scenes": mean_over_groups(right, scenes),
        "recall_pooled": float(right.mean()),
        "redwood_pairs": len(redwood),
        "redwood_scenes": mean_over_groups([s for _, s in redwood], [n for n, _ in redwood]) if redwood else math.nan,
        "redwood_pooled": _mean([s for _, s in redwood]),
        "rotation_mean": _mean([r.rotation_deg for r in successes]),
        "rotation_median": _median([r.rotation_deg for r in successes]),
        "translation_mean": _mean([r.translation for r in successes]),
        "translation_median": _median([r.translation for r in successes]),
        "right_trusted": _mean([bool(r.trusted) for r in successes]) if judging else math.nan,
        "wrong_trusted_near": sum(r.near for r in wrong) if judging else math.nan,
        "wrong_trusted_gross": sum(not r.near for r in wrong) if judging else math.nan,
        "inlier_ratio": _mean(ratios),
        "feature_matching_recall": _mean(ratios > MATCHED),
        "seconds": _median([r.seconds for r in rows if r.pose is not None]),
        "errors": sum(r.pose is None for r in rows),
    }


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values)) if values else math.nan


HEADER = {
    "recall [%]": ("recall_scenes", "recall_pooled"),
    "Redwood [%]": ("redwood_scenes", "redwood_pooled"),
    "rot. [deg]": ("rotation_mean", "rotation_median"),
    "transl.": ("translation_mean", "translation_median"),
    "inlier ratio [%]": ("inlier_ratio",),
    "FMR [%]": ("feature_matching_recall",),
    "right trusted [%]": ("right_trusted",),
    "wrong trusted": ("wrong_trusted_near", "wrong_trusted_gross"),
    "s a pair": ("seconds",),
}
LEGEND = (
    "recall, Redwood: mean over scenes / pooled. rot., transl.: mean / median over the right answers. right trusted: "
    "share of the right answers. wrong trusted: near / gross. s a pair: median."
)


def table(by_method: dict[str, dict[str, float]], published: dict[str, float] | None = None) -> str:
    """Rows of `figures`, without the columns that are empty; then published recalls by Redwood's rule in italics."""
    columns = {
        title: keys
        for title, keys in HEADER.items()
        if not all(math.isnan(f[key]) for f in by_method.values() for key in keys)
    }
    rows = [[name, *(_cell(title, [f[k] for k in keys]) for title, keys in columns.items())]
            for name, f in by_method.items()]  # fmt: skip
    for name, value in (published or {}).items():
        rows.append([f"*{name}*", *(f"{value:g}" if title == "Redwood [%]" else "" for title in columns)])
    return markdown(["method", *columns], rows)


def _cell(title: str, values: Sequence[float]) -> str:
    """Empty where no figure applies."""
    if all(math.isnan(v) for v in values):
        return ""
    if "[%]" in title:
        return " / ".join("-" if math.isnan(v) else f"{100 * v:.1f}" for v in values)
    if title == "wrong trusted":
        return " / ".join(f"{v:.0f}" for v in values)
    digits = ".2f" if title in ("rot. [deg]", "s a pair") else ".3g"
    return " / ".join(format(v, digits) for v in values)


def summary(rows: Sequence[Row], methods: Sequence[Method]) -> dict[str, dict[str, float]]:
    """The `figures` of each method, over the pairs whose truth is known."""
    of = {m.name: [r for r in rows if r.method == m.name and r.known] for m in methods}
    return {name: figures(found) for name, found in of.items() if found}


def notes(methods: Sequence[Method], asked_for_matches: bool) -> list[str]:
    """What the columns mean for these methods."""
    lines = [LEGEND]
    trusts: dict[str, list[str]] = {}
    for m in methods:
        trusts.setdefault(m.trusts or "never said", []).append(m.name)
    lines.append("Trusted: " + "; ".join(f"{', '.join(names)}: {when}" for when, names in trusts.items()) + ".")
    without = [m.name for m in methods if m.matches is None]
    if asked_for_matches and without:
        lines.append(f"No inlier ratio and no FMR of {', '.join(without)}: they have no putative correspondences.")
    return lines


def conditions(methods: Sequence[Method], seed: int, num_threads: int) -> dict[str, Any]:
    """Where the figures come from: `provenance`, with the peers' versions, threads and the seed."""
    about = provenance()
    about["versions"] |= versions(methods)
    about["hardware"]["threads"] = num_threads
    about["hardware"]["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "unset")
    return {"seed": seed, "trusted_when": {m.name: m.trusts for m in methods if m.trusts}, **about}


def described(about: dict[str, Any]) -> str:
    """`conditions` in a line."""
    hardware = about["hardware"]
    known = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{known}; {hardware['processor']}, {hardware['threads']} thread(s), "
        f"OMP_NUM_THREADS {hardware['OMP_NUM_THREADS']} (Open3D, KISS-Matcher); seed {about['seed']}"
    )


def check_folder(folder: Path | None, overwrite: bool) -> None:
    """Raises InputError, before the work, for a folder that holds results."""
    if folder is not None and not overwrite and any((folder / name).exists() for name in FILES):
        raise InputError("--out", f"'{folder}', which holds results", "a new folder, or --overwrite")


def save(folder: Path, document: dict[str, Any], rows: Sequence[Row], *, overwrite: bool) -> list[Path]:
    """Writes results.json, and pairs.csv with a line a pair and method."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in FILES]
    with replacing(paths[0], overwrite=overwrite) as draft:
        draft.write_text(strict_json(document, indent=2) + "\n", encoding="utf-8")
    with replacing(paths[1], overwrite=overwrite) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        fields = [f for f in Row.__dataclass_fields__ if f not in ("pose", "known")]
        writer = csv.writer(file)
        writer.writerow([*fields, *ENTRIES])
        for row in rows:
            entries = [""] * 12 if row.pose is None else [f"{x:.9g}" for x in row.pose[:3].ravel()]
            writer.writerow([*(_text(getattr(row, name)) for name in fields), *entries])
    return paths


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
