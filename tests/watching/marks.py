"""Marked secrets and addresses, and the search for them in whatever a process wrote or answered."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import inspect, text

from storage.database import Database

SHOPPER = "canary.9f3a@shopper.example"
CRASHING_SHOPPER = f"crash.{SHOPPER}"
DOUBTED_SHOPPER = f"doubt.{SHOPPER}"
AGENT = "canary.a6e7@agent.example"


def forms(mark: str) -> Iterator[bytes]:
    """How `mark` may be written, in lower case: as it is, encoded for addresses, HTML and JSON, and in base64 wherever
    it begins."""
    for written in (mark, quote(mark, safe=""), quote(quote(mark, safe=""), safe=""), html.escape(mark)):
        yield written.lower().encode()
    yield json.dumps(mark)[1:-1].lower().encode()
    yield mark.replace("@", "\\u0040").lower().encode()
    # Without the first and last letters, which depend on what stands beside it. Lower case as the text it is sought in.
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + mark.encode()).decode().rstrip("=")
        yield encoded[4:-4].lower().encode()


def leaks(places: Mapping[str, bytes | str], marks: Mapping[str, str]) -> list[str]:
    """Which of `marks` stand in which of `places`, by their names."""
    sought = {name: {form for form in forms(mark) if len(form) >= 8} for name, mark in marks.items()}
    found = []
    for place, content in places.items():
        content = (content.encode() if isinstance(content, str) else content).lower()
        found += [f"{name} in {place}" for name, written in sought.items() if any(form in content for form in written)]
    return found


def rows(database: Database) -> dict[str, str]:
    """Everything in the database as text, by table, the job engine's tables and every column included: what is sealed
    or hashed shows no mark either."""
    with database.read(unhurried=True) as tx:
        names: Iterable[str] = inspect(tx).get_table_names()
        return {f"table {name}": str(_all(tx.execute(text(f'SELECT * FROM "{name}"')))) for name in names}


def _all(result: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in result.mappings()]


def files(database: Database) -> dict[str, bytes]:
    """The bytes of a SQLite database, its log included; nothing on PostgreSQL."""
    if not database.sqlite:
        return {}
    path = Path(database.url.removeprefix("sqlite:///"))
    return {f"file {found.name}": found.read_bytes() for found in path.parent.glob(f"{path.name}*")}
