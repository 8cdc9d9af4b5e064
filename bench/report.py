"""The report, for somebody who wants to believe it: what was measured on what, beside what, and how far it spread."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil

from bench.load import has_wrk
from bench.measure import Ratio, Spread
from bench.pace import Pace
from bench.servers import has_nginx

PACKAGES = ("flask", "gunicorn", "sqlalchemy", "granian", "fastapi", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One target and what was measured. `goal` reads as in "≥ 0.80"; `bound_by` says what stands in the way."""

    target: int
    name: str
    measured: Spread | float
    goal: str
    met: bool
    unit: str = ""
    bound_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Something to read beside the figures. Cells are text already; see `told`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one section found."""

    title: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = field(default_factory=tuple)


def at_least(
    goal: float, *, target: int, name: str, measured: Spread | float, unit: str = "", bound_by: str = ""
) -> Figure:
    """A figure whose median must reach `goal`."""
    met = _middle(measured) >= goal
    return Figure(
        target=target, name=name, measured=measured, goal=f"≥ {goal:,g}{unit}", met=met, unit=unit, bound_by=bound_by
    )


def at_most(
    goal: float, *, target: int, name: str, measured: Spread | float, unit: str = "", bound_by: str = ""
) -> Figure:
    """A figure whose median must not exceed `goal`."""
    met = _middle(measured) <= goal
    return Figure(
        target=target, name=name, measured=measured, goal=f"≤ {goal:,g}{unit}", met=met, unit=unit, bound_by=bound_by
    )


def told(measured: Spread | float, unit: str = "") -> str:
    """A value for people; of several runs the median, with the lowest and the highest."""
    if not isinstance(measured, Spread):
        return f"{_number(measured)}{unit}"
    low, high = _number(measured.low), _number(measured.high)
    return f"{_number(measured.median)}{unit}" + ("" if low == high else f" ({low} – {high})")


def write(path: Path, sections: Sequence[Section], *, pace: Pace, date: str) -> None:
    """Write the report to `path`; `date` is the day of the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(sections, pace=pace, date=date, machine=machine()), encoding="utf-8")


def text_of(sections: Sequence[Section], *, pace: Pace, date: str, machine: Table) -> str:
    """The report as Markdown."""
    figures = sorted((f for section in sections for f in section.figures), key=lambda figure: figure.target)
    parts = ["# Benchmarks", _INTRODUCTION, _how(pace, date), _markdown(machine)]
    if figures:
        parts.append("## Targets")
        parts.append(_markdown(_targets(figures)))
        missed = [figure for figure in figures if not figure.met]
        if missed:
            parts.append("### What bounds what is missed")
            parts += _bounds(missed)
    for section in sections:
        parts.append(f"## {section.title}")
        for table in section.tables:
            parts.append(_markdown(table))
    return "\n\n".join(parts).replace("\n\n- **", "\n- **") + "\n"


_INTRODUCTION = (
    "How fast Tallydesk is, measured beside what it is compared with in one and the same run: absolute numbers "
    "depend on the machine, ratios much less.\n"
    "`script/bench` measures everything anew in under an hour and writes this page; `script/bench --quick` takes three "
    "minutes, and `script/bench cards` measures one section: both only print."
)


def _how(pace: Pace, date: str) -> str:
    kind = "A quick run: its figures are indicative only." if pace.quick else "A whole run."
    sender = "wrk" if has_wrk() and pace.seconds >= 1 else "our Python client, which cannot send as much as wrk"
    ceiling = "" if has_nginx() else " There is no nginx here, so the ceiling is a raw WSGI function."
    runs = (
        f"of one run, a load of {pace.seconds:g} s"
        if pace.rounds == 1
        else f"the median of {pace.rounds} runs, loads of {pace.seconds:g} s each, with the lowest and the highest in "
        "brackets"
    )
    return (
        f"{date}. {kind} Where a table says nothing else, a figure is {runs}; what is compared takes turns, in "
        f"reversed order every other time, and a ratio is taken within its turn. Load comes from {sender}, in a "
        "process of its own on the same cores, over connections that are kept alive, for members drawn at random out "
        f"of all.{ceiling}"
    )


def _bounds(missed: Sequence[Figure]) -> list[str]:
    """What bounds them, each once, with the figures that it bounds."""
    names = defaultdict(list)
    for figure in missed:
        names[figure.target, figure.bound_by or "Not looked into yet."].append(figure.name)
    return [f"- **{target}, {'; '.join(whose)}.** {bound}" for (target, bound), whose in names.items()]


def _targets(figures: Sequence[Figure]) -> Table:
    rows = [[str(f.target), f.name, told(f.measured, f.unit), f.goal, "yes" if f.met else "**no**"] for f in figures]
    return Table(title="", columns=["", "What", "Measured", "Target", "Met"], rows=rows)


def _markdown(table: Table) -> str:
    lines = [f"**{table.title}**", ""] if table.title else []
    lines += [_line(table.columns), _line(["---"] * len(table.columns)), *map(_line, table.rows)]
    if table.note:
        lines += ["", table.note]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _middle(measured: Spread | float) -> float:
    return measured.median if isinstance(measured, Spread) else measured


def _number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def machine() -> Table:
    """What it was measured on, without a name of it."""
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    servers = [
        told for told in (_tells("wrk", "-v", r"wrk \S*?(\d[\d.]+\d)"), _tells("nginx", "-v", r"nginx/(\S+)")) if told
    ]
    rows = [
        ["Processor", f"{cores} cores of {_processor()}"],
        ["Memory", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"],
        ["Kernel", f"{platform.system()} {'.'.join(re.findall(r'[0-9]+', platform.release())[:2])}"],
        ["Disk", f"{full_transaction_ms():.2f} ms for a SQLite transaction of one row with synchronous=FULL"],
        ["Python", f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}"],
        ["Packages", ", ".join([packages, *servers])],
    ]
    return Table(title="", columns=["", "Measured on"], rows=rows)


def _processor() -> str:
    found = re.search(r"(?m)^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.machine()


def _tells(program: str, flag: str, pattern: str) -> str:
    """Name and version of a program, or nothing where it is not installed."""
    try:
        done = subprocess.run([program, flag], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    found = re.search(pattern, done.stdout + done.stderr)
    return f"{program} {found[1]}" if found else program


def full_transaction_ms(count: int = 200) -> float:
    """The median time of a transaction that survives a power cut, on the disk of temporary files."""
    with tempfile.TemporaryDirectory(prefix="tallydesk-bench-") as folder:
        connection = sqlite3.connect(f"{folder}/disk.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, what TEXT)")
        took = []
        for _ in range(count):
            began = time.perf_counter()
            connection.execute("INSERT INTO t (what) VALUES ('a row of some length')")
            took.append(time.perf_counter() - began)
        connection.close()
    return 1000 * median(took)


__all__ = ["Figure", "Ratio", "Section", "Spread", "Table", "at_least", "at_most", "told", "write"]
