"""`register_multiway`: many clouds into one frame, by registering pairs of them and making the poses agree."""

from __future__ import annotations

import numbers
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlc_reg._multiway_graph import Link
from dlc_reg._multiway_result import MultiwayEdge, MultiwayResult
from dlc_reg._multiway_settle import confirmed, groups, route, settle
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud, apply_transform, globalize, localize
from dlc_reg.many import PairResult, register_many
from dlc_reg.registration.result import RegistrationResult, Verdict

Array = NDArray[np.float64]
Pair = tuple[int, int]

__all__ = ["MultiwayEdge", "MultiwayResult", "register_multiway"]

FEW = 8  # clouds, of which all pairs are registered
SKIPS = (1, 2)  # of more: with the next and the one after it, so that triangles check the neighbours
NEAR = 0.5  # mean extents between the middles of two clouds that may close a loop
MORE_EACH = 4  # pairs across groups, and loop closures, tried at most for each cloud
TOLERANCE_VOXELS = 2.0
LEAST_SIGMA = 0.1  # of the median: clouds without noise would let one pair outweigh all others


def register_multiway(
    clouds: Sequence[Any],
    *,
    pairs: Iterable[tuple[Any, ...]] | None = None,
    viewpoints: Sequence[ArrayLike | None] | None = None,
    tolerance: float | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
    in_flight: int = 64,
    progress: bool = False,
    **options: Any,
) -> MultiwayResult:
    """Registers pairs of the clouds, makes a pose graph of the results, and finds the poses that agree with them.

    Every registration is an edge, weighted by its own `information` over the variance of its residuals: what a pair
    does not determine, it has no say in. Only pairs with the verdict aligned connect clouds; doubtful and ambiguous
    ones may help where they agree, and a failed one is left out. Trusted pairs too may be wrong: an edge that the
    others contradict by more than `tolerance` is left out, and says so. A pair that is in no loop nothing contradicts.

    The graph is minimised by the package's own `iterate` and `LevenbergMarquardt`, on poses relative to each cloud's
    origin, and the weights of the edges are a line process, that is an M-estimator (Geman and McClure's) by edges:
    Open3D's `global_optimization` has the same one, but takes its edges for certain or not beforehand, knows only the
    information of point-to-point, and is heavy to install; `scipy.optimize.least_squares` weighs single numbers, not
    edges. The tests compare with both. The normal equations are dense: some hundreds of clouds, not many thousands.

    Args:
        clouds: Two or more of what `register` takes. Each is read once and kept in memory.
        pairs: Which to register, (source, target) or (source, target, init) with the clouds' numbers from 0; init is
            T_target_source. None: of up to 8 clouds all pairs; of more, each with the two before it, in their order,
            and then pairs of clouds that are not connected so far, nearest in order first, and pairs that the poses
            bring near each other (their middles within half their mean extent), nearest first: of both kinds at most
            four for each cloud.
        viewpoints: For each cloud where its sensor stood, (3,) in its own frame, or None. None: as the files say.
        tolerance: By how much the graph may move a pair's points from where its registration has them, root mean
            square, in the points' unit. None: two voxels of the pair's `voxel_size`.
        executor, in_flight: Where to work, as for `register_many`.
        progress: Show a progress bar.
        options: Of `register`, for every pair; not `init`, `callback`, what is said of one cloud (viewpoints,
            gravity), and `with_scaling` and `dof`, for the graph's poses are rigid.

    Returns:
        `MultiwayResult`. A pair whose registration raises is an edge that is not used, and costs only itself.

    Raises:
        InputError: Bad input: says which argument, what was given and what is expected. Fewer than two clouds.
        concurrent.futures.BrokenExecutor: As `register_many`.
    """
    began = time.perf_counter()
    _check_options(options, tolerance)
    given = _sequence(clouds)
    chosen = None if pairs is None else _checked_pairs(pairs, len(given))
    read = _read(given, viewpoints, options)
    timings = {"read": time.perf_counter() - began}
    names = _names(given)
    work = _Work(read, names, {**options, "executor": executor, "in_flight": in_flight}, progress)

    began = time.perf_counter()
    if chosen is not None:
        records = work.register(chosen)
    elif len(read) <= FEW:
        records = work.register({(j, i): None for i, j in combinations(range(len(read)), 2)})
    else:
        steps = {(n + skip, n): None for skip in SKIPS for n in range(len(read) - skip)}
        records = work.register(steps)
        poses, edges, links = _solved(read, records, tolerance)
        more = _candidates(read, poses, _groups(poses, edges, links), set(records))
        records |= work.register(dict.fromkeys(more))
    timings["register"] = time.perf_counter() - began

    began = time.perf_counter()
    poses, edges, links = _solved(read, records, tolerance)
    unconnected = [n for n, pose in enumerate(poses) if not np.isfinite(pose).all()]
    found = _groups(poses, edges, links)
    verdict, reasons = _judge(names, edges, links, found)
    timings["optimise"] = time.perf_counter() - began
    settings = {"tolerance": tolerance, "tolerance_voxels": TOLERANCE_VOXELS if tolerance is None else None, **options}
    return MultiwayResult(poses, names, edges, unconnected, found, verdict, reasons, settings, timings, read)


