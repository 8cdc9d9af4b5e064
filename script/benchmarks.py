"""script/bench: every claim about speed, measured beside what it is compared with, and docs/benchmarks.md from it.

Without arguments everything, in under an hour; `--quick` for a look of three minutes; names of sections for those
alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Sequence

from script.bootstrap import ROOT, set_up


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code of `python -m bench`. Raises Trouble in the set-up."""
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help="such as cards or awards; else all")
    parser.add_argument("--quick", action="store_true", help="three minutes instead of an hour; figures are indicative")
    asked = parser.parse_args(arguments)
    python = set_up(["requirements.txt", "requirements-dev.txt"])
    with tempfile.TemporaryDirectory(prefix="tallydesk-bench-") as scratch:
        # PostgreSQL for the measurements wants a runtime folder, see script/checks.py.
        environment = {**os.environ, "XDG_RUNTIME_DIR": scratch}
        command = [str(python), "-m", "bench", *(["--quick"] if asked.quick else []), *asked.sections]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    return code if code >= 0 else 128 - code
