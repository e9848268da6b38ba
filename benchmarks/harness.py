"""What every benchmark here shares: options, competitors that alternate, checks, memory, provenance and tables.

A script names its cases and hands them to `main`. A case is a `Work`: the contenders, ours first, each a call from
inputs that lie ready to an answer, and a check of the answers. Every contender is called once to warm up and its
answer is checked; only then are they timed, in rounds, each of which calls all of them and begins with the next one.
Ratios are medians of the ratios within a round, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OURS = "dlc_reg"
PEERS = ("scipy", "pykdtree", "open3d", "small_gicp", "faiss-cpu")
LEAST_ROUNDS = 3

_wanted: set[str] | None = None  # the contenders to make; None: all

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Call = Callable[[], Any]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Checked:
    """What a check says of an answer."""

    right: bool
    remark: str = ""
    steps: float = 1.0
    """How much of the work was done: times are divided by it before they are compared (an ICP that stops early)."""


@dataclass(frozen=True)
class Cost:
    """The least that a kernel must do: bytes to and from main memory, and float32 operations."""

    bytes: float
    operations: float


@dataclass(frozen=True)
class Work:
    """One piece of work. `check(name, answer)` compares with outside truth."""

    points: int
    contenders: Mapping[str, Call]
    check: Callable[[str, Any], Checked]
    cost: Cost | None = None


Cases = dict[str, Callable[[], Work]]


@dataclass
class Row:
    """A contender's times in seconds, and how many times as long as ours it takes."""

    name: str
    seconds: list[float]
    remark: str = ""
    right: bool = True
    steps: float = 1.0
    ratio: float | None = None
    ratio_spread: tuple[float, float] | None = None
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")


@dataclass
class Result:
    """One case, measured."""

    benchmark: str
    case: str
    points: int
    threads: int
    clock: str
    rows: list[Row]
    roofline: dict[str, float] = field(default_factory=dict)


def gather(makers: Mapping[str, Callable[[], Call]]) -> dict[str, Call]:
    """The contenders whose libraries are installed."""
    found = {}
    for name, make in makers.items():
        if _wanted is not None and name not in _wanted:
            continue
        try:
            found[name] = make()
        except ImportError as missing:
            if name == OURS:
                raise
            print(f"without {name}: {missing}", file=sys.stderr)
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; of fewer than three values their range."""
    if len(values) < 3:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def measure(work: Work, repeats: int, budget: float, clock: Clock = time.perf_counter) -> list[Row]:
    """Warms up, checks, and times in rounds that alternate.

    `budget` is in seconds for all rounds; at least three are run, but a contender that needs more than a third of it
    for one call is left at that one. Raises `SystemExit` if our own answer is wrong.
    """
    rows, first = [], {}
    for name, call in work.contenders.items():
        row, took = _warm_up(name, call, work.check, clock)
        rows.append(row)
        if row.right or row.steps:
            first[name] = took
    if not rows[0].right:
        raise SystemExit(f"{rows[0].name}: {rows[0].remark}: nothing to compare")
    slow = [name for name, took in first.items() if took > budget / 3]
    timed = [name for name in first if name not in slow]
    total = sum(first[name] for name in timed)
    for number in range(min(repeats, max(LEAST_ROUNDS, int(budget / total))) if timed else 0):
        shift = number % len(timed)
        for name in timed[shift:] + timed[:shift]:
            gc.collect()
            began = clock()
            work.contenders[name]()
            _row(rows, name).seconds.append(clock() - began)
    for name in slow:
        row = _row(rows, name)
        row.seconds, row.remark = [first[name]], "; ".join(filter(None, [row.remark, "one cold run"]))
    _compare(rows)
    return rows


def _warm_up(name: str, call: Call, check: Callable[[str, Any], Checked], clock: Clock) -> tuple[Row, float]:
    began = clock()
    try:
        answer = call()
    except Exception as error:  # a peer's failure is a result, too
        if name == OURS:
            raise
        return Row(name, [], f"failed: {error}"[:80], right=False, steps=0.0), 0.0
    took = clock() - began
    checked = check(name, answer)
    return Row(name, [], checked.remark, checked.right, checked.steps), took


def _row(rows: list[Row], name: str) -> Row:
    return next(row for row in rows if row.name == name)


def _compare(rows: list[Row]) -> None:
    ours = rows[0]
    for row in rows:
        if not row.seconds or not ours.seconds:
            continue
        mine = ours.seconds if len(ours.seconds) == len(row.seconds) else [ours.median] * len(row.seconds)
        ratios = [(b / row.steps) / (a / ours.steps) for a, b in zip(mine, row.seconds, strict=True)]
        row.ratio, row.ratio_spread = statistics.median(ratios), spread(ratios)


def main(
    script: str,
    description: str,
    cases: Callable[[argparse.Namespace], Cases],
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    after: Callable[[list[Result]], list[str]] = lambda results: [],
) -> None:
    """Runs a script's cases and prints a table of each; `after` says more about all of them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--threads", type=int, default=1, help="for every library, by affinity too (default 1)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a case, after which fewer rounds do")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for one thread on a machine that is busy"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="*", help="cases whose names match this pattern")
    parser.add_argument("--against", nargs="+", metavar="NAME", help="contenders other than ours (default: all)")
    parser.add_argument(
        "--memory", default="", metavar="PATTERN", help="in these cases also peak memory, each in a process of its own"
    )
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads > 1:
        parser.error("--clock cpu adds up all threads: only with --threads 1")
    _limit_threads(options.threads)
    chosen = cases(options)
    global _wanted
    if options.peak:
        case, name = options.peak
        _wanted = {name}
        print(json.dumps(peak_memory(chosen[case]().contenders[name])))
        return
    if options.against:
        _wanted = {OURS, *options.against}
    results = []
    for case, make in chosen.items():
        if fnmatch(case, options.only):
            results.append(_run(Path(script).stem, case, make, options))
            print(f"\n{table(results[-1])}", flush=True)
    notes = after(results)
    print("\n" + "\n".join([*notes, summary(about(options))]))
    if options.json:
        save(options.json, description, about(options), results, notes)


