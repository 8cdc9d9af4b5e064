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
_QUOTED_NAME = re.compile(r'"[^"@]*"\s*(?=<)')
# A display name before the address: nothing may follow it, and no other address may stand in the name.
_ANGLED = re.compile(r"[^<>@]*<([^<>]*)>")


def normalise(text: str) -> str | None:
    """One address in its only form: trimmed, lower case, NFC. None when it is not an address or over 254 characters."""
    text = text.strip()
    # First of all: composing takes quadratic time for a letter with thousands of marks. No address is shorter composed
    # than half of what it was.
    if len(text) > 2 * MAX_LENGTH:
        return None
    address = text.lower()
    if not address.isascii():
        # Lower-casing can decompose (İ becomes i + dot): compose again, so that normalising twice changes nothing.
        address = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    if len(address) > MAX_LENGTH or not _ADDRESS.fullmatch(address):
        return None
    return address


def _read_one(part: str) -> str | None:
    angled = _ANGLED.fullmatch(part.strip())
    return normalise((angled.group(1) if angled else part).strip().replace(" ", "+"))


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
        # Decoded only when it cannot be an address as it stands: a percent sign is a letter like others in an address,
        # and whoever writes from `victim%40shop.example@evil.example` must not be taken for the victim.
        reading = value if "@" in value else unquote(value)
        addresses = [_read_one(part) for part in _SEPARATOR.split(_QUOTED_NAME.sub("", reading)) if part.strip()]
        # For the same reason nothing is picked out of a value of which another part is no address.
        if None not in addresses:
            found.update(dict.fromkeys(address for address in addresses if address is not None))
    return tuple(found)[:MAX_ADDRESSES]
