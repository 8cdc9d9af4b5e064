"""Medians of alternated runs: a machine that gets slower meanwhile slows all that is compared, not what came last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median of several runs, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of `values`, of which there must be one."""
        return cls(median=median(values), low=min(values), high=max(values))


@dataclass(frozen=True, kw_only=True)
class Ratio(Spread):
    """How many times as much as a baseline, from runs of the same round."""

    @classmethod
    def between(cls, values: Sequence[float], base: Sequence[float]) -> Self:
        """The ratios of `values` to `base`, round by round; both have a value of every round."""
        return cls.of([value / other for value, other in zip(values, base, strict=True)])


def alternated(subjects: Mapping[str, Callable[[], T]], *, rounds: int) -> dict[str, list[T]]:
    """Run every subject once a round, in reversed order every other round; what each gave, in order of rounds."""
    results: dict[str, list[T]] = {name: [] for name in subjects}
    for number in range(rounds):
        for name in list(subjects) if number % 2 == 0 else reversed(list(subjects)):
            results[name].append(subjects[name]())
    return results


def spread_of(results: Sequence[Any], name: str) -> Spread:
    """The spread of one field of what the runs gave, such as `per_s` of loads."""
    return Spread.of([getattr(result, name) for result in results])
