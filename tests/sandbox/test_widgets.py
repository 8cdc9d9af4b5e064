"""How a widget's template and an integration's answer become what the sidebar shows."""

from typing import Any

import pytest

from sandbox.widgets import Card, CardList, Field, FieldKind, InputKind, Link, build, buttons

FORM = "application/x-www-form-urlencoded"


def leaf(path: str, *, type_: str = "text", **more: Any) -> dict[str, Any]:
    return {"type": type_, "path": path, "title": path.title(), **more}


def wrapper(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "wrapper", "widgets": list(nodes), **more}


def card(*nodes: dict[str, Any], path: str = "", title: str = "Loyalty", **meta: Any) -> dict[str, Any]:
    return {"type": "card", "path": path, "title": title, "meta": meta, "widgets": list(nodes)}


def show(*nodes: dict[str, Any], data: Any, context: dict[str, Any] | None = None) -> tuple[Card, ...]:
    return build(wrapper(*nodes), data, context=context or {})


def fields(card_: Card) -> dict[str, str]:
    return {item.path: item.text for item in card_.items if isinstance(item, Field)}


def form_button(*entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "label": "Add",
        "action": {"method": "POST", "url": "/", "body": {"contentType": FORM, FORM: list(entries)}},
    }


def test_the_documented_example_shows_its_one_field() -> None:
    template = {
        "type": "wrapper",
        "widgets": [
            {
                "path": "account_info",
                "type": "card",
                "title": "Account Info",
                "widgets": [{"path": "account_id", "type": "text", "title": "Account ID"}],
            }
        ],
    }

    (shown,) = build(template, {"account_info": {"account_id": 12}}, context={})

    assert shown.title == "Account Info"
    assert shown.items == (Field("account_id", "Account ID", FieldKind.TEXT, "12"),)


@pytest.mark.parametrize("data", [None, {}, [], ""])
def test_a_widget_without_data_is_hidden(data: Any) -> None:
    assert show(card(leaf("points")), data=data) == ()


def test_a_card_whose_own_data_is_empty_is_hidden() -> None:
    shown = show(card(leaf("a"), path="here"), card(leaf("a"), path="gone"), data={"here": {"a": 1}, "gone": {}})
    assert [fields(one) for one in shown] == [{"a": "1"}]


def test_paths_are_relative_to_the_parent_and_may_be_dotted() -> None:
    nested = card(leaf("points"), path="balance", title="Balance")
    (shown,) = show(card(leaf("tier.name"), nested), data={"tier": {"name": "Gold"}, "balance": {"points": 5}})

    assert fields(shown) == {"tier.name": "Gold"}
    inner = shown.items[1]
    assert isinstance(inner, Card)
    assert fields(inner) == {"points": "5"}


def test_order_decides_where_it_is_given_and_position_elsewhere() -> None:
    (shown,) = show(card(leaf("b", order=2), leaf("a", order=1), leaf("c", order=2)), data={"a": 1, "b": 2, "c": 3})
    assert list(fields(shown)) == ["a", "b", "c"]


def test_a_field_without_data_stays_with_an_empty_value() -> None:
    (shown,) = show(card(leaf("points"), leaf("tier")), data={"points": "", "other": 1})
    assert fields(shown) == {"points": "", "tier": ""}


def test_leaf_types_show_dates_and_booleans_and_what_is_unknown_as_text() -> None:
    nodes = [
        leaf("day", type_="date"),
        leaf("time", type_="date"),
        leaf("vip", type_="boolean"),
        leaf("x", type_="sparkline"),
    ]
    data = {"day": "2026-03-02", "time": "2026-03-02T15:04:05Z", "vip": False, "x": [1]}

    (shown,) = show(card(*nodes), data=data)

    assert fields(shown) == {"day": "Mar 2, 2026", "time": "Mar 2, 2026 3:04 PM", "vip": "No", "x": "[1]"}


def test_a_date_that_is_none_is_shown_as_text() -> None:
    (shown,) = show(card(leaf("day", type_="date"), leaf("vip", type_="boolean")), data={"day": "soon", "vip": "maybe"})
    assert fields(shown) == {"day": "soon", "vip": "maybe"}


def test_titles_are_templates_over_the_nodes_own_data_and_the_ticket() -> None:
    (shown,) = show(
        card(title="{{name}}, ticket {{ticket.id}}", path="person"),
        data={"person": {"name": "Ines"}},
        context={"ticket": {"id": 7}},
    )
    assert shown.title == "Ines, ticket 7"


def test_a_list_shows_its_card_for_each_entry_up_to_the_limit() -> None:
    orders = {
        "type": "list",
        "path": "orders",
        "title": "Orders",
        "meta": {"limit": "2", "orderBy": ""},
        "widgets": [card(leaf("total"), title="{{name}}", displayCard=True)],
    }
    data = {"orders": [{"name": "#1", "total": 5}, {"name": "#2", "total": 6}, {"name": "#3", "total": 7}]}

    (shown,) = show(card(orders), data=data)

    (listed,) = shown.items
    assert isinstance(listed, CardList)
    assert [(entry.title, fields(entry)) for entry in listed.cards] == [
        ("#1", {"total": "5"}),
        ("#2", {"total": "6"}),
    ]


@pytest.mark.parametrize(
    ("order_by", "expected"), [("n", ["1", "2", "10"]), ("-n", ["10", "2", "1"]), ("", ["2", "10", "1"])]
)
def test_a_list_is_sorted_by_a_key_of_its_entries(order_by: str, expected: list[str]) -> None:
    node = {
        "type": "list",
        "path": "l",
        "meta": {"orderBy": order_by, "limit": 3},
        "widgets": [card(title="{{n}}")],
    }
    (shown,) = show(card(node), data={"l": [{"n": 2}, {"n": 10}, {"n": 1}]})
    (listed,) = shown.items
    assert isinstance(listed, CardList)
    assert [entry.title for entry in listed.cards] == expected


