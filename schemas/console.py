"""What the console's forms send."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from werkzeug.urls import iri_to_uri

from schemas.email import normalise
from schemas.widget import MAX_CREDIT_CENTS, credit_cents, one_line

MAX_POINTS = 2_000_000_000
MAX_SECRET = 500
# What a settings form may send, and what is shown again when something in it cannot be kept.
FIELDS = (
    "max_points_per_award",
    "max_points_per_agent_per_day",
    "max_points_per_day",
    "max_store_credit_per_award",
    "max_store_credit_per_day",
    "reasons",
    "presets",
    "allow_guests",
    "show_date_of_birth",
    "storefront_url",
)
MAX_REASONS = 20
MAX_PRESETS = 6
# What is typed to find the awards of agents whom Gorgias did not name.
NOT_NAMED = "not named"
SHOP_ADDRESS_FAULT = "Shop address: a full address such as https://shop.example.com, without a query."


class BadForm(Exception):
    """A form holds something we cannot keep. `faults` has one sentence for each field."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(" ".join(faults))
        self.faults = faults


@dataclass(frozen=True, kw_only=True)
class ConnectionForm:
    """The settings of a connection as the merchant typed them. Store credit in hundredths; 0 allows none."""

    max_points_per_award: int
    max_points_per_agent_per_day: int
    max_points_per_day: int
    max_credit_cents_per_award: int
    max_credit_cents_per_day: int
    reasons: tuple[str, ...]
    presets: tuple[int, ...]
    allow_guests: bool
    show_date_of_birth: bool
    storefront_url: str


def read_connection_form(form: Mapping[str, Any], *, built_in: bool = True) -> ConnectionForm:
    """Read the settings form. Raises BadForm with every fault at once.

    The `built_in` ledger has a shop address and no store credit; a program elsewhere has it the other way round.
    """
    faults: list[str] = []

    def points(name: str, label: str) -> int:
        number = _whole(str(form.get(name, "")))
        if number is None:
            faults.append(f"{label} must be a whole number from 1 to {MAX_POINTS:,}.")
        return number or 0

    per_award = points("max_points_per_award", "Points per award")
    per_agent = points("max_points_per_agent_per_day", "Points per agent and day")
    per_day = points("max_points_per_day", "Points per day")

    def credit(name: str, label: str) -> int:
        text = str(form.get(name, "")).strip(" \t\r\n")
        if built_in or not text or re.fullmatch(r"0+([.,]0{1,2})?", text):
            return 0
        cents = credit_cents(text)
        if cents is None:
            faults.append(
                f"{label} must be an amount such as 5 or 5.00, up to {MAX_CREDIT_CENTS // 100:,}, or empty for none."
            )
        return cents or 0

    before = len(faults)
    credit_per_award = credit("max_store_credit_per_award", "Store credit per award")
    credit_per_day = credit("max_store_credit_per_day", "Store credit per day")
    if len(faults) == before and credit_per_award > credit_per_day:
        faults.append("Store credit per day must be at least as much as the store credit per award.")

    # Read as the button's reason is read, so that what an agent picks is found on the list.
    lines = [line for line in str(form.get("reasons", "")).splitlines() if line.strip()]
    reasons = tuple(dict.fromkeys(map(one_line, lines)))
    if len(reasons) > MAX_REASONS or any(len(reason) > 60 for reason in reasons):
        faults.append(f"Reasons: at most {MAX_REASONS}, one on each line, up to 60 characters each.")
    if "" in reasons:
        faults.append("Reasons: each must be plain words, without {{ or }}.")

    texts = [text for text in re.split(r"[\s,;]+", str(form.get("presets", ""))) if text]
    numbers = [_whole(text) for text in texts]
    presets = tuple(dict.fromkeys(number for number in numbers if number is not None))
    if len(presets) != len(numbers) or len(presets) > MAX_PRESETS:
        faults.append(f"Presets: up to {MAX_PRESETS} different whole numbers such as 50, 100.")
    elif per_award and any(preset > per_award for preset in presets):
        faults.append("Presets: none may exceed the points per award.")

    storefront = str(form.get("storefront_url", "")).strip() if built_in else ""
    if storefront and not re.fullmatch(r"https?://[\w.-]+(:[0-9]{1,5})?(/[^\s?#\\<>\"\x00-\x1f\x7f]*)?", storefront):
        faults.append(SHOP_ADDRESS_FAULT)
    elif storefront:
        try:
            # As it will go into a Location header: bad ports and labels fail only there.
            iri_to_uri(storefront)
        except ValueError:
            faults.append(SHOP_ADDRESS_FAULT)
    if len(storefront) > 300:
        faults.append("Shop address: up to 300 characters.")

    if faults:
        raise BadForm(faults)
    return ConnectionForm(
        max_points_per_award=per_award,
        max_points_per_agent_per_day=per_agent,
        max_points_per_day=per_day,
        max_credit_cents_per_award=credit_per_award,
        max_credit_cents_per_day=credit_per_day,
        reasons=reasons,
        presets=presets,
        allow_guests="allow_guests" in form,
        show_date_of_birth="show_date_of_birth" in form,
        storefront_url=storefront,
    )


