"""Trouble on order: the sandbox answers badly, late or not at all, so that a client's recovery can be tested.

    sandbox.faults.add(path=r"/api/widgets", method="POST", kind="status", status=500, times=2)

Faults work on everything the sandbox serves, the token endpoint too, and in the order in which they were
added.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class FaultKind(StrEnum):
    """What goes wrong."""

    STATUS = "status"
    """Answer `status` with a JSON error, without doing anything."""
    RATE_LIMITED = "rate_limited"
    """Answer 429, with `Retry-after: retry_after` when that is given."""
    HTML = "html"
    """Answer 200 with a page of HTML, as a proxy in between does."""
    EMPTY = "empty"
    """Answer 200 without a body."""
    HANG = "hang"
    """Say nothing for `seconds` (or until the sandbox stops), then close. Nothing is done."""
    SLOW = "slow"
    """Wait `seconds`, then answer as usual."""
    RESET_BEFORE = "reset_before"
    """Break the connection without doing anything."""
    RESET_AFTER = "reset_after"
    """Do everything, keep it, then break the connection without an answer."""
    TRUNCATED = "truncated"
    """Do everything, then send half of the answer's body and break the connection."""
    INVALID_GRANT = "invalid_grant"
    """Answer 400 `invalid_grant` as the token endpoint does for what was revoked, without doing anything."""
    REDIRECT = "redirect"
    """Answer 302 to `location`, without doing anything."""
    STATUS_AFTER = "status_after"
    """Do everything, keep it, then answer `status` with a JSON error."""
    HANG_AFTER = "hang_after"
    """Do everything, keep it, then say nothing for `seconds` (or until the sandbox stops) and close."""
    HTML_AFTER = "html_after"
    """Do everything, keep it, then answer 200 with a page of HTML."""
    COMMIT_LATE = "commit_late"
    """Break the connection at once, and do everything only when Fault.commit() is called: a program that goes on
    after its client gave up."""
    DRIP = "drip"
    """Do everything, keep it, then send the answer byte by byte, its head too, `seconds` apart."""


@dataclass(eq=False)
class Fault:
    """One fault as ordered; `hits` counts how often it struck."""

    kind: FaultKind
    path: re.Pattern[str]
    method: str | None
    account: str | None
    times: int | None
    skip: int
    seconds: float
    status: int
    retry_after: int | str | None
    location: str
    hits: int = field(default=0)
    _late: list[Callable[[], int]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep_for_later(self, work: Callable[[], int]) -> None:
        """Keep what commit() does; it answers an HTTP status."""
        with self._lock:
            self._late.append(work)

    def commit(self) -> list[int]:
        """Do now what the requests struck by `commit_late` asked for, in their order; once each.

        Answers the statuses that nobody was told.
        """
        with self._lock:
            late, self._late = self._late, []
        return [work() for work in late]


class Faults:
    """The faults of one sandbox. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(
        self,
        path: str,
        *,
        kind: str,
        method: str | None = None,
        account: str | None = None,
        times: int | None = 1,
        skip: int = 0,
        seconds: float = 3600.0,
        status: int = 500,
        retry_after: int | str | None = None,
        location: str = "http://localhost:9/",
    ) -> Fault:
        """Order a fault and answer it, so that its `hits` can be looked at.

        `path` is a regular expression that must match the whole path after the account, such as
        `/oauth/token`; `skip` requests pass unharmed first, then `times` are struck (None: all).
        `retry_after` is a number of seconds or an HTTP date. Raises ValueError for an unknown kind.
        """
        fault = Fault(
            kind=FaultKind(kind),
            path=re.compile(path),
            method=method and method.upper(),
            account=account,
            times=times,
            skip=skip,
            seconds=seconds,
            status=status,
            retry_after=retry_after,
            location=location,
        )
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all faults. A hanging request keeps hanging."""
        with self._lock:
            self._faults.clear()

    def strike(self, *, account: str, method: str, path: str) -> Fault | None:
        """The fault that this request meets, counted, or None."""
        with self._lock:
            for fault in self._faults:
                if fault.account not in (None, account) or fault.method not in (None, method):
                    continue
                if not fault.path.fullmatch(path) or (fault.times is not None and fault.hits >= fault.times):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.hits += 1
                return fault
        return None