# --- input -----------------------------------------------------------------------------------------------------------
def _check_options(options: Mapping[str, Any], tolerance: float | None) -> None:
    for name in ("source_viewpoint", "target_viewpoint"):
        if name in options:
            raise InputError(name, "an option", "viewpoints, one for each cloud")
    for name in ("source_gravity", "target_gravity"):
        if options.get(name) is not None:
            raise InputError(name, repr(options[name]), "None: it is another one for each cloud")
    for name, rigid in (("with_scaling", False), ("dof", "rigid")):
        if options.get(name, rigid) != rigid:
            raise InputError(name, repr(options[name]), f"{rigid!r}: the poses of a graph are rigid and free")
    number = isinstance(tolerance, numbers.Real) and not isinstance(tolerance, bool)
    if tolerance is not None and not (number and 0 < tolerance < np.inf):
        raise InputError("tolerance", repr(tolerance), "a positive finite length in the points' unit, or None")
    register_many((), **options)  # raises for what is no option of `register`


def _sequence(clouds: Any) -> list[Any]:
    if isinstance(clouds, (str, bytes, os.PathLike, Mapping)) or not isinstance(clouds, Iterable):
        raise InputError("clouds", f"a {type(clouds).__name__}", "a sequence of clouds")
    given = list(clouds)
    if len(given) < 2:
        raise InputError("clouds", f"{len(given)} of them", "at least 2")
    return given


def _names(clouds: list[Any]) -> list[str]:
    """Files by their names, or by their paths where names are alike; other clouds by their numbers."""
    paths = [cloud if isinstance(cloud, (str, os.PathLike)) else None for cloud in clouds]
    short = [str(n) if path is None else Path(path).name for n, path in enumerate(paths)]
    return [
        os.fspath(path) if path and short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)
    ]


def _checked_pairs(pairs: Any, count: int) -> dict[Pair, Any]:
    """(source, target) -> init."""
    expected = f"(source, target) or (source, target, init), two different numbers from 0 to {count - 1}"
    if isinstance(pairs, (str, bytes, Mapping)) or not isinstance(pairs, Iterable):
        raise InputError("pairs", f"a {type(pairs).__name__}", "an iterable of " + expected)
    found: dict[Pair, Any] = {}
    for pair in pairs:
        ends = tuple(pair)[:2] if isinstance(pair, (Sequence, np.ndarray)) and len(pair) in (2, 3) else ()
        whole = [isinstance(end, (int, np.integer)) and not isinstance(end, bool) for end in ends]
        if len(ends) != 2 or not all(whole) or ends[0] == ends[1] or not all(0 <= end < count for end in ends):
            raise InputError("pairs", repr(pair)[:80], expected)
        source, target = int(ends[0]), int(ends[1])
        if (source, target) in found or (target, source) in found:
            raise InputError("pairs", f"clouds {source} and {target} twice", "each two clouds once")
        found[source, target] = pair[2] if len(pair) == 3 else None
    return found


