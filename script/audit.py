"""Whether a known hole is in what is installed for production: pip-audit, where the network lets it ask.

A hole that is found fails. That the advisories cannot be asked does not: it is said in one line, and script/test goes
on, as it must on a machine without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from script.bootstrap import ROOT, say

WITHIN_S = 90
CANNOT_ASK = "The advisories cannot be asked from here, so nothing was audited. Run script/test where they can."


def main() -> int:
    """Returns 1 when a package has a known hole, else 0."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    command += ["--timeout", "5", "--format", "json", "--requirement", "requirements.txt"]
    try:
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False).stdout
    except subprocess.TimeoutExpired:
        told = ""
    code, sentences = judge(told)
    for sentence in sentences:
        say(sentence)
    return code


def judge(told: str) -> tuple[int, list[str]]:
    """The exit code and what to say, from pip-audit's JSON; from anything else, that it could not ask."""
    try:
        packages: list[dict[str, Any]] = json.loads(told)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return 0, [CANNOT_ASK]
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        return 0, [CANNOT_ASK]
    sentences = [
        f"{package['name']} {package['version']} has a known hole, {hole['id']}: "
        + (f"take {' or '.join(hole['fix_versions'])}." if hole.get("fix_versions") else "no version mends it yet.")
        for package in audited
        for hole in package.get("vulns", [])
    ]
    left_out = len(packages) - len(audited)
    asked = f"{len(audited)} packages audited" + (f", {left_out} could not be" if left_out else "")
    return (1, sentences) if sentences else (0, [f"{asked}; no known hole."])


if __name__ == "__main__":
    sys.exit(main())
