"""Members from a file, by the command that merchants' operators run, beside the plainest loop that writes the same.

Target 10.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import func, select

from bench import store
from bench.load import ROOT
from bench.measure import Ratio, alternated, spread_of
from bench.pace import Pace
from bench.report import Section, Table, at_least, at_most, told
from loyalty.ledger import verify
from storage.database import Database
from storage.tables import members
from tests.databases import FIRST_KEY
from tests.processes.serving import environment

COMMAND, PLAIN = "flask members import", "a plain loop"
GOAL_MIB = 150
# As https://help.shopify.com/en/manual/customers/import-export-customers names them, and two of ours.
HEADER = (
    *("Customer ID", "First Name", "Last Name", "Email", "Accepts Email Marketing", "Default Address Company"),
    *("Default Address Address1", "Default Address Address2", "Default Address City"),
    *("Default Address Province Code", "Default Address Country Code", "Default Address Zip", "Default Address Phone"),
    *("Phone", "Accepts SMS Marketing", "Total Spent", "Total Orders", "Note", "Tax Exempt", "Tags"),
    *("Points", "Lifetime Points"),
)


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import, from the start of its process to its end; `peak_mib` is the most memory it held."""

    per_s: float
    seconds: float
    peak_mib: float


def run(pace: Pace) -> Section:
    """Import the same file again and again, each time into a new database."""
    rows = pace.size(1_000_000, quick=20_000)
    with tempfile.TemporaryDirectory(prefix="tallydesk-bench-") as name:
        folder = Path(name)
        file = folder / "customers.csv"
        write_export(file, rows=rows)
        number = itertools.count(1)
        subjects: dict[str, Callable[[], Import]] = {
            COMMAND: partial(_import, start_command, file, rows=rows, folder=folder, number=number),
            PLAIN: partial(_import, start_plain, file, rows=rows, folder=folder, number=number),
        }
        found = alternated(subjects, rounds=pace.rounds)
    ratio = Ratio.between([run.per_s for run in found[COMMAND]], [run.per_s for run in found[PLAIN]])
    return Section(
        title="Import of members",
        figures=[
            at_least(
                0.5,
                target=10,
                name=f"import of {rows:,} members: rows a second ÷ a plain loop",
                measured=ratio,
                unit=" ×",
                bound_by=(
                    "One core: every line is checked, looked for among those before it and in the database, and what "
                    "is opened is booked from the members' own rows; the loop does none of it."
                ),
            ),
            at_most(
                GOAL_MIB,
                target=10,
                name=f"import of {rows:,} members: peak memory",
                measured=spread_of(found[COMMAND], "peak_mib"),
                unit=" MiB",
                bound_by="What the command loads before its first line; memory does not grow with the file.",
            ),
        ],
        tables=[_table(found, ratio, rows=rows)],
    )


def write_export(path: Path, *, rows: int) -> None:
    """An export with every column, of made-up people. Every fourth has spent points, every tenth is excluded."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for number in range(1, rows + 1):
            points, lifetime = number % 900 + 10, number % 900 + 10 + (50 if number % 4 == 0 else 0)
            writer.writerow(
                (
                    *(f"'{7_000_000_000 + number}", "Jo", f"Doe {number}", store.email(number), "yes", ""),
                    *(f"{number} Main Street", "", "Springfield", "CA", "US", "90210", "", "", "no"),
                    *("120.50", "3", "", "no", "rivo excluded" if number % 10 == 0 else "vip, newsletter"),
                    *(points, lifetime),
                )
            )


def _import(
    start: Callable[[store.Filled, Path], subprocess.Popen[str]],
    file: Path,
    *,
    rows: int,
    folder: Path,
    number: itertools.count[int],
) -> Import:
    """Import `file` into a database of its own, and see that everything is there. Raises RuntimeError when not."""
    path = folder / f"{next(number)}.db"
    filled = store.fill(f"sqlite:///{path}", members=0)
    began = time.monotonic()
    process = start(filled, file)
    peak_kib = 0
    while process.poll() is None:
        peak_kib = max(peak_kib, _peak_kib(process.pid))
        time.sleep(0.05)
    seconds = time.monotonic() - began
    told_, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the import failed: {errors or told_}")
    _check(filled, rows=rows)
    for leftover in folder.glob(f"{path.name}*"):
        leftover.unlink()
    return Import(per_s=rows / seconds, seconds=seconds, peak_mib=peak_kib / 1024)


def start_command(filled: store.Filled, file: Path) -> subprocess.Popen[str]:
    """Begin `flask members import` of `file`."""
    flask = str(Path(sys.executable).with_name("flask"))
    return subprocess.Popen(
        [flask, "members", "import", str(file)],
        cwd=ROOT,
        env=environment(filled.url, port=1, folder=filled.folder),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def start_plain(filled: store.Filled, file: Path) -> subprocess.Popen[str]:
    """Begin the plain loop over `file`."""
    order = {"url": filled.url, "path": str(file), "key": FIRST_KEY, "email_key": filled.email_key.hex()}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.baselines.plain_import"],
        cwd=ROOT,
        env=dict(os.environ),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(order))
    process.stdin.close()
    process.stdin = None
    return process


def _peak_kib(pid: int) -> int:
    """The most memory that this process itself held so far, as https://man7.org/linux/man-pages/man5/proc.5.html has
    it; what `wait4` tells counts that of whoever started it, too."""
    try:
        found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _check(filled: store.Filled, *, rows: int) -> None:
    database = Database(filled.url)
    try:
        with database.read(unhurried=True) as tx:
            there = tx.scalar(select(func.count()).select_from(members))
            wrong = next(verify(tx), None)
    finally:
        database.close()
    if there != rows or wrong is not None:
        raise RuntimeError(f"{there} of {rows} members are there; {wrong or 'the books add up'}")


def _table(found: Mapping[str, Sequence[Import]], ratio: Ratio, *, rows: int) -> Table:
    return Table(
        title=f"{rows:,} lines of a customer export with points, into an empty SQLite",
        columns=["", "rows/s", "÷ the plain loop", "seconds", "peak memory, MiB"],
        rows=[
            [
                name,
                told(spread_of(runs, "per_s")),
                told(ratio) if name == COMMAND else "",
                told(spread_of(runs, "seconds")),
                told(spread_of(runs, "peak_mib")),
            ]
            for name, runs in found.items()
        ],
        note=(
            "Both are processes of their own, from their start to their end, and commit each thousand lines with "
            "synchronous=FULL. The loop seals, finds and books the same and believes whatever the file says; the "
            "command checks each line, keeps what cannot be read, and may be repeated. After each run the members are "
            "counted and the books proven."
        ),
    )
