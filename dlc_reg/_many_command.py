"""`dlc-reg register-many`: the pairs of a CSV file, into results that a rerun continues."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import click
from tqdm import tqdm

from dlc_reg import _console as console
from dlc_reg._many_list import read_entries
from dlc_reg._many_output import ERROR, open_output
from dlc_reg._search_options import arguments, in_options, search_options, workers_option
from dlc_reg.errors import InputError
from dlc_reg.many import register_many
from dlc_reg.registration.result import Verdict

FILE = click.Path(path_type=Path)


@click.command("register-many", short_help="Register the pairs that a CSV file lists.")
@click.argument("pairs", type=FILE)
@click.option(
    "-o",
    "--output",
    type=FILE,
    required=True,
    help="The results (csv, parquet). One that exists is continued.",
)
@workers_option
@click.option("--timeout", type=float, metavar="SECONDS", help="End a pair that takes longer; it has failed.")
@click.option("--allow-outside", is_flag=True, help="Let the paths in PAIRS lead out of its folder.")
@search_options
@click.option("--strict", is_flag=True, help="Refuse non-finite points instead of dropping them.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors; the exit code has the verdict.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error comes from.")
def command(
    pairs: Path,
    output: Path,
    workers: int | None,
    timeout: float | None,
    allow_outside: bool,
    strict: bool,
    quiet: bool,
    **search: Any,
) -> int:
    """Registers the pairs that PAIRS lists, a CSV file with the columns source, target and perhaps name and init.

    Paths are relative to the file's folder, init is 16 numbers. Each pair becomes a line of a .csv as soon as it is
    done, or a row of a .parquet, a folder to which files are added every ten seconds and in the end. Pairs that are
    there already are not done again. A pair that fails costs only itself, and says why on stderr.

    Exit codes are for all lines of the output: 0 all trusted, 2 some doubtful or ambiguous, 3 some failed.
    """
    options = arguments(search) | {"remove_non_finite": not strict}
    pool: Callable[[int], Executor] = (
        processes if timeout is None else ThreadPoolExecutor
    )  # with a limit each thread has its process
    executor = None if workers is None else partial(pool, workers)
    if workers is not None and options["num_threads"] is None:
        del options["num_threads"]  # one thread for each
    began = time.perf_counter()
    try:
        done = open_output(output).done
        old = Counter(entry.name in done for entry in read_entries(pairs, allow_outside=allow_outside))
        results = register_many(
            pairs,
            executor=executor,
            output=output,
            timeout=timeout,
            in_flight=2 * (workers or 1),
            allow_outside=allow_outside,
            **options,
        )
    except InputError as error:
        raise in_options(error, [*options, "output", "timeout"], ["pairs"]) from error
    show = not quiet and sys.stderr.isatty()
    with tqdm(total=old[False], unit="pair", disable=not show, file=sys.stderr) as bar:
        for record in results:
            if record.error is not None:
                bar.write(f"{record.name}: {record.error}", file=sys.stderr)
            bar.update()
    counts = open_output(output).counts
    if not quiet:
        before = f", {old[True]} of them done before" if old[True] else ""
        console.line("pairs", f"{old.total()} in {pairs}{before}")
        console.line("took", f"{time.perf_counter() - began:.2f} s")
        console.line("wrote", str(output))
        _summary(counts)
    return _exit_code(counts)


def processes(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_the_command)


def _end_with_the_command() -> None:
    """A worker whose parent was killed would wait for ever for its next pair."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _summary(counts: Counter[str]) -> None:
    kinds = [(verdict.value, verdict.value) for verdict in Verdict] + [(ERROR, "without a result")]
    found = [f"{counts[kind]} {text}" for kind, text in kinds if counts[kind]]
    colour = {console.Exit.TRUSTED: "green", console.Exit.FAILED: "red"}.get(_exit_code(counts), "yellow")
    console.line("VERDICTS", ", ".join(found) or "none, for there are no pairs", colour=colour)


def _exit_code(counts: Counter[str]) -> console.Exit:
    if counts[ERROR] or counts[Verdict.FAILED.value]:
        return console.Exit.FAILED
    return console.Exit.TRUSTED if counts.total() == counts[Verdict.ALIGNED.value] else console.Exit.DOUBTFUL
