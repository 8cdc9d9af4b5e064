"""Links that come from a loyalty program and end up in front of an agent, who will press them."""

from __future__ import annotations

from urllib.parse import urlsplit

MAX_URL = 2_000


def web_address(text: str) -> str:
    """An http(s) address as it is; empty for anything that a browser or a template might take for something else."""
    text = text.strip()
    if len(text) > MAX_URL or not all(c.isprintable() and c not in " \"'<>\\`{}" for c in text):
        return ""
    try:
        parts = urlsplit(text)
        return text if parts.scheme in ("http", "https") and parts.hostname else ""
    except ValueError:
        return ""
