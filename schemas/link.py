"""Links that come from a loyalty program and end up in front of an agent, who will press them."""

from __future__ import annotations

import re

MAX_URL = 2_000

# A host without a name and a password before it, which would make it look like another.
_ADDRESS = re.compile(r"https?://[\w.-]+(?::[0-9]{1,5})?(?:[/?#][^\s\"'<>\\`{}]*)?", re.IGNORECASE)


def web_address(text: str) -> str:
    """An http(s) address as it is; empty for anything that a browser or a template might take for something else."""
    text = text.strip()
    return text if len(text) <= MAX_URL and text.isprintable() and _ADDRESS.fullmatch(text) else ""