def _read(clouds: list[Any], viewpoints: Any, options: Mapping[str, Any]) -> list[PointCloud]:
    if viewpoints is not None and not isinstance(viewpoints, Iterable):
        raise InputError("viewpoints", repr(viewpoints), f"one for each of the {len(clouds)} clouds, or None")
    stood = [None] * len(clouds) if viewpoints is None else list(viewpoints)
    if len(stood) != len(clouds):
        raise InputError("viewpoints", f"{len(stood)} of them", f"one for each of the {len(clouds)} clouds, or None")
    how = {"remove_non_finite": options.get("remove_non_finite", False), "seed": options.get("seed", 0)}
    return [
        PointCloud.from_any(cloud, name=f"clouds[{n}]", viewpoint=viewpoint, **how)
        for n, (cloud, viewpoint) in enumerate(zip(clouds, stood, strict=True))
    ]


# --- pairs -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Work:
    clouds: list[PointCloud]
    names: list[str]
    options: dict[str, Any]
    progress: bool

    def register(self, pairs: Mapping[Pair, Any]) -> dict[Pair, PairResult]:
        from tqdm import tqdm

        listed = [
            {"source": self.clouds[i], "target": self.clouds[j], "init": init, "name": f"{i} {j}"}
            for (i, j), init in pairs.items()
        ]
        done = register_many(listed, **self.options)
        bar = tqdm(done, total=len(listed), unit="pair", disable=not self.progress, leave=False)
        found = {record.name: record for record in bar}
        return {(i, j): found[f"{i} {j}"] for i, j in pairs}


def _candidates(clouds: list[PointCloud], poses: Array, found: list[list[int]], done: set[Pair]) -> list[Pair]:
    """Pairs that may connect groups, nearest in order first, and pairs that may close loops, nearest in place first."""
    count = len(clouds)
    group = {n: at for at, members in enumerate(found) for n in members}
    middles = np.array([apply_transform(pose, c.origin[None])[0] for pose, c in zip(poses, clouds, strict=True)])
    across: list[tuple[float, Pair]] = []
    near: list[tuple[float, Pair]] = []
    for i, j in combinations(range(count), 2):
        if (j, i) in done:
            continue
        if group[i] != group[j]:
            across.append((j - i, (j, i)))
        else:
            apart = float(np.linalg.norm(middles[i] - middles[j])) / (clouds[i].extent + clouds[j].extent) * 2
            if apart <= NEAR:  # never for clouds without a pose, whose middles are NaN
                near.append((apart, (j, i)))
    return [*_rationed(across, count), *_rationed(near, count)]


def _rationed(scored: list[tuple[float, Pair]], count: int) -> list[Pair]:
    """The pairs of the lowest scores, no cloud more than `MORE_EACH` times."""
    taken, tried = [], [0] * count
    for _, (j, i) in sorted(scored):
        if max(tried[i], tried[j]) < MORE_EACH:
            tried[i] += 1
            tried[j] += 1
            taken.append((j, i))
    return taken


# --- the graph -------------------------------------------------------------------------------------------------------
def _trusted(result: RegistrationResult | None) -> bool:
    return result is not None and result.verdict is Verdict.ALIGNED


def _solved(
    clouds: list[PointCloud], records: Mapping[Pair, PairResult], tolerance: float | None
) -> tuple[Array, list[MultiwayEdge], dict[Pair, Link]]:
    """Poses between the clouds' own coordinates, the edges in the order of `records`, and those in the graph."""
    usable = {
        pair: record.result
        for pair, record in records.items()
        if record.result is not None and record.result.verdict is not Verdict.FAILED
    }
    sigmas = {pair: result.settings.get("residual_sigma") for pair, result in usable.items()}
    known = [sigma for sigma in sigmas.values() if sigma]
    middle = float(np.median(known)) if known else 1.0
    links = {
        (i, j): Link(
            source=i,
            target=j,
            pose=localize(result.transformation, clouds[i], clouds[j]),
            information=np.asarray(result.information) / max(sigmas[i, j] or middle, LEAST_SIGMA * middle) ** 2,
            pivot=np.asarray(result.settings["information_origin"]) - clouds[j].origin,
            moments=_moments(clouds[i]),
            tolerance=TOLERANCE_VOXELS * result.settings["voxel_size"] if tolerance is None else float(tolerance),
            trusted=_trusted(result),
            trust=float(result.settings.get("trust", 0.0)),
        )
        for (i, j), result in usable.items()
    }
    local, held, displacements = settle(len(clouds), list(links.values()))
    poses = np.array([globalize(pose, cloud, clouds[0]) for pose, cloud in zip(local, clouds, strict=True)])
    at = {pair: n for n, pair in enumerate(links)}
    edges = []
    for (i, j), record in records.items():
        if (i, j) in at:
            used, residual = bool(held[at[i, j]]), float(displacements[at[i, j]])
            reason = _reason(links[i, j], used, residual)
            if record.result is not None and not _trusted(record.result):
                reason += f"; {record.result.verdict}: " + "; ".join(_reasons(record))
        else:
            used, residual = False, float("nan")
            reason = record.error or "its registration failed: " + "; ".join(_reasons(record))
        edges.append(MultiwayEdge(i, j, record.result, used, reason, residual))
    return poses, edges, links


