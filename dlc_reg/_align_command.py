"""`dlc-reg align-images`: the homography between two images, the source seen by the target, and whether to trust it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from dlc_reg import _console as console
from dlc_reg import io
from dlc_reg._report_page import total_seconds
from dlc_reg.alignment import METHODS, AlignmentResult, Verdict, align_images
from dlc_reg.errors import InputError

FILE = click.Path(path_type=Path)
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
PLOTS = console.SUFFIXES["--plot"]
NAMES = {"source": "SOURCE", "target": "TARGET"}


@click.command("align-images", short_help="Find the homography that maps one image onto another.")
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@click.option("-o", "--output", type=FILE, help=f"Write the source as the target sees it ({', '.join(IMAGES)}).")
@click.option("--save-homography", type=FILE, help="Write the 3 x 3 matrix as text (txt), exact to the last bit.")
@click.option("--plot", type=FILE, help=f"Write a picture of the alignment ({', '.join(PLOTS)}).")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--init", type=FILE, help="A text file with a 3 x 3 matrix to start from instead of a search.")
@click.option("--method", default="auto", show_default=True, help=f"auto, {', '.join(METHODS)}, or a file of weights.")
@click.option("--max-rotation-deg", type=float, default=30.0, show_default=True, help="How far the search turns.")
@click.option("--max-scale", type=float, default=1.5, show_default=True, help="How far the search scales.")
@click.option("--max-size", type=int, default=1024, show_default=True, help="Finest that is looked at [pixels a side].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the summary.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors; the exit code has the verdict.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error comes from.")
def command(
    source: Path,
    target: Path,
    output: Path | None,
    save_homography: Path | None,
    plot: Path | None,
    overwrite: bool,
    init: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Finds the homography that maps SOURCE onto TARGET, pixel centres to pixel centres, the first at (0, 0).

    Where the alignment fails, neither the image nor the matrix is written, for they would be wrong.
    """
    given = {"--output": output, "--save-homography": save_homography, "--plot": plot}
    outputs = {option: path for option, path in given.items() if path is not None}
    _check(outputs, [source, target], overwrite)
    start = None if init is None else _matrix(init)
    try:
        with console.working("aligning", show=not quiet):
            result = align_images(source, target, init=start, **options)
    except InputError as error:  # speak of options, not of Python's arguments
        name = NAMES.get(error.argument, f"--{error.argument.replace('_', '-')}")
        raise InputError(name, error.given, error.expected) from error
    failed = result.verdict is Verdict.FAILED
    withheld = [path for option, path in outputs.items() if failed and option != "--plot"]
    written = {option: path for option, path in outputs.items() if path not in withheld}
    with console.working("writing", show=not quiet):
        _write(result, written, overwrite)
    if as_json:
        paths = {option.removeprefix("--").replace("-", "_"): str(path) for option, path in written.items()}
        code = int(console.exit_code(result.verdict))
        click.echo(result.to_json(indent=2)[:-2] + f',\n  "exit_code": {code},\n  "written": {_json(paths)}\n}}')
    elif not quiet:
        _summary(result, written, withheld)
    return console.exit_code(result.verdict)


def _json(paths: dict[str, str]) -> str:
    import json

    return json.dumps(paths)


def _check(outputs: dict[str, Path], inputs: list[Path], overwrite: bool) -> None:
    suffixes = {"--output": IMAGES, "--save-homography": (".txt",), "--plot": PLOTS}
    console.check_outputs(outputs, inputs, overwrite=overwrite, suffixes=suffixes)


def _matrix(path: Path) -> NDArray[np.float64]:
    try:
        return np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError("--init", f"'{path}' ({error})", "a text file with a 3 x 3 matrix") from None


def _write(result: AlignmentResult, outputs: dict[str, Path], overwrite: bool) -> None:
    if "--output" in outputs:
        from PIL import Image

        with io.replacing(outputs["--output"], overwrite=overwrite) as path:
            Image.fromarray(_storable(result.warped)).save(path, format=_format(outputs["--output"]))
    if "--save-homography" in outputs:
        rows = "\n".join(" ".join(repr(float(x)) for x in row) for row in result.homography)
        with io.replacing(outputs["--save-homography"], overwrite=overwrite) as path:
            path.write_text(rows + "\n", encoding="utf-8")
    if "--plot" in outputs:
        result.plot(outputs["--plot"])


def _storable(image: NDArray[Any]) -> NDArray[Any]:
    """What every image format can hold: bytes."""
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float64)
    top = np.iinfo(image.dtype).max if image.dtype.kind in "iu" else max(float(values.max()), 1e-300)
    stored: NDArray[Any] = np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
    return stored


def _format(path: Path) -> str:
    return {"jpg": "jpeg", "tif": "tiff"}.get(path.suffix[1:].lower(), path.suffix[1:].lower())


def _summary(result: AlignmentResult, written: dict[str, Path], withheld: list[Path]) -> None:
    console.line("took", f"{total_seconds(result.timings):.2f} s, {len(result.history)} records, "
                         f"{result.settings['method']}")  # fmt: skip
    for label, row in zip(("matrix", "", ""), result.homography, strict=True):
        console.line(label, " ".join(f"{x:14.7g}" for x in row))
    evidence = result.evidence
    agreement = f"the other way round {evidence['backward']:.2f} pixels away, overlap {evidence['overlap']:.0%}"
    gap = f"gap to the next {evidence['gap']:.3f}, " if np.isfinite(evidence["gap"]) else ""  # where there is a next
    console.line("fit", f"correlation {result.correlation:.3f}, {gap}{agreement}")
    if written:
        console.line("wrote", ", ".join(map(str, written.values())))
    if withheld:
        console.line("withheld", ", ".join(map(str, withheld)) + " (a failed homography would be wrong)")
    colour = {Verdict.ALIGNED: "green", Verdict.FAILED: "red"}.get(result.verdict, "yellow")
    console.line("VERDICT", f"{result.verdict}: {'; '.join(result.verdict_reasons)}", colour=colour)