def _run(benchmark: str, case: str, make: Callable[[], Work], options: argparse.Namespace) -> Result:
    from roofline import roofline

    work = make()
    rows = measure(work, options.repeats, options.budget, CLOCKS[options.clock])
    result = Result(benchmark, case, work.points, options.threads, options.clock, rows)
    if work.cost is not None:
        result.roofline = roofline(work.cost, result.rows[0].median, options.threads, CLOCKS[options.clock])
    del work
    if fnmatch(case, options.memory):
        for row in result.rows:
            row.peak_bytes = _peak_in_child(case, row.name)
    return result


def _limit_threads(threads: int) -> None:
    """Starts this script again with the limits set: OpenMP reads its own when loaded, and TBB the affinity."""
    wanted = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    import torch

    torch.set_num_threads(threads)


def peak_memory(call: Call) -> int | None:
    """Bytes above what was there before at the highest point of one call, its answer included."""
    import resource

    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _status("VmRSS")
        answer = call()
        peak = _status("VmHWM")
    except OSError:  # not Linux: what reading the inputs took may hide a part
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        answer = call()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    del answer
    return peak - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def _peak_in_child(case: str, name: str) -> int | None:
    """The same command in a new process; there, memory that was freed goes back and does not hide what comes after."""
    command = [sys.executable, *sys.argv, "--peak", case, name]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Where figures come from: commit, versions, hardware, threads, seed, load and time."""
    from dlc_reg.evaluation import provenance
    from dlc_reg.ops import simd_level

    found = provenance()
    for peer in PEERS:
        try:
            found["versions"][peer] = version(peer)
        except PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    load = os.getloadavg()[0]
    found["hardware"] |= {"processors": os.cpu_count(), "memory_bytes": memory, "load": load, "simd": simd_level()}
    found["settings"] = {name: str(value) for name, value in vars(options).items() if name not in ("peak", "json")}
    return found | {"seed": options.seed}


def summary(found: Mapping[str, Any]) -> str:
    """Provenance in a line or two."""
    hardware, versions = found["hardware"], ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    return (
        f"{hardware['processor']}, {hardware['processors']} processors, {hardware['memory_bytes'] / 2**30:.0f} GiB, "
        f"{hardware['simd']}, load {hardware['load']:.1f}; {hardware['threads']} thread(s), seed {found['seed']}, "
        f"commit {found['commit'][:12]}{' with changes' if 'changes' in found['commit'] else ''}, {found['time']}; "
        f"{versions}"
    )


def table(result: Result) -> str:
    """A Markdown table of one case, and below it what the machine would allow."""
    from dlc_reg._tables import markdown

    header = ["contender", "median", "quartiles", f"times {OURS}", "quartiles", "peak memory", "remark"]
    body = [
        [
            row.name,
            duration(row.median) if row.seconds else "",
            " - ".join(duration(x) for x in spread(row.seconds)) if row.seconds else "",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.ratio_spread is None else "{:.2f} - {:.2f}".format(*row.ratio_spread),
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f} MiB",
            ("" if row.right else "WRONG: ") + row.remark,
        ]
        for row in result.rows
    ]
    rounds = max(len(row.seconds) for row in result.rows)
    title = f"**{result.benchmark}: {result.case}**, {result.threads} thread(s), {rounds} rounds after a warm-up"
    title += ", processor time" if result.clock == "cpu" else ""
    lines = [title, "", markdown(header, body)]
    if result.roofline:
        r = result.roofline
        lines += [
            "",
            f"Roofline: {r['bytes'] / 1e6:.3g} MB at {r['bandwidth'] / 1e9:.1f} GB/s take {duration(r['memory_s'])}, "
            f"{r['operations'] / 1e6:.3g} Mflop at {r['rate'] / 1e9:.0f} Gflop/s {duration(r['arithmetic_s'])}; "
            f"{OURS} takes {r['times_bound']:.1f} times the larger.",
        ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def save(path: Path, description: str, found: Mapping[str, Any], results: list[Result], notes: list[str]) -> None:
    rows = [vars(r) | {"rows": [vars(x) | {"median": x.median} for x in r.rows]} for r in results]
    text = {"description": description, "about": found, "results": rows, "notes": notes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """What `save` wrote: everything as it stands there, and the results."""
    text = json.loads(path.read_text(encoding="utf-8"))
    results = []
    for given in text["results"]:
        rows = [Row(**{k: v for k, v in row.items() if k != "median"}) for row in given["rows"]]
        results.append(Result(**(given | {"rows": rows})))
    return text, results
