"""Gorgias' template variables: `{{ticket.customer.email}}` and friends, filled in from plain JSON data.

Used wherever the helpdesk substitutes: URLs and bodies of HTTP integrations, action buttons, widget titles
and links, and macros. It reads mappings and lists only, never attributes of Python objects, and runs no code.
Escaping for the place where the text ends up (HTML, a URL) is the caller's choice, made with `escape`.
"""

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_NAME = r"\w[\w-]*"
_PATH = rf"{_NAME}(?:\.{_NAME}|\[[^\[\]]+\])*"
_EXPRESSION = re.compile(
    rf"""\s*(?P<path>{_PATH})\s*
    (?:\|\s*(?P<filter>\w+)\s*(?:\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\))?\s*)?""",
    re.VERBOSE,
)
_SEGMENT = re.compile(rf"(?P<name>{_NAME})|\[\s*(?P<key>[^\[\]]+?)\s*\]")

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# https://momentjs.com/docs/#/displaying/format/ (locale en); names are spelled out here because strftime's
# follow the locale of the machine.
_LONG_FORMS = {
    "LTS": "h:mm:ss A",
    "LT": "h:mm A",
    "LLLL": "dddd, MMMM D, YYYY h:mm A",
    "LLL": "MMMM D, YYYY h:mm A",
    "LL": "MMMM D, YYYY",
    "L": "MM/DD/YYYY",
}
_LONG_FORM = re.compile(r"\[[^\[\]]*\]|LTS|LT|LLLL|LLL|LL|L")
_TOKEN = re.compile(r"\[(?P<literal>[^\[\]]*)\]|YYYY|YY|MMMM|MMM|MM|M|Do|DD|D|dddd|ddd|HH|H|hh|h|mm|m|ss|s|A|a")


def render(text: str, context: Mapping[str, Any], *, escape: Callable[[str], str] = str) -> str:
    """Replace every `{{path}}` of `text` by the value that `context` holds there.

    A path is made of names joined by dots, `[0]` and `[-1]` for items of a list, and `[12345]` for a key of
    an object, as in `ticket.customer.integrations[12345].points_balance`. Missing data gives a blank, text
    itself, numbers and booleans as in JSON, objects and lists their JSON. `|datetime_format("MMM Do YY")`
    shows an ISO 8601 time in moment.js' notation, unchanged when it is no time. What is no template of this
    grammar is left as it is.

    `escape` is applied to each inserted value, not to `text`: for example `urllib.parse.quote`.

    https://gorgias-help-center.gorgias.help/en-US/macro-variables-81845 (blank, filters); the form with an
    integration's id is from third-party code.
    """

    def replace(match: re.Match[str]) -> str:
        expression = _EXPRESSION.fullmatch(match[1])
        if expression is None or expression["filter"] not in (None, "datetime_format"):
            return match[0]
        value = lookup(expression["path"], context)
        if expression["filter"]:
            # Without an argument moment.js writes ISO 8601, which is what the data already holds.
            return escape(format_time(value, expression["format"] or ""))
        return escape(as_text(value))

    return _TEMPLATE.sub(replace, text)


def render_html(text: str, context: Mapping[str, Any]) -> str:
    """As `render`, for `text` that is HTML (a macro's `body_html`): values are escaped, their lines kept."""
    return render(text, context, escape=lambda value: html.escape(value).replace("\n", "<br>"))


def lookup(path: str, data: Any) -> Any:
    """The value at `path` inside `data`, or None where there is none; "" is `data` itself.

    >>> lookup("orders[-1].name", {"orders": [{"name": "#1"}, {"name": "#2"}]})
    '#2'
    """
    for segment in _SEGMENT.finditer(path):
        key = segment["name"] or segment["key"].strip("\"'")
        if isinstance(data, Mapping):
            data = data.get(key)
        elif isinstance(data, Sequence) and not isinstance(data, str):
            try:
                data = data[int(key)]
            except (ValueError, IndexError):
                return None
        else:
            return None
    return data


def as_text(value: Any) -> str:
    """A JSON value as the helpdesk writes it into text: None is blank, text is itself, the rest is JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def as_time(value: Any) -> datetime | None:
    """The time that `value` (ISO 8601 text, with or without an offset) names, else None."""
    if not isinstance(value, str) or not re.match(r"\d{4}-\d\d-\d\d", value):
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def format_time(value: Any, moment_format: str) -> str:
    """`value` (ISO 8601 text) in moment.js' notation, in the offset it has; other text unchanged."""
    time = as_time(value)
    if time is None or not moment_format:
        return as_text(value)
    spelled_out = _LONG_FORM.sub(lambda match: _LONG_FORMS.get(match[0], match[0]), moment_format)
    return _TOKEN.sub(lambda match: _format_token(match, time), spelled_out)


def _format_token(match: re.Match[str], time: datetime) -> str:
    if match["literal"] is not None:
        return match["literal"]
    hour12 = time.hour % 12 or 12
    month, weekday = _MONTHS[time.month - 1], _WEEKDAYS[time.weekday()]
    meridiem = "AM" if time.hour < 12 else "PM"
    return {
        "YYYY": f"{time.year:04}", "YY": f"{time.year % 100:02}",
        "MMMM": month, "MMM": month[:3], "MM": f"{time.month:02}", "M": f"{time.month}",
        "Do": _ordinal(time.day), "DD": f"{time.day:02}", "D": f"{time.day}",
        "dddd": weekday, "ddd": weekday[:3],
        "HH": f"{time.hour:02}", "H": f"{time.hour}", "hh": f"{hour12:02}", "h": f"{hour12}",
        "mm": f"{time.minute:02}", "m": f"{time.minute}", "ss": f"{time.second:02}", "s": f"{time.second}",
        "A": meridiem, "a": meridiem.lower(),
    }[match[0]]  # fmt: skip


def _ordinal(day: int) -> str:
    suffix = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"
