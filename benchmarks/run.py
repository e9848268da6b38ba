"""Every table and plot of the CPU kernels, in one command.

    python benchmarks/run.py [--quick | --targets] [--threads 1 2] [--data TARGET [QUERIES]] [--out FOLDER]

Writes FOLDER/results.md, results.json and plots (SVG, where matplotlib is installed), and prints which targets are
reached. Everything takes hours on two cores, most of it in other libraries; `--quick` half an hour, without the clouds
of a million points that most targets are about. Each benchmark is a process of its own for each number of threads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import plots
import targets

FOLDER = Path(__file__).resolve().parent
MILLION = "1000000"
FULL = {
    "nearest": ["--sizes", "10000", "100000", MILLION, "--memory", "surface, 1,000,000*all included"],
    "neighbours": ["--sizes", "10000", "100000", MILLION, "--memory", "*1,000,000*"],
    "radius": ["--sizes", "10000", "100000", MILLION, "--memory", "*1,000,000*"],
    "voxels": ["--sizes", "10000", "100000", MILLION, "--memory", "*1,000,000*"],
    "icp": ["--sizes", "100000", MILLION, "--memory", "*1,000,000*"],
    "features": ["--sizes", "10000", "100000", "--memory", "*100,000*"],
    "batch": ["--pairs", "256", "--points", "1024", "--memory", "*"],
    "assignment": ["--memory", "*"],
    "growth": [],
}
QUICK = {
    "nearest": ["--sizes", "100000", "--memory", "surface*near, all included"],
    "neighbours": ["--sizes", "100000", "--memory", "*"],
    "radius": ["--sizes", "100000"],
    "voxels": ["--sizes", "100000", "--memory", "*"],
    "icp": ["--sizes", "100000"],
    "features": ["--sizes", "10000"],
    "batch": ["--pairs", "64", "--points", "1024"],
    "assignment": [],
    "growth": ["--largest", "100000"],
}
LIBRARIES = ["--against", "Open3D legacy", "Open3D tensor", "small_gicp"]
FOR_TARGETS = {
    "nearest": ["--sizes", "100000", MILLION, "--only", "surface*all included", "--against", "pykdtree", "small_gicp"],
    "neighbours": ["--sizes", MILLION, "--only", "normals*", *LIBRARIES],
    "voxels": ["--sizes", MILLION, *LIBRARIES],
    "icp": ["--sizes", "100000", MILLION, "--only", "*[de], 1*", "--against", "Open3D legacy", "small_gicp"],
    "batch": ["--pairs", "256", "--points", "1024", "--only", "point_to_plane*"],
    "growth": ["--largest", "10000000", "--peers", "1000"],
}
TINY = {
    "nearest": ["--sizes", "500", "--only", "*near, all*"],
    "neighbours": ["--sizes", "500"],
    "radius": ["--sizes", "500"],
    "voxels": ["--sizes", "2000"],
    "icp": ["--sizes", "2000"],
    "features": ["--sizes", "500"],
    "batch": ["--pairs", "4", "--points", "256"],
    "assignment": ["--shapes", "2x30x40x2"],
    "growth": ["--largest", "3000"],
}


def main() -> None:
    options = _options()
    level = TINY if options.tiny else QUICK if options.quick else FOR_TARGETS if options.targets else FULL
    hurry = ["--repeats", "3", "--budget", "0.2"] if options.tiny else ["--repeats", "5", "--budget", "10"]
    texts, results = [], []
    for threads in options.threads:
        for name, arguments in level.items():
            if options.only and name not in options.only:
                continue
            extra = hurry if options.tiny or options.quick or options.targets else []
            common = ["--threads", str(threads), "--clock", options.clock, "--seed", str(options.seed)]
            text, found = _benchmark(name, [*arguments, *extra, *common, *_own(name, options)], options.out)
            if text is not None:
                texts.append(text)
                results += found
    if not results:
        raise SystemExit("nothing was measured")
    pictures = plots.draw(results, options.out)
    if pictures is None:
        print("no plots: matplotlib is not installed (pip install matplotlib)")
    report = _report(texts, results, pictures)
    (options.out / "results.md").write_text(report, encoding="utf-8")
    (options.out / "results.json").write_text(json.dumps(texts, indent=1) + "\n", encoding="utf-8")
    print(f"\n{_targets(results)}\n\n{options.out / 'results.md'}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--targets", action="store_true", help="only what the targets are about")
    parser.add_argument("--tiny", action="store_true", help="only to see that everything runs: its times mean nothing")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clock", choices=harness.CLOCKS, default="wall", help="cpu: with --threads 1 only")
    parser.add_argument("--only", nargs="+", choices=FULL, help="these benchmarks")
    parser.add_argument("--data", nargs="+", default=[], help="scans for nearest.py")
    parser.add_argument("--largest", type=int, help="points of the growth curves: 10000000 for the last target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def _own(name: str, options: argparse.Namespace) -> list[str]:
    """What one benchmark alone is told."""
    if name == "nearest" and options.data:
        return ["--data", *options.data]
    if name == "growth" and options.largest:
        return ["--largest", str(options.largest)]
    return []


def _benchmark(name: str, arguments: list[str], out: Path) -> tuple[dict[str, Any] | None, list[harness.Result]]:
    """Runs one script; its failure does not stop the others, but is said."""
    path = out / f"{name}.partial.json"
    began = time.perf_counter()
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments, "--json", str(path)]
    print(f"$ {' '.join(command[1:])}", flush=True)
    if subprocess.run(command, check=False).returncode:
        print(f"{name} FAILED", file=sys.stderr, flush=True)
        return None, []
    text, results = harness.load(path)
    path.unlink()
    print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return text | {"command": command[1:-2]}, results


def _targets(results: list[harness.Result]) -> str:
    from dlc_reg._tables import markdown

    return markdown(targets.HEADER, targets.rows(results))


def _report(texts: list[dict[str, Any]], results: list[harness.Result], pictures: list[Path] | None) -> str:
    parts = ["# Benchmarks", harness.summary(texts[0]["about"]), "## Targets", _targets(results)]
    for text in texts:
        mine = [r for r in results if [r.benchmark, r.threads] == _key(text)]
        if not mine:
            continue
        benchmark, threads = mine[0].benchmark, mine[0].threads
        parts += [f"## {benchmark}, {threads} thread(s)", text["description"].split("\n\n")[0].strip()]
        parts += [f"![{path.stem}]({path.name})" for path in pictures or [] if path.stem == f"{benchmark}-{threads}"]
        parts += ["\n".join(text["notes"]).strip()] if text["notes"] else []
        parts += [harness.table(result) for result in mine]
    return "\n\n".join(parts) + "\n"


def _key(text: dict[str, Any]) -> list[Any]:
    return [text["results"][0]["benchmark"], text["results"][0]["threads"]] if text["results"] else []


if __name__ == "__main__":
    main()
