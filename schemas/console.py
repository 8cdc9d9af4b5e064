"""What the console's forms send."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from werkzeug.urls import iri_to_uri

from schemas.widget import one_line

MAX_POINTS = 2_000_000_000
MAX_REASONS = 20
MAX_PRESETS = 6
SHOP_ADDRESS_FAULT = "Shop address: a full address such as https://shop.example.com, without a query."


class BadForm(Exception):
    """A form holds something we cannot keep. `faults` has one sentence for each field."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(" ".join(faults))
        self.faults = faults


@dataclass(frozen=True, kw_only=True)
class ConnectionForm:
    """The settings of a connection as the merchant typed them."""

    max_points_per_award: int
    max_points_per_agent_per_day: int
    max_points_per_day: int
    reasons: tuple[str, ...]
    presets: tuple[int, ...]
    allow_guests: bool
    show_date_of_birth: bool
    storefront_url: str


def read_connection_form(form: Mapping[str, Any]) -> ConnectionForm:
    """Read the settings form. Raises BadForm with every fault at once."""
    faults: list[str] = []

    def points(name: str, label: str) -> int:
        number = _whole(str(form.get(name, "")))
        if number is None:
            faults.append(f"{label} must be a whole number from 1 to {MAX_POINTS:,}.")
        return number or 0

    per_award = points("max_points_per_award", "Points per award")
    per_agent = points("max_points_per_agent_per_day", "Points per agent and day")
    per_day = points("max_points_per_day", "Points per day")

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

    storefront = str(form.get("storefront_url", "")).strip()
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
        reasons=reasons,
        presets=presets,
        allow_guests="allow_guests" in form,
        show_date_of_birth="show_date_of_birth" in form,
        storefront_url=storefront,
    )


def _whole(text: str) -> int | None:
    if not re.fullmatch(r"[0-9]{1,10}|[0-9]{1,3}(,[0-9]{3}){1,3}", text.strip(" \t\r\n")):
        return None
    number = int(text.replace(",", ""))
    return number if 1 <= number <= MAX_POINTS else None
