"""`python tools/evaluate.py 3dmatch|3dlomatch|kitti|eth`: registration methods on a benchmark's pairs.

    python tools/evaluate.py 3dmatch FRAGMENTS.npz [--pairs 100] [--method M ...] [--matches] [--out DIR]

The data are a file that a script in `datasets/` prepared; `fragments.py` states the format. Protocols, and what the
columns of the table mean, are printed with it; docs/scenes.md explains them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import comparison
import numpy as np
import torch
from comparison import Problem, Rule
from fragments import Fragments, Task
from scene_methods import METHODS, Given, Method, choose
from tqdm import tqdm

from dlc_reg.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is judged, metres and degrees, and the voxel size that the peers are told."""

    rule: Rule
    source: str  # of the rule
    redwood: bool
    inlier_distance: float
    voxel_size: float


_INDOOR = Protocol(Rule(15, 0.3, 15, 1), "DGR, CVPR 2020", redwood=True, inlier_distance=0.1, voxel_size=0.05)
PROTOCOLS = {
    "3dmatch": _INDOOR,
    "3dlomatch": _INDOOR,
    "kitti": Protocol(Rule(5, 2, 15, 6), "FCGF, ICCV 2019", redwood=False, inlier_distance=0.3, voxel_size=0.3),
    "eth": Protocol(Rule(2, 0.3, 15, 1), "BUFFER, CVPR 2023", redwood=False, inlier_distance=0.1, voxel_size=0.1),
}
# registration recall by Redwood's rule, mean over all eight scenes of the test set, per cent, as the papers have it
PUBLISHED = {
    "3dmatch": {"FCGF": 85, "Predator": 89, "RegTR": 92, "GeoTransformer": 92, "PEAL": 94,
                "maximal cliques on GeoTransformer's matches": 95},
    "3dlomatch": {"FCGF": 40, "Predator": 60, "RegTR": 65, "GeoTransformer": 75, "PEAL": 79,
                  "maximal cliques on GeoTransformer's matches": 79},
}  # fmt: skip
PUBLISHED_NOTE = (
    "In italics: published, on all eight scenes of the test set, not run here; the learned ones were trained on "
    "3DMatch's other scenes. Published figures do not use the viewpoint."
)


