"""The page of ours that somebody comes back to after signing in: sealed in the address, since it may hold an award key.

Only what was sealed here is read back, and only a path on this site: no address can send anyone elsewhere.
"""

from __future__ import annotations

import re

from storage.sealing import CannotOpen, Sealer

MAX_SEALED = 1_000
_PATH = re.compile(r"(?:/[A-Za-z0-9_-]+)+/?(?:\?[A-Za-z0-9_=&-]*)?")


def seal_return_to(path: str, *, sealer: Sealer) -> str:
    """`path` as the parameter `return_to` of `/oauth/install` takes it. Raises ValueError for what is no path here."""
    if _PATH.fullmatch(path) is None:
        raise ValueError("Not a path of this site.")
    return sealer.seal(path)


def read_return_to(sealed: str, *, sealer: Sealer) -> str | None:
    """The path behind `sealed`, or None when it was not sealed here or is no path of this site."""
    if not sealed or len(sealed) > MAX_SEALED:
        return None
    try:
        path = sealer.open(sealed)
    except CannotOpen:
        return None
    return path if _PATH.fullmatch(path) else None
