"""docs/watching.md tells of every log line, every metric and every word that the code has, and of no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest
import yaml

import console.room
import loyalty.awards
import oauth.wire
import webhooks.views
import widget.room
from loyalty.attempts import AttemptOutcome
from loyalty.delivery import Confirmation
from loyalty.journal import AwardState
from loyalty.members import ReadOutcome
from loyalty.program import ProgramReason
from loyalty.rivo_webhook import Fault
from notices import NoticeOutcome
from oauth.accounts import AccountState, Purpose, Refreshed
from oauth.gorgias_api import GorgiasReason
from schemas.widget import RequestFault
from script.bootstrap import ROOT
from tests.house import House
from tests.watching.test_metrics import Told
from widget.notes import NoteOutcome
from widget.placement import PlacementProblem
from widget.probe import ProbeOutcome

PAGE = (ROOT / "docs" / "watching.md").read_text()
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
# Where a page tells words, and the vocabularies they are of.
WORDS: dict[str, list[type[StrEnum]]] = {
    "cards": [widget.room.Outcome, ProgramReason],
    "buttons": [loyalty.awards.Status, loyalty.awards.Refusal, RequestFault, widget.room.Outcome],
    "sign-in": [Purpose, oauth.wire.Refusal],
    "console": [console.room.Outcome, PlacementProblem, ProgramReason],
    "webhooks": [webhooks.views.Outcome, Fault],
    "notes": [NoteOutcome],
    "awards in doubt": [Confirmation, AttemptOutcome],
    "tokens": [Refreshed],
    "probes": [ProbeOutcome],
    "notices": [NoticeOutcome],
    "member reads": [ReadOutcome],
    "program calls": [ProgramReason],
    "Gorgias calls": [GorgiasReason],
    "open awards": [AwardState],
    "accounts": [AccountState],
}


def product() -> Iterator[Path]:
    """Every file that runs as a part of Tallydesk."""
    apart = {"tests", "sandbox", "script", "bench", "demo", "node_modules"}
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT).parts
        if not (place[0].startswith(".") or place[0] in apart or place[0] in ("var",)):
            yield path


def lines() -> dict[str, tuple[set[str], set[str]]]:
    """Every log line in the code: its fields and those of its outcomes that are written out where it is logged."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in product():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            called = node.func
            logs = isinstance(called, ast.Attribute) and called.attr in LEVELS and ast.unparse(called.value) in (
                "log", "structlog.get_logger()",
            )  # fmt: skip
            if not logs and not (isinstance(called, ast.Name) and called.id == "tell"):
                continue
            fields, outcomes = found.setdefault(str(node.args[0].value), (set(), set()))
            for given in node.keywords:
                if given.arg not in (None, "exc_info"):
                    fields.add(str(given.arg))
                if given.arg == "outcome":
                    outcomes |= {
                        inner.value
                        for inner in ast.walk(given.value)
                        if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
                    }
    return found


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table under `heading`, by what stands in code in their first cell."""
    under = re.split(r"(?m)^#+ ", PAGE.partition(f"# {heading}\n")[2])[0]
    rows = [line.strip().strip("|").split(" | ") for line in under.splitlines() if line.startswith("| ")]
    return {re.sub(r"[`\s]", " ", row[0]).strip(): row[1:] for row in rows[1:]}


def coded(cell: str) -> set[str]:
    """What stands in code in a cell."""
    return set(re.findall(r"`([^`]+)`", cell))


def test_the_page_has_every_log_line_with_its_fields_and_words() -> None:
    told, written = lines(), table("Log lines")
    assert len(told) > 20
    assert set(told) == set(written)
    missing = []
    for event, (fields, outcomes) in told.items():
        missing += [f"{event}: {name}" for name in (fields - {"outcome"}) - coded(written[event][1])]
        missing += [f"{event}: {word}" for word in outcomes - coded(written[event][2])]
    assert missing == []


def test_the_page_has_every_metric_with_its_labels(house: House) -> None:
    told = {
        re.sub(r"_(bucket|count|sum)$", "", name): labels
        for name, labels in Told(house).labels.items()
        if not name.endswith("_bucket")
    }
    written = {name: coded(cells[0]) for name, cells in table("Metrics").items()}
    assert written == told


@pytest.mark.parametrize("where", WORDS)
def test_the_page_has_every_word(where: str) -> None:
    told = {word.value for words in WORDS[where] for word in words}
    assert coded(table("Words")[where][0]) >= told


def test_the_page_explains_every_alert() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"][0]["rules"]
    assert set(table("Alerts")) == {rule["alert"] for rule in rules}
