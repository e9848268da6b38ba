"""What each piece of evidence says of right and wrong, alone and beside the others.

    python tools/weigh_evidence.py FRAGMENTS.npz [--pairs 150] [--seed 202] [--viewpoints]

Registers as `calibrate_verdict.py` does, by the whole search. For each piece of the trust's evidence, and for `starts`
and `landscape`, which are no part of it, prints the median over right and wrong answers, the AUC alone, and what a
logistic regression of the trust's evidence gains by having it: AUC and mean log loss, each scene held out in turn.
1,000 resamplings of the registrations say whether the log loss gains for more reasons than chance.
"""

from __future__ import annotations

import argparse

import numpy as np
from calibrate_verdict import auc, collect, columns, held_out
from numpy.typing import NDArray

Array = NDArray[np.float64]
TRUSTED = ("gap", "matches", "weakest", "closeness", "backward")  # in the order of `features`
MORE = {"starts": lambda e: np.log(e.starts + 1), "landscape": lambda e: -e.landscape}  # the larger the better
RESAMPLED = 1000


def losses(odds: Array, y: Array) -> Array:
    """Log losses (N,)."""
    return np.asarray(np.logaddexp(0.0, np.where(y > 0, -odds, odds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pairs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=202)
    parser.add_argument("--viewpoints", action="store_true", help="the sensor stood at each fragment's origin")
    options = parser.parse_args()
    _, found = collect(options.data, options.pairs, options.seed, options.viewpoints)
    base, y, scenes = columns(found)
    odds = held_out(base, y, scenes)
    rng = np.random.default_rng(options.seed)
    rows = rng.integers(len(y), size=(RESAMPLED, len(y)))
    print(f"{len(y)} registrations, {int(y.sum())} right, seed {options.seed}, viewpoints {options.viewpoints}")
    print(f"the trust's evidence: AUC {auc(odds, y):.3f}, log loss {losses(odds, y).mean():.3f}")
    print("| evidence | median, right | wrong | AUC alone | AUC, log loss without | with | gain, 95% interval |")
    print("|---|---|---|---|---|---|---|")
    for k, name in enumerate((*TRUSTED, *MORE)):
        x = np.array([MORE[name](r.evidence) for r in found]) if name in MORE else base[:, k]
        others = held_out(np.c_[base, x] if name in MORE else np.delete(base, k, axis=1), y, scenes)
        without, having = (odds, others) if name in MORE else (others, odds)
        values = np.array([getattr(r.evidence, name) for r in found], dtype=np.float64)
        medians = " | ".join(f"{np.median(values[y == side]):.2f}" for side in (1, 0))
        scores = " | ".join(f"{auc(o, y):.3f}, {losses(o, y).mean():.3f}" for o in (without, having))
        low, high = np.percentile((losses(without, y) - losses(having, y))[rows].mean(1), [2.5, 97.5])
        print(f"| {name} | {medians} | {auc(x, y):.3f} | {scores} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