def _groups(poses: Array, edges: list[MultiwayEdge], links: Mapping[Pair, Link]) -> list[list[int]]:
    """The clouds that trusted pairs connect, without those pairs that the first's group left out."""
    placed = [bool(np.isfinite(pose).all()) for pose in poses]
    holding = [links[e.source, e.target] for e in edges if _trusted(e.result) and (e.used or not placed[e.source])]
    return groups(len(poses), holding)


def _moments(cloud: PointCloud) -> Array:
    points = np.column_stack([cloud.points.double().numpy(), np.ones(len(cloud))])
    moments: Array = points.T @ points / len(points)
    return moments


def _reasons(record: PairResult) -> list[str]:
    return [] if record.result is None else record.result.verdict_reasons


def _reason(link: Link, used: bool, residual: float) -> str:
    if np.isnan(residual):
        return "no chain of trusted pairs connects it with the first cloud"
    limit = f"{residual:.4g} off, {link.tolerance:.4g} allowed"
    if used:
        return f"trusted ({limit})" if link.trusted else f"not trusted by itself, but the graph agrees ({limit})"
    if residual <= link.tolerance:
        return f"left out, though what is left agrees with it ({limit})"
    return f"the graph contradicts it{'' if link.trusted else ', and it is not trusted by itself'} ({limit})"


def _judge(
    names: list[str], edges: list[MultiwayEdge], links: Mapping[Pair, Link], found: list[list[int]]
) -> tuple[Verdict, list[str]]:
    def pair(edge: MultiwayEdge) -> str:
        return f"{names[edge.source]} -> {names[edge.target]}"

    raised = [edge for edge in edges if edge.result is None]
    errors = (
        [f"{len(raised)} of {len(edges)} pairs could not be registered, the first: {raised[0].reason}"]
        if raised
        else []
    )
    if len(found[0]) == 1:
        return Verdict.FAILED, [f"no trusted pair connects {names[0]}, the first cloud, with any other", *errors]
    reasons = []
    if len(found) > 1:
        outside = [names[n] for group in found[1:] for n in group]
        text = f"no trusted pair connects {', '.join(outside)} with the clouds of {names[0]}"
        largest = max(found[1:], key=len)
        if len(largest) > 1:
            text += f"; {', '.join(names[n] for n in largest)} hang together"
        reasons.append(text)
    held = [edge for edge in edges if edge.used and _trusted(edge.result)]
    holding = [links[edge.source, edge.target] for edge in held]
    left_out = [edge for edge in edges if not edge.used and _trusted(edge.result) and np.isfinite(edge.residual)]
    outvoted = [edge for edge in left_out if confirmed(len(names), holding, links[edge.source, edge.target])]
    if open_ := [edge for edge in left_out if edge not in outvoted]:
        contradicted = ", ".join(map(pair, open_))
        reasons.append(
            f"trusted pairs contradict each other, and nothing says which are wrong; left out: {contradicted}"
        )
    if reasons:
        return Verdict.DOUBTFUL, reasons + errors
    loops = len(holding) - (len(names) - 1)
    checked = f"{loops} more than a tree needs" if loops else "none of them checked by a loop"
    reasons = [f"{len(holding)} trusted pairs connect all {len(names)} clouds, {checked}"]
    alone = [edge for n, edge in enumerate(held) if route(len(names), holding, edge.source, edge.target, n) is None]
    if loops and alone:
        reasons.append("in no loop, so that nothing checks them: " + ", ".join(map(pair, alone)))
    if outvoted:
        reasons.append("outvoted by the others: " + ", ".join(map(pair, outvoted)))
    return Verdict.ALIGNED, reasons
