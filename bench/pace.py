"""How long a run takes: the whole one, whose figures count, or a quick look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pace:
    """`rounds` of loads of `seconds` each, over stores of `members`. A quick run's figures are indicative only."""

    quick: bool
    rounds: int
    seconds: float
    members: int

    def size(self, whole: int, *, quick: int) -> int:
        """The one of these two sizes that fits."""
        return quick if self.quick else whole


WHOLE = Pace(quick=False, rounds=5, seconds=3, members=100_000)
QUICK = Pace(quick=True, rounds=1, seconds=1, members=5_000)
