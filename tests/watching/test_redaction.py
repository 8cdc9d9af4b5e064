"""What must not leave is hidden wherever it stands, and what an operator needs is not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

import redaction
from redaction import HIDDEN, cleaned, cleaned_text, cleaned_trace, hide

ADDRESS = "ana.lopez@example.com"


@pytest.mark.parametrize(
    "text",
    [
        f"no answer for {ADDRESS}.",
        "GET /widget/customer?email=ana.lopez%40example.com&x=1",
        "GET /widget/customer?email=ana.lopez%2540example.com",
        '{"email": "ana.lopez\\u0040example.com"}',
        "mailto:ana.lopez&#64;example.com",
        "user='ana.lopez@example.com'",
        "ANA.LOPEZ@EXAMPLE.COM",
    ],
)
def test_an_address_is_hidden_however_it_is_written(text: str) -> None:
    assert "lopez" not in cleaned_text(text).lower()
    assert HIDDEN in cleaned_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "{'Authorization': 'raw-key'}",
        "Authorization: Bearer raw-key",
        "('authorization', b'raw-key')",
        '{"api_key":"raw-key","points":5}',
        "api_key=raw-key&points=5",
        "X-Api-Key: raw-key",
        "webhook_secret='raw-key'",
        "refresh_token=raw-key",
        "postgresql://tally:raw-key@db.example.com/tallydesk",
        "https://raw-key@sentry.example.com/1",
        "Cookie: raw-key",
    ],
)
def test_what_goes_by_the_name_of_a_secret_is_hidden(text: str) -> None:
    assert "raw-key" not in cleaned_text(text)


def test_a_key_of_ours_is_hidden_and_an_operation_id_is_not() -> None:
    assert cleaned_text("key tdl_0a1b2c3d") == f"key {HIDDEN}"
    kept = "award td_aaaaaaaaaaaaaaaaaaaaaaa2 is there"
    assert cleaned_trace(kept) == kept


def test_random_text_in_a_traceback_is_hidden_and_the_places_in_the_code_are_not() -> None:
    place = (
        '  File "/usr/lib/python3.11/site-packages/requests/adapters.py", line 12, in a_rather_long_name_of_a_function'
    )
    assert cleaned_trace(place) == place
    assert cleaned_trace("KeyError: '9f86d081884c7d659a2feaa0c55ad015'") == f"KeyError: '{HIDDEN}'"


def test_every_depth_is_reached_and_numbers_stay() -> None:
    told = {
        "status": 200,
        "told_email": True,
        "api_key": "k",
        "agent_email": "someone",
        "list": [{"secret": "s", "inner": (ADDRESS, {"x": ADDRESS})}, None, 2.5],
        ADDRESS: b"from " + ADDRESS.encode(),
        "when": datetime(2026, 3, 14, tzinfo=UTC),
        "error": ValueError(ADDRESS),
    }
    clean = cleaned(told)
    assert "lopez" not in str(clean)
    assert (clean["status"], clean["told_email"], clean["api_key"], clean["agent_email"]) == (200, True, HIDDEN, HIDDEN)
    assert clean["list"] == [{"secret": HIDDEN, "inner": [HIDDEN, {"x": HIDDEN}]}, None, 2.5]
    assert "2026" in clean["when"]


def test_secrets_of_this_process_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", [])
    hide("pass word/of+ours", "short", "")
    assert cleaned_text("it was pass word/of+ours, not short") == f"it was {HIDDEN}, not short"
    assert cleaned_text("x?p=pass%20word%2Fof%2Bours") == f"x?p={HIDDEN}"


@pytest.mark.parametrize(
    "word", ["found", "already_applied", "/connections/<int:connection_id>", "2026-03-14T09:30:00Z"]
)
def test_the_words_of_our_own_lines_stay_as_they_are(word: str) -> None:
    assert cleaned({"outcome": word}) == {"outcome": word}
