"""E-mail addresses as they arrive at the edge, normalised once.

A helpdesk puts the customer's address into our URL by template. Whether it percent-encodes the value is not documented,
so a plus sign may arrive as a space and an `@` as `%40`; the variable may be empty or arrive unresolved as `{{…}}`; a
customer may have several addresses.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

MAX_LENGTH = 254  # RFC 5321, section 4.5.3.1.3, less the angle brackets
MAX_VALUE = 2_000
MAX_ADDRESSES = 5

_ADDRESS = re.compile(r"[^\s@,;<>\"(){}\x00-\x1f]+@[^\s@,;<>\"(){}\x00-\x1f]+\.[^\s@,;<>\"(){}\x00-\x1f]+")
_SEPARATOR = re.compile(r"[,;\n]+")
_ANGLED = re.compile(r"<([^<>]*)>")


def normalise(text: str) -> str | None:
    """One address in its only form: trimmed, lower case, NFC. None when it is not an address or over 254 characters."""
    address = unicodedata.normalize("NFC", text.strip()).lower()
    # Lower-casing can decompose (İ becomes i + dot): compose again, so that normalising twice changes nothing.
    address = unicodedata.normalize("NFC", address)
    if len(address) > MAX_LENGTH or not _ADDRESS.fullmatch(address):
        return None
    return address


def read_addresses(values: list[str]) -> tuple[str, ...]:
    """The addresses meant by a parameter's values, most likely first; empty when there is none.

    Each value may hold several addresses, be encoded once more than it should, have a space where a plus sign was, or
    be an unresolved template. Nothing is guessed beyond that: a wrong guess would show one shopper's data for another.
    """
    found: dict[str, None] = {}
    for value in values:
        # Not cut to length: what is left of a cut address may be somebody else's.
        if len(value) > MAX_VALUE:
            continue
        for reading in (value, unquote(value)):
            for part in _SEPARATOR.split(reading):
                angled = _ANGLED.search(part)
                address = normalise((angled.group(1) if angled else part).strip().replace(" ", "+"))
                if address is not None:
                    found[address] = None
    return tuple(found)[:MAX_ADDRESSES]
