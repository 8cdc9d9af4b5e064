"""script/test: everything that must hold, the cheap checks first.

`--coverage` also tells how much of the code the tests run, branches included, which takes two thirds longer. With any
other arguments: only pytest, with them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from script.bootstrap import ROOT, VAR, install_packages, say, set_up

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when all holds, else the first failing check's exit code. Raises Trouble in the set-up."""
    python = set_up(["requirements.txt", "requirements-dev.txt"])
    if not any(shutil.which(name) for name in CHROMIUM):
        install_packages(["chromium"], "The browser tests need Chromium", VAR / "log" / "setup.log")
    # PostgreSQL for the tests comes with a Python package. It keeps a lock in the user's runtime folder and
    # warns where there is none, as in a container; warnings are errors.
    with tempfile.TemporaryDirectory(prefix="tallydesk-test-") as scratch:
        environment = {**os.environ, "XDG_RUNTIME_DIR": scratch}
        measured = list(arguments) == ["--coverage"]
        if arguments and not measured:
            return _run([str(python), "-m", "pytest", *arguments], environment)
        code = run_all(checks(python, measured=measured), environment)
        return code or (summarise_coverage(python, environment, Path(scratch)) if measured else 0)


def checks(python: Path, *, measured: bool) -> list[tuple[str, list[str]]]:
    """Name and command of every check, in order; `measured` traces the tests for their coverage."""
    run = [str(python), "-m"]
    traced = ["--cov", "--cov-report="] if measured else []
    return [
        ("ruff check", [*run, "ruff", "check"]),
        ("ruff format", [*run, "ruff", "format", "--check"]),
        ("mypy", [*run, "mypy"]),
        (
            "lint-imports",
            [str(python), "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        ),
        ("bandit", [*run, "bandit", "--quiet", "--configfile", "pyproject.toml", "--recursive", "."]),
        ("pip check", [*run, "pip", "check"]),
        ("pip-audit", [*run, "script.audit"]),
        ("pytest", [*run, "pytest", "-n", "2", *traced]),
    ]


def run_all(steps: Sequence[tuple[str, Sequence[str]]], environment: Mapping[str, str]) -> int:
    """Run the steps until one fails; returns its exit code, or 0. Says how long each took."""
    took = []
    for name, command in steps:
        say(f"== {name}")
        began = time.monotonic()
        code = _run(command, environment)
        took.append(f"{name} {time.monotonic() - began:.0f} s")
        if code:
            say(f"== {name} FAILED (exit code {code}); nothing after it was run. Time: {', '.join(took)}")
            return code
    say(f"== All checks passed. Time: {', '.join(took)}")
    return 0


def summarise_coverage(python: Path, environment: Mapping[str, str], scratch: Path) -> int:
    """Print the total and the files that lag behind. Returns 0: it reports and fails nothing."""
    report = scratch / "coverage.json"
    if _run([str(python), "-m", "coverage", "json", "--quiet", "-o", str(report)], environment) == 0:
        measured = json.loads(report.read_text())
        say(f"== Coverage with branches: {measured['totals']['percent_covered']:.1f} %")
        share = {name: file["summary"]["percent_covered"] for name, file in measured["files"].items()}
        low = [
            f"{name} {percent:.0f} %"
            for name, percent in sorted(share.items(), key=lambda pair: pair[1])
            if percent < 80
        ]
        say(f"   under 80 %: {', '.join(low) or 'no file'}")
    return 0


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    code = subprocess.run(list(command), cwd=ROOT, env=dict(environment), check=False).returncode
    return code if code >= 0 else 128 - code  # a negative code is a signal, and a shell cannot return it
