"""A widget's template and its data, turned into what the sidebar shows.

Pure: in go the template tree of `POST /api/widgets` and the JSON that the integration answered, out comes a
tree of frozen dataclasses in which every text is final and only needs escaping. What Gorgias does not
document (leaf types beyond text, the JSON of a button's editable field) is decided here.

https://developers.gorgias.com/reference/widgets; the node types beyond its example, `meta` and buttons are
from third-party code.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from sandbox.variables import as_text, as_time, format_time, lookup, render

_COLOR = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})|[a-zA-Z]{3,20}")
_FORM = "application/x-www-form-urlencoded"


class FieldKind(StrEnum):
    TEXT = "text"
    DATE = "date"
    BOOLEAN = "boolean"


class InputKind(StrEnum):
    STRING = "string"
    NUMBER = "number"
    TEXTAREA = "textarea"
    BOOLEAN = "boolean"
    DROPDOWN = "dropdown"


@dataclass(frozen=True)
class Field:
    """One line of a card. `text` is "" without data, `url` is set when the value is itself a web address,
    `machine_time` (ISO 8601) when it is a time."""

    path: str
    label: str
    kind: FieldKind
    text: str
    url: str = ""
    machine_time: str = ""


@dataclass(frozen=True)
class Link:
    label: str
    url: str


@dataclass(frozen=True)
class Input:
    """One thing an agent fills in before a button runs; `value` is what it starts with."""

    key: str
    label: str
    kind: InputKind
    value: str
    required: bool
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Button:
    """`id` is unique within the widget and the same at every build from the same template and data."""

    id: str
    label: str
    action: Mapping[str, Any]
    inputs: tuple[Input, ...]


@dataclass(frozen=True)
class Card:
    """`boxed` is false when `meta.displayCard` is: the card's lines then stand without heading and frame."""

    title: str
    boxed: bool
    link: str
    color: str
    picture_url: str
    links: tuple[Link, ...]
    buttons: tuple[Button, ...]
    items: "tuple[Field | Card | CardList, ...]"


@dataclass(frozen=True)
class CardList:
    path: str
    label: str
    cards: tuple[Card, ...]


def build(template: Mapping[str, Any], data: Any, *, context: Mapping[str, Any]) -> tuple[Card, ...]:
    """The cards of one widget, none when its data is empty (a widget without data is hidden in Gorgias).

    `template` is the widget's `template` (its root a `wrapper`), `data` the JSON kept for its integration,
    `context` what `{{ticket...}}` and `{{current_user...}}` mean. Lines that stand directly in the wrapper
    get a card without a frame.
    """
    if _is_empty(data):
        return ()
    cards: list[Card] = []
    for item in _items(template, _at(template, data), context=context, id_prefix=""):
        if isinstance(item, Card):
            cards.append(item)
        else:
            cards.append(_frameless((item,)))
    color = _color(_meta(template).get("color"))
    return tuple(_with_color(card, color) for card in cards)


def buttons(items: Sequence[Field | Card | CardList]) -> Iterator[Button]:
    """Every button in `items`, at any depth."""
    for item in items:
        if isinstance(item, Card):
            yield from item.buttons
            yield from buttons(item.items)
        elif isinstance(item, CardList):
            yield from buttons(item.cards)


def _items(
    node: Mapping[str, Any], data: Any, *, context: Mapping[str, Any], id_prefix: str
) -> tuple[Field | Card | CardList, ...]:
    children = [child for child in _sequence(node.get("widgets")) if isinstance(child, Mapping)]
    items: list[Field | Card | CardList] = []
    # The position in the template, not on the screen, names a button: sorting must not change it.
    for position, child in sorted(enumerate(children), key=lambda pair: _order(pair[1])):
        child_data = _at(child, data)
        child_id = f"{id_prefix}{position}"
        match child.get("type"):
            case "wrapper":
                items.extend(_items(child, child_data, context=context, id_prefix=f"{child_id}."))
            case "card":
                if not _is_empty(child_data):
                    items.append(_card(child, child_data, context=context, id_prefix=f"{child_id}."))
            case "list":
                cards = _list_cards(child, child_data, context=context, id_prefix=f"{child_id}.")
                if cards:
                    items.append(CardList(path=_path(child), label=_title(child, data, context), cards=cards))
            case _:
                items.append(_field(child, child_data, parent=data, context=context))
    return tuple(items)


def _card(node: Mapping[str, Any], data: Any, *, context: Mapping[str, Any], id_prefix: str) -> Card:
    meta = _meta(node)
    custom = meta.get("custom")
    custom = custom if isinstance(custom, Mapping) else {}
    scope = _scope(data, context)
    links = (
        Link(
            label=render(as_text(entry.get("label")), scope),
            url=_web_address(render(as_text(entry.get("url")), scope)),
        )
        for entry in _sequence(custom.get("links"))
        if isinstance(entry, Mapping)
    )
    return Card(
        title=_title(node, data, context),
        boxed=meta.get("displayCard") is not False,
        link=_web_address(render(as_text(meta.get("link")), scope)),
        color=_color(meta.get("color")),
        picture_url=_web_address(render(as_text(meta.get("pictureUrl")), scope)),
        links=tuple(link for link in links if link.url),
        buttons=tuple(
            _button(entry, scope, id_=f"{id_prefix}b{position}")
            for position, entry in enumerate(_sequence(custom.get("buttons")))
            if isinstance(entry, Mapping) and isinstance(entry.get("action"), Mapping)
        ),
        items=_items(node, data, context=context, id_prefix=id_prefix),
    )