@dataclass(frozen=True, kw_only=True)
class ActivityForm:
    """Which awards are wanted, as a person typed it; what is None does not matter.

    E-mails are normalised; `agent` is empty for agents who were not named. `faults` has one sentence for each field
    that could not be read, and was left out. Days are UTC's, both included.
    """

    state: str = ""
    member: str | None = field(default=None, repr=False)
    agent: str | None = field(default=None, repr=False)
    since: date | None = None
    until: date | None = None
    faults: tuple[str, ...] = ()


def read_activity_form(form: Mapping[str, Any]) -> ActivityForm:
    """Read the form that filters awards. Raises nothing: what cannot be read is left out and told."""
    faults: list[str] = []

    def email(name: str, label: str) -> str | None:
        typed = str(form.get(name, "")).strip()
        found = normalise(typed) if typed else None
        if typed and found is None:
            faults.append(f"{label} must be a whole e-mail address; it was left out.")
        return found

    def day(name: str, label: str) -> date | None:
        typed = str(form.get(name, "")).strip()
        found = read_day(typed)
        if typed and found is None:
            faults.append(f"{label} must be a day such as 2026-03-14; it was left out.")
        return found

    unnamed = str(form.get("agent", "")).strip().lower() == NOT_NAMED
    member, agent = email("member", "Member"), "" if unnamed else email("agent", "Agent")
    since, until = day("from", "From"), day("to", "To")
    if since is not None and until is not None and since > until:
        faults.append("From must not be after To; both were left out.")
        since = until = None
    return ActivityForm(
        state=str(form.get("state", "")), member=member, agent=agent, since=since, until=until, faults=tuple(faults)
    )


def read_day(text: str) -> date | None:
    """A day as `2026-03-14`; None when it is none, or far from any award."""
    if not re.fullmatch(r"2[01][0-9]{2}-[0-9]{2}-[0-9]{2}", text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def read_webhook_secret(text: str) -> str:
    """The secret that signs a program's webhooks, as pasted. Raises BadForm.

    UNKNOWN what Rivo's secrets look like: nothing else is checked than that it can be one.
    """
    secret = text.strip()
    if not secret:
        raise BadForm(["Paste the signing secret that Rivo shows beside its webhooks."])
    if len(secret) > MAX_SECRET or not secret.isprintable():
        raise BadForm(["This cannot be a signing secret: copy it once more from Rivo, alone and complete."])
    return secret


def _whole(text: str) -> int | None:
    if not re.fullmatch(r"[0-9]{1,10}|[0-9]{1,3}(,[0-9]{3}){1,3}", text.strip(" \t\r\n")):
        return None
    number = int(text.replace(",", ""))
    return number if 1 <= number <= MAX_POINTS else None
