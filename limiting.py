"""Limits on what strangers may repeat: so many of one kind within a moving window, in the memory of this process.

Nothing that a merchant's helpdesk or agents rightly do is limited. Several processes count each for itself, so that the
whole service allows as many times more as it has web processes: enough for what this is for, and no call to anywhere.
The memory is bounded: a crowd of addresses forgets the one that was quiet for longest. `limits`, which other projects
use for this, keeps real time, a timer thread and every key it ever saw.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import datetime, timedelta
from threading import Lock

MOST_KEYS = 10_000


class Limit:
    """At most `most` events of one key `within` a moving window. Thread-safe."""

    def __init__(
        self, *, most: int, within: timedelta, now: Callable[[], datetime], most_keys: int = MOST_KEYS
    ) -> None:
        self._most = most
        self._within = within
        self._now = now
        self._most_keys = most_keys
        self._events: OrderedDict[str, deque[datetime]] = OrderedDict()
        self._lock = Lock()

    def wait_s(self, key: str) -> int:
        """0 when one more event of `key` is within the limit, and it counts from now on; else whole seconds to wait.

        What is refused does not count: whoever goes on trying is let through as soon as the window has moved.
        """
        now = self._now()
        with self._lock:
            events = self._events.setdefault(key, deque(maxlen=self._most))
            self._events.move_to_end(key)
            if len(self._events) > self._most_keys:
                self._events.popitem(last=False)
            if len(events) == self._most:
                left_s = (events[0] + self._within - now).total_seconds()
                if left_s > 0:
                    return math.ceil(left_s)
            events.append(now)
        return 0


def network_of(peer: str | None, forwarded_for: str | None) -> str:
    """What a client's address counts as: an IPv4 address, or the /64 that one host of IPv6 has to itself.

    `peer` is who connected. Where that is no public address it is a proxy of ours, and the last entry of its
    X-Forwarded-For (RFC 7239 speaks of the same) is who connected to it; earlier entries are the client's own word.
    """
    address = _address(peer)
    if (address is None or not address.is_global) and forwarded_for:
        address = _address(forwarded_for.rpartition(",")[2]) or address
    if address is None:
        return "unknown"
    return str(ipaddress.ip_network((address, 32 if address.version == 4 else 64), strict=False).network_address)


def _address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address((text or "").strip())
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address
