"""What script/test makes of an audit of the dependencies: a hole fails, and no network does not."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from script import checks
from script.audit import CANNOT_ASK, judge
from script.bootstrap import ROOT

SOUND = {"name": "flask", "version": "3.1.3", "vulns": []}
SKIPPED = {"name": "jinja2", "skip_reason": "Dependency not found"}
HOLED = {"name": "old", "version": "1.0", "vulns": [{"id": "X-1", "fix_versions": ["1.1", "2.0"]}]}
UNMENDED = {"name": "lost", "version": "2.0", "vulns": [{"id": "X-2", "fix_versions": []}]}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SOUND], 0, ["1 packages audited; no known hole."]),
        ([SOUND, SKIPPED], 0, ["1 packages audited, 1 could not be; no known hole."]),
        ([SKIPPED], 0, [CANNOT_ASK]),
        (
            [SOUND, HOLED, UNMENDED, SKIPPED],
            1,
            [
                "old 1.0 has a known hole, X-1: take 1.1 or 2.0.",
                "lost 2.0 has a known hole, X-2: no version mends it yet.",
            ],
        ),
    ],
)
def test_a_hole_fails_and_what_could_not_be_asked_is_said(
    packages: list[dict[str, object]], code: int, said: list[str]
) -> None:
    assert judge(json.dumps({"dependencies": packages, "fixes": []})) == (code, said)


@pytest.mark.parametrize("told", ["", "ERROR: no network", "[]", "{}"])
def test_without_a_network_it_says_so_and_goes_on(told: str) -> None:
    assert judge(told) == (0, [CANNOT_ASK])


def test_both_tools_are_among_the_checks_and_bandit_leaves_out_what_ruff_leaves_out() -> None:
    steps = dict(checks.checks(Path("python"), measured=False))
    assert steps["pip-audit"][-1] == "script.audit"
    assert steps["bandit"][1:3] == ["-m", "bandit"]
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    left_out = {skip.replace("B", "S") for skip in configured["bandit"]["skips"]}
    assert left_out <= set(configured["ruff"]["lint"]["ignore"])
