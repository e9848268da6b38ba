"""`python tools/evaluate.py pairs`: registration methods on pairs of one's own.

    python tools/evaluate.py pairs PAIRS.csv [--method M ...] [--max-rotation-deg 5] [--max-translation T] [--out DIR]

PAIRS.csv has the columns source and target, paths relative to its folder, and perhaps name, init (16 numbers, the start
of those methods that take one) and T_target_source, the truth: 16 numbers, row by row, or the path of a text file with
them. Without a truth only verdicts are printed. Right is a rotation within 5 degrees, and the source's centre within 1%
of the target's extent (the diagonal of its bounding box) of where it should be; translations are measured there, so
that they do not depend on where the origin is. A wrong answer is near within three times as much. The peers are told a
voxel size of 1% of the target's extent.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import comparison
import numpy as np
import torch
from comparison import MATCHED, Problem, Row, Rule, failed
from evaluate_scenes import add_options, check_options
from scene_methods import Given, Method, choose
from tqdm import tqdm

from dlc_reg._many_list import Entry, read_entries
from dlc_reg._search_options import in_options
from dlc_reg.errors import InputError
from dlc_reg.evaluation import markdown
from dlc_reg.geometry import PointCloud

ROTATION_DEG, SHARE, NEAR = 5.0, 0.01, 3.0
MATCHED_WITHIN = 2.0  # voxel sizes


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="evaluate.py pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs_file", metavar="PAIRS.csv", type=Path)
    parser.add_argument("--allow-outside", action="store_true", help="let the paths lead out of the file's folder")
    parser.add_argument("--max-rotation-deg", type=float, default=ROTATION_DEG)
    parser.add_argument(
        "--max-translation", type=float, help="in the clouds' unit; default: 1%% of the target's extent"
    )
    add_options(parser, "told to the peers; default: 1%% of the target's extent")
    options = parser.parse_args(arguments)
    try:
        evaluate(options)
    except InputError as error:
        raise SystemExit(f"error: {in_options(error, [], ['pairs'])}") from None


def evaluate(options: argparse.Namespace) -> None:
    """Runs the methods, prints a line a pair and method, the table if there are truths, and leaves the files."""
    check_options(options)
    comparison.check_folder(options.out, options.overwrite)
    methods = choose(options.methods or ["register"])
    torch.set_num_threads(options.num_threads)
    entries = list(read_entries(options.pairs_file, allow_outside=options.allow_outside, truths=True))
    if not entries:
        raise InputError("pairs", f"'{options.pairs_file}' without a pair", "at least one")
    about = {
        "benchmark": "pairs",
        "data": options.pairs_file.name,
        "pairs": len(entries),
        "protocol": {
            "max_rotation_deg": options.max_rotation_deg,
            "max_translation": options.max_translation or f"{SHARE:g} of the target's extent",
            "voxel_size": options.voxel_size or f"{SHARE:g} of the target's extent",
        },
        **comparison.conditions(methods, 0, options.num_threads),
    }
    unread: list[Row] = []
    rows: list[Row] = []
    bar = tqdm(total=len(entries), unit="pair", disable=options.quiet or not sys.stderr.isatty())
    with bar:
        for found in comparison.run(problems(entries, options, bar, unread, methods), methods):
            rows += found
    order = {entry.name: number for number, entry in enumerate(entries)}
    rows = sorted([*rows, *unread], key=lambda row: order[row.name])
    print("\n".join(heading(about, entries)) + "\n")
    print(lines(rows) + "\n")
    found = comparison.summary(rows, methods)
    if found:
        print(comparison.table(found) + "\n")
        print("\n".join(comparison.notes(methods, options.matches)))
        if options.matches:
            print(f"Inlier ratio: of putative matches, within {MATCHED_WITHIN:g} voxel sizes. FMR: above {MATCHED:g}.")
    else:
        for m in methods:
            counts = Counter(r.verdict or ("error" if r.error else "no verdict") for r in rows if r.method == m.name)
            print(f"{m.name}: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    for row in rows:
        if row.error:
            print(f"{row.name}, {row.method}: {row.error}")
    if options.out is not None:
        document = {**about, "methods": found}
        print("wrote " + ", ".join(map(str, comparison.save(options.out, document, rows, overwrite=options.overwrite))))


def problems(
    entries: Sequence[Entry], options: argparse.Namespace, bar: tqdm, unread: list[Row], methods: Sequence[Method]
) -> Iterator[Problem]:
    """One at a time; a pair that cannot be read goes to `unread`, as a miss of every method."""
    for entry in entries:
        try:
            yield problem(entry, options)
        except (InputError, OSError) as error:
            stand_in = Problem(entry.name, "", Given(None, None, 0.0), entry.truth, Rule(0, 0, 0, 0))
            unread += [failed(stand_in, m, str(error)) for m in methods]
        bar.update()


def problem(entry: Entry, options: argparse.Namespace) -> Problem:
    source, target = (
        PointCloud.from_any(path, name=name, remove_non_finite=True)
        for name, path in (("source", entry.source), ("target", entry.target))
    )
    length = SHARE * target.extent
    reach = options.max_translation or length
    rule = Rule(options.max_rotation_deg, reach, NEAR * options.max_rotation_deg, NEAR * reach)
    return Problem(
        name=entry.name,
        scene="",
        given=Given(
            source, target, options.voxel_size or length, options.num_threads, entry.init, origin=target.origin
        ),
        truth=entry.truth,
        rule=rule,
        center=np.asarray(source.origin),
        inlier_distance=MATCHED_WITHIN * (options.voxel_size or length) if options.matches else None,
    )


def heading(about: dict, entries: Sequence[Entry]) -> list[str]:
    protocol, known = about["protocol"], sum(e.truth is not None for e in entries)
    judged = (
        f"right: rotation below {protocol['max_rotation_deg']:g} deg, and the source's centre nearer than "
        f"{protocol['max_translation']} to its true place. near: three times as much."
    )
    return [
        f"pairs: {about['data']}, {about['pairs']} pairs, {known} of them with a truth",
        comparison.described(about),
        judged if known else "No truth: verdicts only.",
    ]


def lines(rows: Sequence[Row]) -> str:
    """A line a pair and method."""
    known = any(row.known for row in rows)
    header = ["pair", "method", "verdict", *(["rot. [deg]", "transl.", "right"] if known else []), "s"]
    body = []
    for row in rows:
        judged = []
        if known:
            errors = [row.rotation_deg, row.translation]
            judged = ["" if np.isnan(e) else f"{e:.3g}" for e in errors]
            judged.append(("yes" if row.right else "no") if row.known else "")
        seconds = "" if np.isnan(row.seconds) else f"{row.seconds:.2f}"
        body.append([row.name, row.method, "error" if row.error else row.verdict, *judged, seconds])
    return markdown(header, body)
