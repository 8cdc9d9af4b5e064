"""`python -m bench [--quick] [section …]`: measure, and write the report. The command for people is script/bench."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.load import ROOT
from bench.pace import QUICK, WHOLE, Pace
from bench.report import Section, write

# Modules of this package with `run(pace: Pace) -> Section`, in the order of the report.
SECTIONS = (
    "cards",
    "cpu",
    "server",
    "slow_program",
    "calls",
    "awards",
    "journal",
    "growth",
    "imports",
    "start",
)
DOCUMENT = ROOT / "docs" / "benchmarks.md"
GLANCE = ROOT / "var" / "benchmarks.md"


def main(arguments: Sequence[str]) -> int:
    """Returns 0. Only a whole run of all sections rewrites docs/benchmarks.md; another one is printed."""
    parser = argparse.ArgumentParser(
        prog="script/bench", description="Measure Tallydesk beside what it is compared with."
    )
    parser.add_argument("sections", nargs="*", metavar="section", help=f"one of {', '.join(SECTIONS)}; else all")
    parser.add_argument("--quick", action="store_true", help="three minutes instead of an hour; figures are indicative")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {unknown[0]}; there are {', '.join(SECTIONS)}")
    # Stopped from outside, it stops what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pace = QUICK if asked.quick else WHOLE
    document = document_of(pace, asked.sections)
    measure(asked.sections or SECTIONS, pace=pace, document=document)
    if document is DOCUMENT:
        print(f"{document.relative_to(ROOT)} is written.")
    else:
        print(document.read_text(encoding="utf-8"))
    return 0


def document_of(pace: Pace, sections: Sequence[str]) -> Path:
    """Where a run of these sections (none: all) is written to."""
    return GLANCE if pace.quick or sections else DOCUMENT


def measure(names: Sequence[str], *, pace: Pace, document: Path) -> None:
    """Run these sections and write their report to `document`."""
    sections: list[Section] = []
    for name in names:
        began = time.monotonic()
        sections.append(importlib.import_module(f"bench.{name}").run(pace))
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    write(document, sections, pace=pace, date=datetime.now(UTC).strftime("%d %B %Y").lstrip("0"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