def _list_cards(node: Mapping[str, Any], data: Any, *, context: Mapping[str, Any], id_prefix: str) -> tuple[Card, ...]:
    """`meta.orderBy` is a key of the entries, "-" before it turns the order; `meta.limit` may be text."""
    children = [child for child in _sequence(node.get("widgets")) if isinstance(child, Mapping)]
    if not children:
        return ()
    entries = list(enumerate(_sequence(data)))
    order_by = as_text(_meta(node).get("orderBy")).strip()
    if key := order_by.removeprefix("-"):
        entries.sort(key=lambda entry: _sort_key(lookup(key, entry[1])), reverse=order_by.startswith("-"))
    if (limit := _limit(_meta(node).get("limit"))) is not None:
        entries = entries[:limit]
    cards = []
    for index, entry in entries:
        entry_data = _at(children[0], entry)
        if _is_empty(entry_data):
            continue
        if children[0].get("type") == "card":
            cards.append(_card(children[0], entry_data, context=context, id_prefix=f"{id_prefix}{index}."))
        else:
            cards.append(_frameless((_field(children[0], entry_data, parent=entry, context=context),)))
    return tuple(cards)


def _field(node: Mapping[str, Any], value: Any, *, parent: Any, context: Mapping[str, Any]) -> Field:
    path = _path(node)
    label = _title(node, parent, context) or path
    match node.get("type"):
        case "date" if as_time(value):
            text = format_time(value, "MMM D, YYYY LT" if ":" in value else "MMM D, YYYY")
            return Field(path, label, FieldKind.DATE, text, machine_time=value)
        case "boolean" if isinstance(value, bool):
            return Field(path, label, FieldKind.BOOLEAN, "Yes" if value else "No")
        case _:
            text = as_text(value)
            return Field(path, label, FieldKind.TEXT, text, url=_web_address(text))


def _button(entry: Mapping[str, Any], scope: Mapping[str, Any], *, id_: str) -> Button:
    action: Mapping[str, Any] = entry["action"]
    return Button(
        id=id_,
        label=as_text(entry.get("label")) or "Run",
        action=action,
        inputs=tuple(
            _input(parameter, scope) for parameter in _parameters(action) if parameter.get("editable") is True
        ),
    )


def _parameters(action: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The `{key, value, ...}` entries of an action: headers, URL parameters, the body when it is a form."""
    body = action.get("body")
    is_form = isinstance(body, Mapping) and body.get("contentType") == _FORM
    form = body.get(_FORM) if is_form and isinstance(body, Mapping) else None
    for entry in (*_sequence(action.get("headers")), *_sequence(action.get("params")), *_sequence(form)):
        if isinstance(entry, Mapping) and entry.get("key"):
            yield entry


def _input(entry: Mapping[str, Any], scope: Mapping[str, Any]) -> Input:
    """An editable parameter as an input. UNKNOWN in Gorgias: `type`, and where the options of a dropdown
    stand; here they are the list `options`, or the parts of `value` between semicolons."""
    key, value = as_text(entry.get("key")), entry.get("value")
    type_ = as_text(entry.get("type"))
    kind = InputKind(type_) if type_ in set(InputKind) else InputKind.STRING
    options: tuple[str, ...] = ()
    if kind is InputKind.DROPDOWN:
        if "options" in entry:
            options = tuple(as_text(option) for option in _sequence(entry["options"]))
        else:
            options, value = tuple(part.strip() for part in as_text(value).split(";") if part.strip()), ""
    return Input(
        key=key,
        label=as_text(entry.get("label")) or key,
        kind=kind,
        value=render(as_text(value), scope),
        required=entry.get("mandatory") is True,
        options=options,
    )


def _frameless(items: tuple[Field | Card | CardList, ...]) -> Card:
    return Card(title="", boxed=False, link="", color="", picture_url="", links=(), buttons=(), items=items)


def _with_color(card: Card, color: str) -> Card:
    if card.color or not color:
        return card
    return replace(card, color=color)


def _scope(data: Any, context: Mapping[str, Any]) -> Mapping[str, Any]:
    """Names in titles and links mean the node's own data first, then the ticket and the current user."""
    return {**context, **data} if isinstance(data, Mapping) else context


def _title(node: Mapping[str, Any], data: Any, context: Mapping[str, Any]) -> str:
    return render(as_text(node.get("title")), _scope(data, context)).strip()


def _path(node: Mapping[str, Any]) -> str:
    return as_text(node.get("path"))


def _at(node: Mapping[str, Any], data: Any) -> Any:
    return lookup(_path(node), data)


def _meta(node: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = node.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def _order(node: Mapping[str, Any]) -> float:
    order = node.get("order")
    return order if isinstance(order, int | float) else 0


def _limit(value: Any) -> int | None:
    text = as_text(value).strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _sort_key(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return (0, value, "")
    return (1, 0, as_text(value))


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _is_empty(data: Any) -> bool:
    return data is None or data == "" or (isinstance(data, Mapping | Sequence) and not data)


def _color(value: Any) -> str:
    text = as_text(value).strip()
    return text if _COLOR.fullmatch(text) else ""


def _web_address(text: str) -> str:
    """`text` when it is an http or https address, else "": nothing else may become a link."""
    if text != text.strip() or any(ord(character) < 33 for character in text):
        return ""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    return text if parts.scheme in ("http", "https") and parts.hostname else ""
