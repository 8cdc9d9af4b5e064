"""What must not leave in a log line or a report of a crash: addresses, keys, and whatever goes by such a name.

A net behind the rule that nobody logs any of it: the text of an unforeseen error may quote one all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

HIDDEN = "…"

# What goes by one of these names is hidden whatever it looks like: a loyalty program's key has no form of its own.
_SECRET_NAME = (
    r"[\w.-]*(?:authorization|api[-_]?key|award[-_]?key|secret[-_]?key|encryption[-_]?keys?|secret|token|passwd|password"
    r"|cookie|signature|dsn|notice[-_]?url)"
)
_IS_PRIVATE_NAME = re.compile(rf"{_SECRET_NAME}s?|(?:\w+_)?e-?mails?", re.IGNORECASE)

# User and password of an address such as DATABASE_URL.
_CREDENTIALS = re.compile(r"(?<=://)[^\s/]*@")
# E-mail addresses, however often their @ is encoded.
_ADDRESS = re.compile(
    # From the beginning of a word only: else a long one is tried from each of its letters.
    r"(?<![^\s'\"<>()=,;:&?])[^\s'\"<>()=,;:&?]+(?:@|%(?:25)*40|\\u0040|&#64;)[^\s'\"<>()=,;:&]+",
    re.IGNORECASE,
)
# The keys that Gorgias sends.
_CONNECTION_KEY = re.compile(r"td[la]_[0-9a-z]+", re.IGNORECASE)
# `name: value`, `name=value` and the pair `'name', 'value'`, quoted or not.
_NAMED_SECRET = re.compile(
    rf"(?<![\w.-]){_SECRET_NAME}\b['\"]?\s*[:=,]\s*(?:b(?=['\"]))?['\"]?(?:(?:bearer|basic)\s+)?[^\s'\",}}&]+",
    re.IGNORECASE,
)
# Random text: tokens, keys, sealed values. Letters and digits in one run that is longer than any word of ours; our own
# operation ids have a form of their own and stay.
_RANDOM = re.compile(
    r"(?!td_[a-z2-7]{24}\b)(?<![\w+=-])(?=[\w+=-]*[0-9])(?=[\w+=-]*[A-Za-z])[A-Za-z0-9_+=-]{24,}", re.ASCII
)

# Shorter ones would be found in words.
_SHORTEST_KNOWN = 8
_known: list[str] = []


def hide(*secrets: str) -> None:
    """From now on these leave this process in no line and no report, wherever they stand. Short ones are ignored."""
    for secret in secrets:
        for form in (secret, quote(secret, safe="")):
            if len(secret) >= _SHORTEST_KNOWN and form not in _known:
                _known.append(form)


def cleaned_text(text: str) -> str:
    """`text` with everything private in it replaced by `…`."""
    # Every request logs a line, and nearly all of it is words.
    if len(text) < 2 * _SHORTEST_KNOWN and text.isalpha():
        return text
    # Each search only where it can find something.
    if len(text) >= _SHORTEST_KNOWN:
        for secret in _known:
            if secret in text:
                text = text.replace(secret, HIDDEN)
    if text.isalnum():
        return text
    if "://" in text:
        text = _CREDENTIALS.sub(HIDDEN, text)
    if "@" in text or "40" in text or "&#64;" in text:
        text = _ADDRESS.sub(HIDDEN, text)
    if "_" in text:
        text = _CONNECTION_KEY.sub(HIDDEN, text)
    if ":" in text or "=" in text or "," in text:
        text = _NAMED_SECRET.sub(HIDDEN, text)
    return text


def cleaned_trace(text: str) -> str:
    """The same for the text of an error or a traceback, where random text is hidden too, whatever it is."""
    return _RANDOM.sub(HIDDEN, cleaned_text(text))


def cleaned(value: Any, *, trace: bool = False) -> Any:
    """`value` as plain data without anything private, however deep it stands. `trace` as for `cleaned_trace`."""
    if not isinstance(value, str):
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, Mapping):
            return {
                cleaned(name, trace=trace): cleaned_field(name, inner, trace=trace) for name, inner in value.items()
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [cleaned(inner, trace=trace) for inner in value]
        value = bytes(value).decode(errors="replace") if isinstance(value, (bytes, bytearray)) else repr(value)
    return cleaned_trace(value) if trace else cleaned_text(value)


def cleaned_field(name: object, value: Any, *, trace: bool = False) -> Any:
    """`value` as it may be told under `name`."""
    if _is_private_name(name) and not isinstance(value, (bool, int, float, type(None))):
        return HIDDEN
    return cleaned(value, trace=trace)


@lru_cache(maxsize=1_000)
def _is_private_name(name: object) -> bool:
    return isinstance(name, str) and _IS_PRIVATE_NAME.fullmatch(name) is not None
