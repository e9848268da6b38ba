"""`dlc-reg register-multiway`: many clouds into the frame of the first."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import dlc_reg
from dlc_reg import _console as console
from dlc_reg import io
from dlc_reg._many_command import processes
from dlc_reg._report_page import number
from dlc_reg._search_options import arguments, in_options, search_options_of_many, workers_option
from dlc_reg.errors import InputError
from dlc_reg.multiway import MultiwayResult, register_multiway
from dlc_reg.registration.result import Verdict, strict_json

FILE = click.Path(path_type=Path)


@click.command("register-multiway", short_help="Put many clouds into the frame of the first.")
@click.argument("clouds", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="Write the poses, the pairs and the verdict (json).")
@click.option("--save-merged", type=FILE, help="Write the clouds as one (ply, pcd, xyz, txt, npy, npz).")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@workers_option
@click.option("--tolerance", type=float, help="How far pairs may contradict each other. Default: two voxels.")
@search_options_of_many
@click.option("--strict", is_flag=True, help="Refuse non-finite points instead of dropping them.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors; the exit code has the verdict.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error comes from.")
def command(
    clouds: tuple[Path, ...],
    output: Path,
    save_merged: Path | None,
    overwrite: bool,
    workers: int | None,
    tolerance: float | None,
    strict: bool,
    quiet: bool,
    **search: Any,
) -> int:
    """Registers pairs of CLOUDS and makes their poses agree, in the frame of the first.

    CLOUDS are two files or more, or one folder, whose clouds are taken in the order of their names. The output has
    each cloud's pose, a 4 x 4 matrix that maps it into the first's frame, or null for one that no trusted pair
    connects; and every pair, whether it is used, and why. A cloud without a pose is not in the merged one.

    Exit codes: 0 every cloud has a trusted pose, 2 some have none or pairs contradict each other, 3 none has.
    """
    paths = _in_folder(clouds[0]) if len(clouds) == 1 and clouds[0].is_dir() else list(clouds)
    given = {"--output": output, "--save-merged": save_merged}
    outputs = {option: path for option, path in given.items() if path is not None}
    suffixes = {"--output": (".json",), "--save-merged": console.SUFFIXES["--output"]}
    console.check_outputs(outputs, paths, overwrite=overwrite, suffixes=suffixes)
    stand = {"source_viewpoint": None, "target_viewpoint": None}
    options = arguments({**search, **stand}) | {"remove_non_finite": not strict, "tolerance": tolerance}
    viewpoint, _ = (options.pop(name) for name in stand)
    if workers is not None and options["num_threads"] is None:
        del options["num_threads"]  # one thread for each
    try:
        result = register_multiway(
            paths,
            viewpoints=None if viewpoint is None else [viewpoint] * len(paths),
            executor=None if workers is None else partial(processes, workers),
            in_flight=2 * (workers or 1),
            progress=not quiet and sys.stderr.isatty(),
            **options,
        )
    except InputError as error:
        raise _in_paths(in_options(error, options, ["clouds"]), paths) from error
    with console.working("writing", show=not quiet):
        written, withheld = _write(result, paths, outputs, overwrite)
    if not quiet:
        _summary(result)
        console.line("wrote", ", ".join(map(str, written)))
        if withheld is not None:
            console.line("withheld", f"{withheld} (no cloud has a pose but the first)")
        colour = {console.Exit.TRUSTED: "green", console.Exit.FAILED: "red"}
        text = f"{result.verdict}: {'; '.join(result.verdict_reasons)}"
        console.line("VERDICT", text, colour=colour.get(console.exit_code(result.verdict), "yellow"))
    return console.exit_code(result.verdict)


def _in_folder(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in io.READERS and path.is_file())
    if len(found) < 2:
        raise InputError("CLOUDS", f"the folder '{folder}' with {len(found)} clouds", "at least 2")
    return found


def _in_paths(error: InputError, paths: list[Path]) -> InputError:
    """The same error, of a file and not of a number."""
    for n, path in enumerate(paths):
        if error.argument.startswith(f"clouds[{n}]"):
            expected = error.expected.replace("remove_non_finite=True", "no --strict")
            given = error.given if str(path) in error.given else f"'{path}', {error.given}"
            return InputError("CLOUDS", given, expected)
    return error


def _write(
    result: MultiwayResult, paths: list[Path], outputs: dict[str, Path], overwrite: bool
) -> tuple[list[Path], Path | None]:
    """What was written, and the merged cloud's path where that was withheld."""
    document = {
        "version": dlc_reg.__version__,
        "exit_code": int(console.exit_code(result.verdict)),
        "clouds": [str(path) for path in paths],
        **result.to_dict(),
    }
    with io.replacing(outputs["--output"], overwrite=overwrite) as path:
        path.write_text(strict_json(document, indent=2) + "\n", encoding="utf-8")
    merged = outputs.get("--save-merged")
    if merged is None or result.verdict is Verdict.FAILED:
        return [outputs["--output"]], merged
    cloud = result.merged()
    normals, colors = (None if rows is None else rows.numpy() for rows in (cloud.normals, cloud.colors))
    io.write(merged, cloud.to_absolute(), normals, colors, overwrite=overwrite, argument="--save-merged")
    return list(outputs.values()), None


def _summary(result: MultiwayResult) -> None:
    points = sum(map(len, result.clouds))
    console.line("read", f"{len(result.clouds)} clouds, {points:,} points")
    used = [edge for edge in result.edges if edge.used]
    worst = max((edge.residual for edge in used), default=np.nan)
    console.line("pairs", f"{len(used)} of {len(result.edges)} used, largest residual {number(worst)}")
    for edge in result.edges:
        if not edge.used:
            console.line("", f"{result.names[edge.source]} -> {result.names[edge.target]}: {edge.reason}")
    console.line("took", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.timings.items()))
