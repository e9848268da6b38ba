"""`dlc-reg`: register two scans or many, look into one, check an installation.

Exit codes: 0 the pose can be trusted, 2 doubtful or ambiguous, 3 failed, 64 bad input, 70 a fault of ours.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np

import dlc_reg
from dlc_reg import _console as console
from dlc_reg import io, ops
from dlc_reg._align_command import command as align_command
from dlc_reg._completion_command import command as completion_command
from dlc_reg._evaluate_command import command as evaluate_command
from dlc_reg._many_command import command as many_command
from dlc_reg._multiway_command import command as multiway_command
from dlc_reg._report_page import matrix_text, number, rotation_axis, total_seconds, versions
from dlc_reg._search_options import arguments, in_options, search_options
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud, apply_transform
from dlc_reg.registration.result import RegistrationResult, Verdict, rotation_angle, strict_json
from dlc_reg.report import headline

EXTRAS = {
    "open3d": ("open3d",),
    "viz": ("matplotlib",),
    "las": ("laspy", "lazrs"),
    "e57": ("pye57",),
    "parquet": ("pyarrow",),
    "images": ("pillow",),
}
LENGTHS = ("voxel_size", "max_correspondence_distance")
FILE = click.Path(path_type=Path)


@click.group(cls=console.Console, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dlc_reg.__version__, prog_name="dlc-reg")
def main() -> None:
    """Registers point clouds, and says when the result can be trusted.

    Exit codes: 0 trusted, 2 doubtful or ambiguous, 3 failed, 64 bad input, 70 a fault of dlc-reg.
    """


def debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--debug", is_flag=True, expose_value=False, help="Show where an error comes from.")(command)


@main.command(short_help="Find the transform that maps SOURCE onto TARGET.")
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@click.option("-o", "--output", type=FILE, help="Write the moved source (ply, pcd, xyz, txt, npy, npz).")
@click.option("--save-transform", type=FILE, help="Write the 4 x 4 matrix as text (txt), exact to the last bit.")
@click.option("--report", type=FILE, help="Write a page to look at, one offline file (html).")
@click.option("--plot", type=FILE, help="Write a before/after picture (png, pdf, svg, jpg).")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--init", type=FILE, help="A text file with a 4 x 4 matrix to start from.")
@search_options
@click.option("--strict", is_flag=True, help="Refuse non-finite points instead of dropping them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the summary.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors; the exit code has the verdict.")
@debug_option
def register(
    source: Path,
    target: Path,
    output: Path | None,
    save_transform: Path | None,
    report: Path | None,
    plot: Path | None,
    overwrite: bool,
    init: Path | None,
    strict: bool,
    as_json: bool,
    quiet: bool,
    **search: Any,
) -> int:
    """Finds the transform that maps SOURCE onto TARGET.

    The summary and, with --json, the JSON go to stdout; progress and errors go to stderr. Nothing is written for bad
    input. When registration fails, neither the moved cloud nor the matrix is written, for they would be wrong.
    """
    given = {"--output": output, "--save-transform": save_transform, "--report": report, "--plot": plot}
    outputs = {option: path for option, path in given.items() if path is not None}
    console.check_outputs(outputs, [source, target], overwrite=overwrite)
    start = None if init is None else console.read_transform(init, "--init")
    options = arguments(search)
    chosen = [name for name in LENGTHS if options[name] is not None]
    with console.working("reading", show=not quiet):
        clouds = [_read(path, name, strict) for path, name in ((source, "SOURCE"), (target, "TARGET"))]
    human = not (as_json or quiet)
    if human:
        for label, cloud in zip(("read", ""), clouds, strict=True):
            console.line(label, _describe(cloud))
    result = _run(clouds[0], clouds[1], init=start, show=not quiet, **options)
    if human:
        _summary(result, chosen)
    with console.working("writing", show=not quiet):
        written, withheld = _write(result, outputs, overwrite)
    if as_json:
        click.echo(strict_json(_document(result, written), indent=2))
    elif human:
        if written:
            console.line("wrote", ", ".join(str(path) for path in written.values()))
        if withheld:
            console.line("withheld", ", ".join(str(path) for path in withheld) + " (a failed pose would be wrong)")
        console.verdict_line(result, headline(result))
    return console.exit_code(result.verdict)


def _read(path: Path, argument: str, strict: bool) -> PointCloud:
    try:
        cloud = PointCloud.from_any(path, name=argument, remove_non_finite=not strict)
    except InputError as error:
        expected = error.expected.replace("remove_non_finite=True", "no --strict")
        raise InputError(argument, error.given, expected) from error
    return replace(cloud, name=path.name)


def _describe(cloud: PointCloud) -> str:
    text = f"{cloud.name}: {len(cloud):,} points, extent {number(cloud.extent)}, spacing {number(cloud.spacing)}"
    return text + (f"; dropped {cloud.dropped:,} non-finite points" if cloud.dropped else "")


def _run(source: PointCloud, target: PointCloud, *, show: bool, **options: Any) -> RegistrationResult:
    try:
        return dlc_reg.register(source, target, progress=show and sys.stderr.isatty(), **options)
    except InputError as error:
        raise in_options(error, options, ["source", "target"]) from error


def _summary(result: RegistrationResult, given: list[str]) -> None:
    settings, timings = result.settings, result.timings
    lengths = [
        f"{name.replace('_', ' ')} {number(settings[name])} ({'given' if name in given else 'from the data'})"
        for name in LENGTHS
        if settings.get(name)
    ]
    if lengths:
        console.line("chose", ", ".join(lengths))
    if "hypotheses" in settings:
        sight = "known" if settings.get("viewpoints_used") else "unknown"
        matches = f"{settings.get('feature_matches', 0):,} feature matches"
        console.line("search", f"{settings['hypotheses']} candidate poses, {matches}, viewpoints {sight}")
    stages = [f"{name.replace('_', ' ')} {seconds:.2f}" for name, seconds in timings.items() if name != "total"]
    console.line("took", f"{total_seconds(timings):.2f} s" + (f" ({', '.join(stages)})" if stages else ""))
    rotation, shift = result.transformation[:3, :3], result.transformation[:3, 3]
    turn = f"{np.degrees(rotation_angle(rotation)):.3f} deg about {console.vector(rotation_axis(rotation))}"
    scale = f", scale {number(float(np.cbrt(np.linalg.det(rotation))))}" if settings.get("with_scaling") else ""
    console.line("pose", f"rotation {turn}, translation {console.vector(shift)}{scale}")
    share = f"{result.fitness:.1%} of the source points have a counterpart"
    error = f"inlier RMSE {number(result.inlier_rmse)}, " if result.fitness else ""
    console.line("fit", f"{share}, {error}{result.iterations} iterations")


def _write(result: RegistrationResult, outputs: dict[str, Path], overwrite: bool) -> tuple[dict[str, Path], list[Path]]:
    """Writes what was asked for; returns what was written, by option, and what was withheld."""
    failed = result.verdict is Verdict.FAILED
    withheld = [outputs[option] for option in ("--output", "--save-transform") if failed and option in outputs]
    written = {option: path for option, path in outputs.items() if path not in withheld}
    if "--output" in written:
        _write_moved(result, written["--output"], overwrite)
    if "--save-transform" in written:
        with io.replacing(written["--save-transform"], overwrite=overwrite) as path:
            path.write_text(matrix_text(result.transformation) + "\n", encoding="utf-8")
    if "--report" in written:
        result.report(written["--report"], overwrite=overwrite)
    if "--plot" in written:
        result.plot(written["--plot"])
    return written, withheld


def _write_moved(result: RegistrationResult, path: Path, overwrite: bool) -> None:
    source, _ = _clouds(result)
    moved = apply_transform(result.transformation, source.to_absolute())
    linear = result.transformation[:3, :3]
    normals = None if source.normals is None else source.normals.numpy() @ (linear / np.cbrt(np.linalg.det(linear))).T
    colors = None if source.colors is None else source.colors.numpy()
    io.write(path, moved, normals, colors, overwrite=overwrite, argument="--output")


def _clouds(result: RegistrationResult) -> tuple[PointCloud, PointCloud]:
    assert result.clouds is not None  # register() keeps them
    return result.clouds


def _document(result: RegistrationResult, written: dict[str, Path]) -> dict[str, Any]:
    about = [
        {
            "name": cloud.name,
            "points": len(cloud),
            "dropped": cloud.dropped,
            "extent": cloud.extent,
            "spacing": cloud.spacing,
            "origin": cloud.origin.tolist(),
            "viewpoint": cloud.viewpoint,
        }
        for cloud in _clouds(result)
    ]
    return {
        "version": dlc_reg.__version__,
        "exit_code": int(console.exit_code(result.verdict)),
        "source": about[0],
        "target": about[1],
        **result.to_dict(),
        "written": {option.removeprefix("--").replace("-", "_"): str(path) for option, path in written.items()},
    }


@main.command(short_help="Say what a file holds.")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@debug_option
def info(file: Path, as_json: bool) -> None:
    """Says what FILE holds: points, extents, spacing, and what might trouble a registration."""
    with console.working("reading"):
        raw = io.read(file, argument="FILE")
    finite = raw.points[np.isfinite(raw.points).all(axis=1)]
    facts: dict[str, Any] = {
        "file": str(file),
        "kind": "mesh, sampled on its surface" if raw.kind == "mesh" else "points",
        "points": len(raw.points),
        "non-finite": len(raw.points) - len(finite),
        "duplicates": len(finite) - _distinct(finite),
        "normals": raw.normals is not None,
        "colours": raw.colors is not None,
        "viewpoint": raw.viewpoint,
    }
    if len(finite):
        facts |= {"minimum": finite.min(axis=0), "maximum": finite.max(axis=0), "extents": np.ptp(finite, axis=0)}
    try:
        cloud = PointCloud.from_any(raw, name="FILE", remove_non_finite=True)
        facts |= {"diagonal": cloud.extent, "spacing": cloud.spacing, "origin offset": cloud.origin}
    except InputError as error:
        facts["unusable"] = f"{error.given}; expected {error.expected}"
    if as_json:
        click.echo(strict_json({name.replace(" ", "_").replace("-", "_"): v for name, v in facts.items()}, indent=2))
        return
    for name, value in facts.items():
        console.line(name, _spoken(value), width=13)


def _distinct(points: Any) -> int:
    ordered = points[np.lexsort(points.T)]
    return len(points) and 1 + int((np.diff(ordered, axis=0) != 0).any(axis=1).sum())


def _spoken(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, np.ndarray):
        return console.vector(value)
    return f"{value:,}" if isinstance(value, int) else number(value) if isinstance(value, float) else str(value)


@main.command(short_help="Show versions, processor and extras.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@debug_option
def doctor(as_json: bool) -> None:
    """Shows versions, processor and extras: what to send along with a bug report."""
    import torch

    device = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    facts = {
        **versions(),
        "SIMD": ops.simd_level(),
        "CUDA": device + ops.cuda_state(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    extras = {name: _extra(name, packages) for name, packages in EXTRAS.items()}
    if as_json:
        click.echo(strict_json(facts | {"extras": extras}, indent=2))
        return
    for name, value in (facts | {f"extra {name}": text for name, text in extras.items()}).items():
        console.line(name, value, width=13)


def _extra(name: str, packages: tuple[str, ...]) -> str:
    try:
        return ", ".join(f"{package} {version(package)}" for package in packages)
    except PackageNotFoundError:
        return f'not installed: pip install "dlc_reg[{name}]"'


@main.command(short_help="Register the real sample pair that comes along.")
@click.option("--report", type=FILE, help="Write a page to look at, one offline file (html).")
@click.option("--plot", type=FILE, help="Write a before/after picture (png, pdf, svg, jpg).")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@debug_option
def demo(report: Path | None, plot: Path | None, overwrite: bool) -> int:
    """Registers the real sample pair that comes with the package and compares the pose with the recorded one."""
    outputs = {option: path for option, path in (("--report", report), ("--plot", plot)) if path is not None}
    console.check_outputs(outputs, [], overwrite=overwrite)
    source, target = io.sample_pair()
    pair = json.loads(source.with_name("truth.json").read_text(encoding="utf-8"))
    clouds = [_read(path, name, strict=True) for path, name in ((source, "source"), (target, "target"))]
    console.line("sample", f"{source.parent}: the Stanford bunny from two sides")
    console.line("", "credit and terms: " + str(source.parent.with_name("README.md")))
    for label, cloud in zip(("read", ""), clouds, strict=True):
        console.line(label, _describe(cloud))
    result = _run(clouds[0], clouds[1], show=True)
    _summary(result, [])
    with console.working("writing"):
        written, _ = _write(result, outputs, overwrite)
    if written:
        console.line("wrote", ", ".join(str(path) for path in written.values()))
    right = _compare(result, np.array(pair["T_target_source"]), pair["unit"])
    console.verdict_line(result, headline(result))
    code = console.exit_code(result.verdict)
    return code if right or code != console.Exit.TRUSTED else console.Exit.FAILED


def _compare(result: RegistrationResult, truth: Any, unit: str) -> bool:
    """Says how far the pose is from the recorded one; True within 5 degrees and 5% of the extent."""
    source, target = _clouds(result)
    turn = float(np.degrees(rotation_angle(truth[:3, :3].T @ result.transformation[:3, :3])))
    points = source.to_absolute()
    offsets = apply_transform(result.transformation, points) - apply_transform(truth, points)
    shift = float(np.linalg.norm(offsets.mean(axis=0)))
    right = turn < 5 and shift < 0.05 * target.extent
    says = "the recorded pose" if right else "NOT the recorded pose"
    console.line(
        "truth", f"{says}: {turn:.3f} deg and {number(shift)} {unit} from it", colour="green" if right else "red"
    )
    return right


main.add_command(align_command)
main.add_command(evaluate_command)
main.add_command(many_command)
main.add_command(multiway_command)
main.add_command(completion_command)

if __name__ == "__main__":
    main()
