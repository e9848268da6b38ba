"""What the command line needs beside its commands: exit codes, checks of the output paths, and the text it prints."""

from __future__ import annotations

import enum
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from dlc_reg._report_page import number
from dlc_reg.errors import InputError
from dlc_reg.registration.result import RegistrationResult, Verdict


class Exit(enum.IntEnum):
    """`dlc-reg`'s exit codes; 64 and 70 are EX_USAGE and EX_SOFTWARE of sysexits.h."""

    TRUSTED = 0
    DOUBTFUL = 2
    FAILED = 3
    BAD_INPUT = 64
    INTERNAL = 70
    INTERRUPTED = 130


def exit_code(verdict: Verdict | None) -> Exit:
    """A result without a verdict is not trusted."""
    return {Verdict.ALIGNED: Exit.TRUSTED, Verdict.FAILED: Exit.FAILED}.get(verdict or Verdict.DOUBTFUL, Exit.DOUBTFUL)


class Console(click.Group):
    """A group that turns every way of going wrong into one line on stderr and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        debug = "--debug" in (sys.argv[1:] if args is None else args)
        if "NO_COLOR" in os.environ:
            extra.setdefault("color", False)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click before 8.2 has none
                error.show()
                code = Exit.BAD_INPUT
            else:
                code = _complain(_in_one_line(error), Exit.BAD_INPUT, debug)
        except InputError as error:
            code = _complain(str(error), Exit.BAD_INPUT, debug)
        except (KeyboardInterrupt, click.Abort):
            code = _complain("interrupted", Exit.INTERRUPTED, debug)
        except BrokenPipeError:  # the reader of our output has gone, as in `dlc-reg info x.ply | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = Exit.INTERNAL
        except OSError as error:  # a full disk, say: nobody's fault here
            code = _complain(str(error), Exit.INTERNAL, debug)
        except Exception as error:
            what = f"{type(error).__name__}: {error}".split("\n")[0]
            remedy = "please report it with the output of `dlc-reg doctor`; --debug shows where"
            code = _complain(f"unexpected {what} ({remedy})", Exit.INTERNAL, debug)
        if standalone_mode:
            sys.exit(int(code or 0))
        return code


def _in_one_line(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    remedy = f" ({context.command_path} --help tells more)" if context else ""
    return " ".join(error.format_message().split()).removesuffix(".") + remedy


def _complain(message: str, code: Exit, debug: bool) -> Exit:
    if debug:
        traceback.print_exc()
    click.echo(f"{click.style('error', fg='red', bold=True)}: {click.format_filename(message)}", err=True)
    return code


SUFFIXES = {
    "--output": (".ply", ".pcd", ".xyz", ".txt", ".npy", ".npz"),
    "--save-transform": (".txt",),
    "--report": (".html", ".htm"),
    "--plot": (".png", ".pdf", ".svg", ".jpg"),
}


def check_outputs(
    outputs: Mapping[str, Path],
    inputs: Sequence[Path],
    *,
    overwrite: bool,
    suffixes: Mapping[str, tuple[str, ...]] = SUFFIXES,
) -> None:
    """Raises `InputError` for a path that could not be written once the work is done, or must not be."""
    if "--plot" in outputs:
        from dlc_reg.report import require_viz

        try:
            require_viz()
        except ImportError as error:
            raise InputError("--plot", str(outputs["--plot"]), str(error)) from None
    seen: dict[Path, str] = {}
    for option, path in outputs.items():
        shown = f"'{path}'"
        if path.suffix.lower() not in suffixes[option]:
            raise InputError(option, shown, "a name that ends in " + " ".join(suffixes[option]))
        if not path.parent.is_dir():
            raise InputError(option, shown, f"a folder that exists; make '{path.parent}' first")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise InputError(option, shown, "a file that may be written")
        if any(path.exists() and other.exists() and path.samefile(other) for other in inputs):
            raise InputError(option, shown, "a path other than the inputs'")
        if seen.setdefault(path.resolve(), option) != option:
            raise InputError(option, shown, f"a path other than that of {seen[path.resolve()]}")
        if path.exists() and not overwrite:
            raise InputError(option, f"{shown}, which exists", "a new name, or --overwrite")


def read_transform(path: Path, option: str) -> NDArray[np.float64]:
    """(4, 4) from a text file of four rows, split by blanks or commas. Raises `InputError`."""
    try:
        rows = [line.split("#")[0].replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines()]
        matrix = np.array([[float(word) for word in row] for row in rows if row])
    except (OSError, ValueError) as error:
        raise InputError(option, f"'{path}' ({error})", "a text file with a 4 x 4 matrix") from None
    if matrix.shape != (4, 4):
        raise InputError(option, f"'{path}' with shape {matrix.shape}", "a text file with a 4 x 4 matrix")
    return matrix


@contextmanager
def working(what: str, *, show: bool = True) -> Iterator[None]:
    """Says on a terminal what takes its time, while it does; stderr that goes elsewhere gets nothing."""
    shown = f"{what} ..." if show and sys.stderr.isatty() else ""
    click.echo(shown, nl=False, err=True)
    try:
        yield
    finally:
        click.echo("\r" + " " * len(shown) + "\r" if shown else "", nl=False, err=True)


def vector(values: Iterable[float]) -> str:
    return "(" + ", ".join(number(float(value)) for value in values) + ")"


def line(label: str, text: str, *, colour: str | None = None, width: int = 8) -> None:
    """One line of the summary on stdout, the label in its column."""
    click.echo(click.style(f"{label:<{width}}", fg=colour, bold=True) + " " + click.format_filename(text))


def verdict_line(result: RegistrationResult, sentence: str) -> None:
    sentence = sentence.replace("with_scaling=True", "--with-scaling")  # options, not Python's arguments
    colour = {Exit.TRUSTED: "green", Exit.FAILED: "red"}.get(exit_code(result.verdict), "yellow")
    line("VERDICT", sentence, colour=colour)
