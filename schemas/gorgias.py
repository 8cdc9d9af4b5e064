"""Gorgias' objects as we read them back: only what we need, unknown fields ignored.

Sources: https://developers.gorgias.com/reference/the-integration-object, https://developers.gorgias.com/reference/widgets
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields


class Unreadable(Exception):
    """Gorgias gave an object in a shape we cannot read."""


class _Loose(Schema):
    class Meta:
        unknown = EXCLUDE


class _HttpSchema(_Loose):
    url = fields.String(load_default="", allow_none=True)
    method = fields.String(load_default="", allow_none=True)
    headers = fields.Dict(load_default=None, allow_none=True)
    triggers = fields.Dict(load_default=None, allow_none=True)


class _IntegrationSchema(_Loose):
    id = fields.Integer(required=True)
    description = fields.String(load_default="", allow_none=True)
    deactivated_datetime = fields.String(load_default=None, allow_none=True)
    http = fields.Nested(_HttpSchema, load_default=None, allow_none=True)


class _WidgetSchema(_Loose):
    id = fields.Integer(required=True)
    context = fields.String(load_default="ticket", allow_none=True)
    integration_id = fields.Integer(load_default=None, allow_none=True)
    template = fields.Dict(load_default=None, allow_none=True)
    deactivated_datetime = fields.String(load_default=None, allow_none=True)


class _MacroSchema(_Loose):
    id = fields.Integer(required=True)
    name = fields.String(load_default="", allow_none=True)
    actions = fields.List(fields.Dict(), load_default=None, allow_none=True)


class _MessageSchema(_Loose):
    external_id = fields.Raw(load_default=None, allow_none=True)


@dataclass(frozen=True, kw_only=True)
class Integration:
    """An HTTP integration. `headers` is None when Gorgias does not show them; `triggers` are those switched on."""

    id: int
    description: str
    url: str
    method: str
    headers: Mapping[str, Any] | None = field(repr=False)
    triggers: frozenset[str]
    disabled: bool


@dataclass(frozen=True, kw_only=True)
class Widget:
    """A sidebar widget."""

    id: int
    context: str
    integration_id: int | None
    template: Mapping[str, Any] = field(repr=False)
    disabled: bool


@dataclass(frozen=True, kw_only=True)
class Macro:
    """A macro. `integration_ids` are the HTTP integrations whose values its texts show."""

    id: int
    name: str
    integration_ids: frozenset[int]


def read_integration(sent: Any) -> Integration:
    """Read an integration. Raises Unreadable."""
    loaded = _load(_IntegrationSchema(), sent)
    http = loaded["http"] or {}
    return Integration(
        id=loaded["id"],
        description=loaded["description"] or "",
        url=http.get("url") or "",
        method=http.get("method") or "",
        headers=http.get("headers"),
        # Older pages of the reference write triggers with underscores.
        triggers=frozenset(str(k).replace("_", "-") for k, on in (http.get("triggers") or {}).items() if on),
        disabled=loaded["deactivated_datetime"] is not None,
    )


def read_widget(sent: Any) -> Widget:
    """Read a widget. Raises Unreadable."""
    loaded = _load(_WidgetSchema(), sent)
    return Widget(
        id=loaded["id"],
        context=loaded["context"] or "ticket",
        integration_id=loaded["integration_id"],
        template=loaded["template"] or {},
        disabled=loaded["deactivated_datetime"] is not None,
    )


def read_macro(sent: Any) -> Macro:
    """Read a macro. Raises Unreadable."""
    loaded = _load(_MacroSchema(), sent)
    shown: set[int] = set()
    for action in loaded["actions"] or []:
        arguments = action.get("arguments")
        for text in arguments.values() if isinstance(arguments, dict) else ():
            shown.update(map(int, re.findall(r"\bintegrations\[([0-9]{1,18})\]", str(text))))
    return Macro(id=loaded["id"], name=loaded["name"] or "", integration_ids=frozenset(shown))


def read_external_id(sent: Any) -> str:
    """The external id of a ticket's message; empty when it has none. Raises Unreadable."""
    return str(_load(_MessageSchema(), sent)["external_id"] or "")


def _load(schema: Schema, sent: Any) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = schema.load(sent)
    except ValidationError as error:
        raise Unreadable(f"Gorgias gave an object in a shape we cannot read: {sorted(error.messages_dict)}.") from error
    return loaded