@pytest.mark.parametrize("entries", [None, [], "text", {"a": 1}])
def test_a_list_without_entries_is_left_out(entries: Any) -> None:
    (shown,) = show(card({"type": "list", "path": "l", "widgets": [card(title="x")]}), data={"l": entries, "a": 1})
    assert shown.items == ()


def test_only_web_addresses_become_links() -> None:
    links = [
        {"label": "Good", "url": "https://shop.example/{{id}}"},
        {"label": "Bad", "url": "javascript:alert(1)"},
        {"label": "Relative", "url": "/users/{{id}}"},
    ]
    (shown,) = show(
        card(
            leaf("evil"),
            leaf("fine"),
            link="data:text/html,x",
            pictureUrl="ftp://x/y.png",
            custom={"links": links},
        ),
        data={"id": 5, "evil": "javascript:alert(1)", "fine": "http://a.example/b"},
    )

    assert shown.links == (Link("Good", "https://shop.example/5"),)
    assert (shown.link, shown.picture_url) == ("", "")
    assert [item.url for item in shown.items if isinstance(item, Field)] == ["", "http://a.example/b"]


@pytest.mark.parametrize(
    ("color", "expected"), [("#0f9d76", "#0f9d76"), ("teal", "teal"), ('red" onload="x', ""), (7, "")]
)
def test_a_color_is_taken_only_when_it_is_one(color: Any, expected: str) -> None:
    (shown,) = show(card(color=color), data={"a": 1})
    assert shown.color == expected


def test_the_wrappers_color_is_for_cards_without_one() -> None:
    template = wrapper(card(), card(color="red"), meta={"color": "blue"})
    assert [shown.color for shown in build(template, {"a": 1}, context={})] == ["blue", "red"]


def test_fields_directly_in_the_wrapper_and_cards_that_are_not_displayed_have_no_frame() -> None:
    shown = show(leaf("a"), card(leaf("a"), displayCard=False), card(leaf("a")), data={"a": 1})
    assert [one.boxed for one in shown] == [False, False, True]


def test_a_button_asks_for_its_editable_entries_and_for_nothing_else() -> None:
    button = form_button(
        {"key": "email", "value": "{{ticket.customer.email}}"},
        {
            "key": "points",
            "value": "",
            "label": "Points",
            "type": "number",
            "editable": True,
            "mandatory": True,
        },
        {"key": "reason", "value": "a; b", "label": "Reason", "type": "dropdown", "editable": True},
        {"key": "kind", "options": ["x", "y"], "value": "y", "type": "dropdown", "editable": True},
        {"key": "to", "value": "{{ticket.customer.email}}", "type": "surprise", "editable": True},
    )
    context = {"ticket": {"customer": {"email": "ines@example.com"}}}

    (pressed,) = buttons(show(card(custom={"buttons": [button]}), data={"a": 1}, context=context))

    assert [(i.key, i.label, i.kind, i.value, i.required, i.options) for i in pressed.inputs] == [
        ("points", "Points", InputKind.NUMBER, "", True, ()),
        ("reason", "Reason", InputKind.DROPDOWN, "", False, ("a", "b")),
        ("kind", "kind", InputKind.DROPDOWN, "y", False, ("x", "y")),
        ("to", "to", InputKind.STRING, "ines@example.com", False, ()),
    ]
    assert pressed.action == button["action"]


def test_a_button_with_a_json_body_runs_at_once() -> None:
    action = {
        "method": "POST",
        "url": "/",
        "body": {"contentType": "application/json", FORM: [{"key": "a", "editable": True}]},
    }
    (pressed,) = buttons(show(card(custom={"buttons": [{"label": "Go", "action": action}]}), data={"a": 1}))
    assert pressed.inputs == ()


def test_every_button_of_a_widget_has_an_id_of_its_own() -> None:
    inner = card(path="", title="Inner", custom={"buttons": [form_button()]})
    listed = {"type": "list", "path": "l", "widgets": [inner]}
    shown = show(
        card(inner, listed, custom={"buttons": [form_button(), form_button()]}),
        data={"l": [{"a": 1}, {"a": 2}]},
    )
    ids = [button.id for button in buttons(shown)]
    assert len(ids) == 5
    assert len(set(ids)) == 5


def test_sorting_a_list_does_not_rename_its_buttons() -> None:
    """The page that ran a button must find the same entry's button again."""
    entry = card(title="{{n}}", custom={"buttons": [form_button()]})

    def ids(order_by: str) -> dict[str, str]:
        node = {"type": "list", "path": "l", "meta": {"orderBy": order_by}, "widgets": [entry]}
        (shown,) = show(card(node), data={"l": [{"n": 2}, {"n": 1}]})
        (listed,) = shown.items
        assert isinstance(listed, CardList)
        return {one.title: one.buttons[0].id for one in listed.cards}

    assert ids("n") == ids("-n")


@pytest.mark.parametrize(
    "template",
    [
        {},
        {"type": "wrapper", "widgets": "none"},
        {"type": "wrapper", "widgets": [None, 5, {"type": "card", "meta": [], "widgets": {}}]},
        wrapper(card(custom=[], limit={})),
        wrapper(card(custom={"buttons": [None, {"label": "x"}, {"label": "y", "action": "z"}], "links": [1]})),
        wrapper({"type": "list", "path": "a", "meta": {"limit": "many"}, "widgets": [5]}),
    ],
)
def test_a_template_with_mistakes_is_shown_as_far_as_it_goes(template: dict[str, Any]) -> None:
    assert list(buttons(build(template, {"a": [1]}, context={}))) == []
