"""script/reliability: the proofs under faults at length, and the table in docs/reliability.md from what they found.

Without arguments 20,000 examples of the state machine and 500 with kill -9, which takes about an hour; `--examples 2000
--kills 50` for others. With `--table` only the connections are broken and the table is written: a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from script.bootstrap import ROOT, Trouble, say, set_up

DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when everything held, else pytest's exit code. Raises Trouble in the set-up."""
    parser = argparse.ArgumentParser(prog="script/reliability", description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000, help="of the state machine")
    parser.add_argument("--kills", type=int, default=500, help="with kill -9")
    parser.add_argument("--table", action="store_true", help="write the table and stop")
    asked = parser.parse_args(arguments)
    python = set_up(["requirements.txt", "requirements-dev.txt"])
    with tempfile.TemporaryDirectory(prefix="tallydesk-reliability-") as scratch:
        # PostgreSQL for the tests wants a runtime folder, see script/checks.py.
        environment = {**os.environ, "XDG_RUNTIME_DIR": scratch}
        run = [str(python), "-m", "pytest", "-q"]
        say("== Breaking connections, with the product's real patience")
        found = Path(scratch) / "found"
        found.mkdir()
        broken = [*run, "tests/reliability/test_matrix.py", "-n", "2"]
        if code := _run(broken, {**environment, "TALLYDESK_RELIABILITY_FOLDER": str(found)}):
            return code
        _write_table({path.stem: json.loads(path.read_text()) for path in found.glob("*.json")}, python, environment)
        if asked.table:
            return 0
        say(f"== State machine: {asked.examples:,} examples; kill -9: {asked.kills:,}")
        counts = {
            "TALLYDESK_STATE_MACHINE_EXAMPLES": str(asked.examples),
            "TALLYDESK_KILL_EXAMPLES": str(asked.kills),
        }
        return _run([*run, "tests/reliability", "-n", "2", "--durations=5"], {**environment, **counts})


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]], phases: Mapping[str, str]) -> str:
    """The table in Markdown: a row for each way to break, a column for each phase (name and what it is called)."""
    kinds = list(found[next(iter(phases))])
    lines = [["", *phases.values()], ["---"] * (1 + len(phases))]
    for kind in kinds:
        cells = [found[phase][kind] for phase in phases]
        lines.append([kind, *(f"{cell['words']}; {_rounded(cell['seconds'])} s" for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rounded(seconds: float) -> str:
    """To the half second: what differs from run to run is not of interest."""
    return f"{round(seconds * 2) / 2:.1f}" if seconds >= 0.75 else "under 1"


def _write_table(
    found: Mapping[str, Mapping[str, Mapping[str, Any]]], python: Path, environment: Mapping[str, str]
) -> None:
    # The tests know the phases and their order; what runs here has none of the product's packages.
    ask = "import json; from tests.reliability.matrix import Phase; print(json.dumps({p.name: p.value for p in Phase}))"
    told = subprocess.run(
        [str(python), "-c", ask], cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=True
    )
    text = DOCUMENT.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise Trouble(f"{DOCUMENT} has lost the marks between which the table stands: {BEGIN} and {END}.")
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(found, json.loads(told.stdout))}\n{END}{after}")
    say(f"== The table in {DOCUMENT.relative_to(ROOT)} is written")


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    code = subprocess.run(list(command), cwd=ROOT, env=dict(environment), check=False).returncode
    return code if code >= 0 else 128 - code
