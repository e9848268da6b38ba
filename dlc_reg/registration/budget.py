"""How long a registration may take, and what was left out when that was over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

clock = time.perf_counter  # [s]; never read without a budget


@dataclass
class Budget:
    """`seconds` from now on; None: without bound.

    `skipped`: what was left out, in words; `search_cut`: whether a part of the search was among it.
    """

    seconds: float | None = None
    skipped: list[str] = field(default_factory=list)
    search_cut: bool = False

    def __post_init__(self) -> None:
        self._end = None if self.seconds is None else clock() + self.seconds

    @property
    def spent(self) -> bool:
        return self._end is not None and clock() >= self._end

    def skips(self, what: str, *, search: bool = False) -> bool:
        """Whether `what`, of the search or not, is to be left out, because the time is over; it is then noted."""
        if not self.spent:
            return False
        self.skipped.append(what)
        self.search_cut |= search
        return True