def main(benchmark: str, arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=f"evaluate.py {benchmark}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="an npz that a script in datasets/ prepared")
    parser.add_argument("--pairs", type=int, help="how many, drawn at random; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pairs")
    parser.add_argument("--max-rotation-deg", type=float, help="in place of the protocol's")
    parser.add_argument("--max-translation", type=float, help="in place of the protocol's, metres")
    add_options(parser, "metres, told to the peers")
    options = parser.parse_args(arguments)
    try:
        evaluate(benchmark, options)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


def add_options(parser: argparse.ArgumentParser, voxel: str) -> None:
    """Those that `pairs` has too."""
    names = f"several times; or all. {', '.join(METHODS)}"
    parser.add_argument("--method", action="append", dest="methods", help=f"default: register. {names}")
    parser.add_argument("--voxel-size", type=float, help=voxel)
    parser.add_argument("--matches", action="store_true", help="inlier ratios too: feature matches are made once more")
    parser.add_argument("--num-threads", type=int, default=1, help="of ours and small_gicp; others: OMP_NUM_THREADS")
    parser.add_argument("--out", type=Path, help="a folder for results.json and pairs.csv")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def check_options(options: argparse.Namespace) -> None:
    """Raises InputError for a number that makes no sense."""
    for name in ("pairs", "num_threads"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')}", str(value), "1 or more")
    for name in ("voxel_size", "max_rotation_deg", "max_translation"):
        value = getattr(options, name)
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"--{name.replace('_', '-')}", str(value), "a positive number")


def evaluate(benchmark: str, options: argparse.Namespace) -> None:
    """Runs the methods, prints the table, and leaves the files that are asked for."""
    check_options(options)
    if options.seed < 0:
        raise InputError("--seed", str(options.seed), "0 or more")
    comparison.check_folder(options.out, options.overwrite)
    methods = choose(options.methods or ["register"])
    torch.set_num_threads(options.num_threads)
    protocol = chosen_protocol(benchmark, options)
    fragments = Fragments(options.data)
    tasks = list(fragments.pairs(benchmark, options.pairs, np.random.default_rng(options.seed)))
    if not tasks:
        raise InputError("data", f"{options.data} without a pair of {benchmark}", "at least one")
    about = {
        "benchmark": benchmark,
        "data": options.data.name,
        "data_checksum": fragments.checksum(),
        "pairs": len(tasks),
        "pairs_of_the_file": len(fragments.data[f"{benchmark}_pairs"]),
        "scenes": sorted({fragments.scene(task.target) for task in tasks}),
        "protocol": asdict(protocol),
        **comparison.conditions(methods, options.seed, options.num_threads),
    }
    problems = make_problems(fragments, tasks, protocol, options)
    bar = tqdm(problems, total=len(tasks), unit="pair", disable=options.quiet or not sys.stderr.isatty())
    rows = [row for rows in comparison.run(bar, methods) for row in rows]
    found = comparison.summary(rows, methods)
    print("\n".join(heading(about, protocol, found)) + "\n")
    print(comparison.table(found, PUBLISHED.get(benchmark)) + "\n")
    print("\n".join(notes(benchmark, methods, options, rows)))
    if options.out is not None:
        document = {**about, "published_redwood_recall": PUBLISHED.get(benchmark, {}), "methods": found}
        print("wrote " + ", ".join(map(str, comparison.save(options.out, document, rows, overwrite=options.overwrite))))


def chosen_protocol(benchmark: str, options: argparse.Namespace) -> Protocol:
    protocol = PROTOCOLS[benchmark]
    given = {n: getattr(options, n) for n in ("max_rotation_deg", "max_translation") if getattr(options, n) is not None}
    if given:
        protocol = replace(protocol, rule=replace(protocol.rule, **given), source="given thresholds")
    return protocol if options.voxel_size is None else replace(protocol, voxel_size=options.voxel_size)


def make_problems(
    fragments: Fragments, tasks: Sequence[Task], protocol: Protocol, options: argparse.Namespace
) -> Iterator[Problem]:
    """One at a time, so that two clouds are in memory."""
    for task in tasks:
        scene, consecutive = fragments.scene(task.target), fragments.consecutive(task)
        source, target = (fragments.points_of(i) for i in (task.source, task.target))
        yield Problem(
            name=f"{scene} {fragments.number(task.target)} {fragments.number(task.source)}",
            scene=scene,
            given=Given(source, target, protocol.voxel_size, options.num_threads),
            truth=task.T_target_source,
            rule=protocol.rule,
            information=task.information if protocol.redwood and not consecutive else None,
            inlier_distance=protocol.inlier_distance if options.matches else None,
        )


def heading(about: dict, protocol: Protocol, found: dict[str, dict[str, float]]) -> list[str]:
    """What was run on what, and the protocol in words."""
    rule, counted = protocol.rule, int(next(iter(found.values()))["redwood_pairs"])
    lines = [
        f"{about['benchmark']}: {about['pairs']} of {about['pairs_of_the_file']} pairs, "
        f"{len(about['scenes'])} scene(s), {about['data']} (SHA-256 {about['data_checksum'][:12]})",
        comparison.described(about),
        f"recall: rotation below {rule.max_rotation_deg:g} deg and translation below {rule.max_translation:g} m "
        f"({protocol.source}), all pairs. near: below {rule.near_rotation_deg:g} deg and {rule.near_translation:g} m.",
    ]
    if protocol.redwood:
        lines.append(
            f"Redwood: RMSE of the true correspondences below {comparison.REDWOOD:g} m, from gt.info; consecutive "
            f"fragments (j = i + 1) left out, {counted} pairs remain."
        )
    else:
        lines.append("Redwood's rule does not apply: the set has no information matrices.")
    return lines


def notes(
    benchmark: str, methods: Sequence[Method], options: argparse.Namespace, rows: Sequence[comparison.Row]
) -> list[str]:
    lines = comparison.notes(methods, options.matches)
    if options.matches:
        distance, share = PROTOCOLS[benchmark].inlier_distance, comparison.MATCHED
        lines.append(
            f"Inlier ratio: of the putative matches, within {distance:g} m. FMR: pairs where it exceeds {share:g}."
        )
    if benchmark in PUBLISHED:
        lines.append(PUBLISHED_NOTE)
    lines += [f"{row.name}, {row.method}: {row.error}" for row in rows if row.error]
    return lines
