"""What evidence that is no part of the trust says of right and wrong, alone and beyond the trust.

    python tools/weigh_evidence.py FRAGMENTS.npz [--pairs 80] [--seed 7] [--viewpoints]

Registers as `calibrate_verdict.py` does, and for each of `starts`, `backward` and `landscape` prints its median over
right and wrong answers, its AUC alone, and what a logistic regression of the trust's evidence gains by it: AUC and mean
log loss, each scene held out in turn. 1,000 resamplings of the registrations say whether the log loss gains for more
reasons than chance.
"""

from __future__ import annotations

import argparse

import numpy as np
from calibrate_verdict import auc, collect, columns, held_out
from numpy.typing import NDArray

Array = NDArray[np.float64]
MORE = {  # the larger the better
    "starts": lambda e: np.log(e.starts + 1),
    "backward": lambda e: -np.log(e.backward + 0.01),
    "landscape": lambda e: -e.landscape,
}
RESAMPLED = 1000


def losses(odds: Array, y: Array) -> Array:
    """Log losses (N,)."""
    return np.asarray(np.logaddexp(0.0, np.where(y > 0, -odds, odds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--viewpoints", action="store_true", help="the sensor stood at each fragment's origin")
    options = parser.parse_args()
    _, found = collect(options.data, options.pairs, options.seed, options.viewpoints)
    base, y, scenes = columns(found)
    odds = held_out(base, y, scenes)
    rng = np.random.default_rng(options.seed)
    rows = rng.integers(len(y), size=(RESAMPLED, len(y)))
    print(f"{len(y)} registrations, {int(y.sum())} right, seed {options.seed}, viewpoints {options.viewpoints}")
    print(f"the trust's evidence: AUC {auc(odds, y):.3f}, log loss {losses(odds, y).mean():.3f}")
    print("| evidence | median, right | wrong | AUC alone | AUC with the trust's | log loss | gain, 95% interval |")
    print("|---|---|---|---|---|---|---|")
    for name, number in MORE.items():
        values = np.array([getattr(r.evidence, name) for r in found], dtype=np.float64)
        x = np.array([number(r.evidence) for r in found])
        more = held_out(np.c_[base, x], y, scenes)
        gains = (losses(odds, y) - losses(more, y))[rows].mean(1)
        low, high = np.percentile(gains, [2.5, 97.5])
        medians = " | ".join(f"{np.median(values[y == side]):.2f}" for side in (1, 0))
        loss = losses(more, y).mean()
        gained = f"{auc(more, y):.3f} | {loss:.3f} | {low:.3f} to {high:.3f}"
        print(f"| {name} | {medians} | {auc(x, y):.3f} | {gained} |")


if __name__ == "__main__":
    main()
