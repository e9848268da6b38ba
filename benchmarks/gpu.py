"""The CUDA operators on the GPU at hand, beside what else runs there; `gpu.sh` builds, tests and runs it in one go.

    python benchmarks/gpu.py [--only "1-NN*"] [--largest 1000000] [--out gpu.json] [--dry]

How it measures is harness.py's: every contender's answer is checked against outside truth before anything is timed,
then come rounds, each beginning with the next contender. A time is from the call to the end of all work on the device,
the host's waiting for it included. Inputs are on the device. Memory is the peak of what a call takes from torch's
allocator; libraries with their own show none. The roofline is that of the GPU: a large copy and a float32 product.

`--dry`: tiny sizes on the host, on the emulated kernels where the module has them, to see that everything runs.
"""

from __future__ import annotations

import argparse
import subprocess
import time
import traceback
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import growth
import harness
import roofline
import torch
from gpu_cases import DRY, FULL, cases
from harness import OURS, Call, Result, Row

from dlc_reg import _core
from dlc_reg.ops import _cuda

TARGETS = (  # on an H200
    ("1-NN, 1M in 1M", "1-NN surface near, 1,000,000 points", 2e-3),
    ("a point-to-plane iteration, 100k", "point-to-plane linearisation near, 100,000 points", 100e-6),
    ("1,024 pairs of 1,024 points, 20 soft steps", "20 soft steps, 1024 pairs of 1024 points", 20e-3),
)
BOUND = ("1-NN, 10M in 10M", "1-NN surface near, 10,000,000 points", 2.0)  # times the memory traffic's


def clock(device: torch.device) -> float:
    """Once the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def machine(device: torch.device, size: int) -> tuple[float, float]:
    """Bytes a second of a copy, read and written, and float32 operations a second of a product."""
    source, target = torch.zeros(2, size**2 * 8, device=device)
    a, b = torch.rand(2, size, size, device=device)

    def best(call: Call) -> float:
        times = []
        for _ in range(8):
            began = clock(device)
            call()
            times.append(clock(device) - began)
        return min(times[1:])

    return 2 * 4 * source.numel() / best(lambda: target.copy_(source)), 2 * size**3 / best(lambda: a @ b)


def peak(call: Call, device: torch.device) -> int | None:
    """Bytes of torch's allocator above what was there before, the answer included; None where it took none."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    answer = call()
    torch.cuda.synchronize(device)
    del answer
    return (torch.cuda.max_memory_allocated(device) - before) or None


def about(options: argparse.Namespace, device: torch.device, speed: tuple[float, float]) -> dict[str, Any]:
    """Provenance: of this checkout, for what is measured was built from it and lies elsewhere."""
    found = harness.about(options)
    git = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    commit = git(["git", "rev-parse", "HEAD"])
    if commit.returncode == 0:
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout
        found["commit"] = commit.stdout.strip() + (" with changes" if changed else "")
    found["hardware"] |= {"kernels": _cuda.state(), "bytes_per_s": speed[0], "float32_per_s": speed[1]}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["hardware"] |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
        }
        found["versions"]["cuda"] = torch.version.cuda
    return found


def run(name: str, make: Callable[[], harness.Work], options: argparse.Namespace, device: torch.device) -> Result:
    work = make()
    rows = harness.measure(work, options.repeats, options.budget, lambda: clock(device))
    for row in rows:
        if row.seconds:
            row.peak_bytes = peak(work.contenders[row.name], device)
    result = Result("gpu", name, work.points, torch.get_num_threads(), "wall", rows)
    if work.cost is not None:
        result.roofline = roofline.against(work.cost, rows[0].median, *options.speed)
    return result


def exponents(results: list[Result]) -> list[str]:
    sizes: dict[str, set[int]] = {}
    for result in results:
        sizes.setdefault(result.case.split(",")[0], set()).add(result.points)
    return growth.fits([r for r in results if len(sizes[r.case.split(",")[0]]) > 1])


def targets(results: list[Result]) -> list[str]:
    """A line a target: what was measured, and whether that reaches it."""
    ours: dict[str, tuple[Result, Row]] = {r.case: (r, r.rows[0]) for r in results if r.rows[0].name == OURS}
    lines = []
    for work, case, limit in TARGETS:
        if case in ours:
            median = ours[case][1].median
            text = f"{harness.duration(median)}, target {harness.duration(limit)}"
            lines.append(f"{work}: {text}: {_judge(median <= limit)}")
    work, case, times = BOUND
    if case in ours:
        result, row = ours[case]
        ratio = row.median / result.roofline["memory_s"]
        lines.append(f"{work}: {ratio:.2f} times the memory traffic's, target {times:g}: {_judge(ratio <= times)}")
    return lines


def _judge(right: bool) -> str:
    return "reached" if right else "missed"


def main() -> None:
    options = _options()
    device = torch.device("cpu") if options.dry else torch.device("cuda", torch.cuda.current_device())
    if options.dry and _core.CUDA_EMULATED:
        _cuda.takes = lambda tensor: True
    options.speed = machine(device, 128 if options.dry else 6144)
    found = about(options, device, options.speed)
    hardware = found["hardware"]
    print(f"{hardware['gpu'] or 'no GPU'}: {hardware['kernels']}; {harness.summary(found)}", flush=True)
    began, results, failed = time.perf_counter(), list[Result](), list[str]()
    for name, make in cases(device, DRY if options.dry else FULL, options.largest).items():
        if not fnmatch(name, options.only):
            continue
        if time.perf_counter() - began > options.seconds:
            print(f"\n{name}: left out, {options.seconds:g} s are over", flush=True)
            continue
        try:
            results.append(run(name, make, options, device))
        except (Exception, SystemExit) as error:  # the others are worth knowing all the same
            failed.append(f"{name}: {error}")
            traceback.print_exc()
            continue
        print(f"\n{harness.table(results[-1])}", flush=True)
        if options.out:  # after each: what is cut short is not lost
            harness.save(options.out, str(__doc__), found, results, [*failed])
    notes = [*exponents(results), *targets(results), *(f"FAILED: {text}" for text in failed)]
    print("\n" + "\n".join(notes))
    if options.out:
        harness.save(options.out, str(__doc__), found, results, notes)
    raise SystemExit(1 if failed or not results else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default 15)")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds a case, after which fewer rounds do")
    parser.add_argument("--seconds", type=float, default=160.0, help="after so many no further case is begun")
    parser.add_argument("--only", default="*", help="cases whose names match this pattern")
    parser.add_argument("--largest", type=int, default=10_000_000, help="points of the largest 1-NN")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the host: its times mean nothing")
    parser.set_defaults(seed=0)  # that the cases draw their clouds with
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    return options


if __name__ == "__main__":
    main()
