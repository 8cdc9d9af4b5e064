"""From the start of the process to the first answer, and what a worker holds in memory when nothing happens.

Target 11.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from bench import servers, store
from bench.cards import see_a_card
from bench.measure import alternated, spread_of
from bench.pace import Pace
from bench.report import Section, Table, at_most, told

MEMBERS = 1_000


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start: seconds to the first 200 of /healthz and to the first card; a worker's memory after it, in MiB.

    `pss_mib` counts memory that several processes share by its share.
    """

    answer_s: float
    card_s: float
    rss_mib: float
    pss_mib: float


def run(pace: Pace) -> Section:
    """Start both servers again and again."""
    with tempfile.TemporaryDirectory(prefix="tallydesk-bench-") as folder:
        filled = store.fill(f"sqlite:///{folder}/start.db", members=MEMBERS)
        subjects: dict[str, Callable[[], Start]] = {
            "gunicorn": partial(_start, servers.tallydesk_gunicorn, filled),
            "granian": partial(_start, servers.tallydesk_granian, filled),
        }
        starts = alternated(subjects, rounds=pace.rounds)
    gunicorn = starts["gunicorn"]
    return Section(
        title="Start and memory",
        figures=[
            at_most(
                1.5,
                target=11,
                name="start of gunicorn to the first 200",
                measured=spread_of(gunicorn, "answer_s"),
                unit=" s",
                bound_by="Python's imports: Flask, SQLAlchemy, requests, cryptography and marshmallow before our own.",
            ),
            at_most(
                90,
                target=11,
                name="memory of a worker at rest (PSS)",
                measured=spread_of(gunicorn, "pss_mib"),
                unit=" MiB",
                bound_by="The same modules, loaded by each worker for itself, since nothing is loaded before the fork.",
            ),
        ],
        tables=[
            Table(
                title="From exec to the first answers; memory of a worker after its first card",
                columns=["", "first 200 of /healthz, s", "first card, s", "RSS, MiB", "PSS, MiB"],
                rows=[
                    [name, *(told(spread_of(found, value)) for value in ("answer_s", "card_s", "rss_mib", "pss_mib"))]
                    for name, found in starts.items()
                ],
                note="Two workers. RSS counts what processes share (libraries, mostly) in full, PSS by its share.",
            )
        ],
    )


def _start(server: Callable[[store.Filled], AbstractContextManager[servers.Server]], filled: store.Filled) -> Start:
    began = time.monotonic()
    with server(filled) as running:
        see_a_card(running.port)
        card_s = time.monotonic() - began
        # Of the worker that answered: it has done what the others have yet to do.
        used = max((worker.memory_full_info() for worker in running.workers()), key=lambda memory: memory.pss)
        return Start(answer_s=running.answered_s, card_s=card_s, rss_mib=used.rss / 2**20, pss_mib=used.pss / 2**20)
