"""Fuzzes what reads files and what takes clouds: damaged files, lying headers, degenerate clouds, in worker processes.

    python tools/fuzz.py files --count 1000000 [--seed 0] [--workers 2] [--keep found] [--seconds 3600]
    python tools/fuzz.py clouds --count 100000
    python tools/fuzz.py files --seed 0 --only 4711

A case is what the seed and its number make it, so that `--only` runs one again, in this process. A worker has 1 GiB of
address space beyond what its imports take, and a case ten seconds of processor time, or two minutes. Findings are: an
exception other than InputError, a process that died, one that took longer, memory that was refused, and an answer
called `aligned` that is wrong. Each is printed with its number and, with `--keep`, written to that folder. The exit
code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_finding import Finding

SECONDS = 10.0  # of processor time that a case may take
WAIT = 120.0  # seconds on the clock that it may take, where other work keeps the processors
Case = Callable[[int, int], str]

ROOM = 1 << 30  # bytes of address space that a case may take
REST = 2000  # cases after which a worker makes room for a fresh one
TELLING = 1.0  # seconds between a worker's reports


@dataclass
class Worker:
    process: Any
    pipe: Any
    at: Any  # the case in hand, and when it began: [number, seconds, seconds of processor time]
    last: int


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("files", "clouds"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--only", type=int, help="the number of the only case")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no worker is started anew")
    parser.add_argument("--keep", type=Path, help="a folder for what is found")
    options = parser.parse_args(arguments)
    memory = Path("/dev/shm")  # where there is one no file goes to a disk
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        function = case(options.what, Path(folder))
        if options.only is None:
            return report(options, run(options, function, Path(folder)))
        print(function(options.seed, options.only))
        return 0


def case(what: str, folder: Path) -> Case:
    """The function that runs a case, given seed and number, and says what came of it."""
    if what == "files":
        from fuzz_files import Files

        return Files(folder).run
    from fuzz_clouds import run

    for number in range(30):  # what is imported where it is used is imported now, and threads are there when it forks
        with contextlib.suppress(Exception):
            run(0, number)
    return run


def run(
    options: argparse.Namespace, function: Case, folder: Path
) -> tuple[collections.Counter[str], list[tuple[int, str]], float]:
    """What came of the cases, how often; the findings by number; and the seconds that it took."""
    outcomes: collections.Counter[str] = collections.Counter()
    findings: list[tuple[int, str]] = []
    began = shown = time.monotonic()
    at, end = options.first, options.first + options.count
    left: list[tuple[int, int]] = []  # of the workers that died
    workers: list[Worker] = []
    while True:
        over = time.monotonic() - began > options.seconds
        while len(workers) < options.workers and not over and (left or at < end):
            first, last = left.pop() if left else (at, min(at + REST, end))
            at = max(at, last)
            workers.append(start(options, function, folder, first, last))
        if not workers:
            break
        for worker in list(workers):
            number, since, used = worker.at
            alive = worker.process.is_alive()
            waited = time.monotonic() - since if alive and number >= 0 else 0.0
            late = waited > WAIT or (waited > SECONDS and processor_time(worker.process.pid) - used > SECONDS)
            while not late and worker.pipe.poll():
                try:
                    told = worker.pipe.recv()
                except EOFError:
                    break
                outcomes.update(told[0])
                findings += told[1]
            if alive and not late:
                continue
            if late:
                os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.join()
            workers.remove(worker)
            number = int(worker.at[0])
            if late or worker.process.exitcode != 0:
                reason = f"took {waited:.0f} s" if late else f"died ({worker.process.exitcode})"
                findings.append((number, reason))
                outcomes["hang" if late else "crash"] += 1
                keep(options, number, reason, last_content(folder, worker.process.pid))
                left.append((number + 1, worker.last))
        if time.monotonic() - shown > 60:
            shown = time.monotonic()
            print(f"{outcomes.total():,} cases in {shown - began:.0f} s, {len(findings)} findings", flush=True)
        if workers:
            wait([handle for worker in workers for handle in (worker.pipe, worker.process.sentinel)], timeout=1.0)
    return outcomes, findings, time.monotonic() - began


def start(options: argparse.Namespace, function: Case, folder: Path, first: int, last: int) -> Worker:
    context = multiprocessing.get_context("fork")
    at = context.Array("d", [-1.0, 0.0, 0.0], lock=False)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(options, function, folder, first, last, at, theirs), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours, at, last)


def work(options: argparse.Namespace, function: Case, folder: Path, first: int, last: int, at: Any, pipe: Any) -> None:
    """A worker's life: cases [first, last), each told of before it begins, outcomes told now and then."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    bound_memory()
    told = collections.Counter[str]()
    findings: list[tuple[int, str]] = []
    reported = time.monotonic()
    for number in range(first, last):
        at[1], at[2] = time.monotonic(), time.process_time()
        at[0] = number
        try:
            told[function(options.seed, number)] += 1
        except Finding as finding:
            told["finding"] += 1
            findings.append((number, str(finding)))
            keep(options, number, str(finding), (finding.content, finding.suffix))
        except BaseException:
            told["finding"] += 1
            findings.append((number, traceback.format_exc()))
            keep(options, number, traceback.format_exc(), last_content(folder, os.getpid()))
        if findings or time.monotonic() - reported > TELLING or number == last - 1:
            pipe.send((told, findings))
            told, findings = collections.Counter[str](), []
            reported = time.monotonic()
    at[0] = -1


def processor_time(pid: int) -> float:
    """Seconds that the process has had; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bound_memory() -> None:
    import resource

    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def last_content(folder: Path, pid: int) -> tuple[bytes, str]:
    """What the file held that the worker was at, and its suffix."""
    for path in (folder / str(pid)).glob("case.*"):
        return path.read_bytes(), path.suffix
    return b"", ""


def keep(options: argparse.Namespace, number: int, reason: str, content: tuple[bytes, str]) -> None:
    if options.keep is None:
        return
    options.keep.mkdir(parents=True, exist_ok=True)
    place = options.keep / f"{options.what}-{options.seed}-{number}"
    place.with_suffix(".txt").write_text(reason, encoding="utf-8")
    if content[0]:
        (options.keep / f"{place.name}{content[1]}").write_bytes(content[0])


def report(options: argparse.Namespace, result: tuple[collections.Counter[str], list[tuple[int, str]], float]) -> int:
    outcomes, findings, seconds = result
    for number, reason in findings[:50]:
        print(f"-- {options.what} --seed {options.seed} --only {number}\n{reason.rstrip()}")
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:>10,}  {outcome}")
    print(
        f"{outcomes.total():,} cases of {options.what}, seed {options.seed}, {len(findings)} findings, {seconds:.0f} s "
        f"({options.workers} workers, {platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__})"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
