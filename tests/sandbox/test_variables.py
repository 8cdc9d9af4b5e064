"""What the helpdesk writes in place of a `{{variable}}`."""

import urllib.parse
from typing import Any

import pytest

from sandbox.variables import lookup, render, render_html

CONTEXT: dict[str, Any] = {
    "ticket": {
        "id": 7,
        "subject": "Where is <b>it</b>?",
        "created_datetime": "2026-03-02T15:04:05+00:00",
        "messages": [{"body_html": "first"}, {"body_html": "last"}],
        "customer": {
            "email": "ada+shop@example.com",
            "firstname": None,
            "integrations": {
                "12345": {
                    "points_balance": 1250,
                    "rate": 2.5,
                    "vip": True,
                    "since": "2024-11-21",
                    "recent": [{"points": 5}],
                    "brand-name": "Acme",
                },
                "shopify": {"orders": [{"name": "#1"}, {"name": "#2"}]},
            },
        },
    }
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ticket.id}}", "7"),
        ("{{ ticket.customer.email }}", "ada+shop@example.com"),
        ("{{ticket.customer.integrations[12345].points_balance}}", "1250"),
        ("{{ticket.customer.integrations[12345].rate}}", "2.5"),
        ("{{ticket.customer.integrations[12345].vip}}", "true"),
        ("{{ticket.customer.integrations[12345].brand-name}}", "Acme"),
        ("{{ticket.customer.integrations.shopify.orders[0].name}}", "#1"),
        ("{{ticket.messages[-1].body_html}}", "last"),
        ("{{ticket.customer.integrations[12345].recent}}", '[{"points": 5}]'),
    ],
)
def test_a_variable_becomes_its_value(template: str, expected: str) -> None:
    assert render(f"<{template}>", CONTEXT) == f"<{expected}>"


@pytest.mark.parametrize(
    "template",
    [
        "{{nothing}}",
        "{{ticket.customer.firstname}}",
        "{{ticket.customer.integrations[99999].points_balance}}",
        "{{ticket.messages[5].body_html}}",
        "{{ticket.messages[one]}}",
        "{{ticket.id.deeper}}",
        "{{ticket.subject[0]}}",
        '{{ticket.nothing|datetime_format("L")}}',
        "{{ticket.__class__}}",
    ],
)
def test_missing_data_is_a_blank(template: str) -> None:
    assert render(f"Hello {template}!", CONTEXT) == "Hello !"


@pytest.mark.parametrize(
    "text",
    [
        "{{}}",
        "{{ }}",
        "{{ticket..id}}",
        "{{ticket id}}",
        "{{ticket.id|upper}}",
        "{{ticket[}}",
        "{{ticket.id",
        "{ticket.id}",
    ],
)
def test_what_is_no_template_stays_as_it_is(text: str) -> None:
    assert render(text, CONTEXT) == text


@pytest.mark.parametrize(
    ("moment_format", "expected"),
    [
        ("MMM Do YY", "Mar 2nd 26"),
        ("L", "03/02/2026"),
        ("LT", "3:04 PM"),
        ("LL", "March 2, 2026"),
        ("LLL", "March 2, 2026 3:04 PM"),
        ("dddd, D MMMM YYYY", "Monday, 2 March 2026"),
        ("ddd DD/M/YYYY HH:mm:ss", "Mon 02/3/2026 15:04:05"),
        ("[on] D.MM. [at] hh a", "on 2.03. at 03 pm"),
        ("H h m s", "15 3 4 5"),
    ],
)
def test_datetime_format_follows_moment_js(moment_format: str, expected: str) -> None:
    assert render(f'{{{{ticket.created_datetime|datetime_format("{moment_format}")}}}}', CONTEXT) == expected


@pytest.mark.parametrize(
    ("day", "expected"),
    [(1, "1st"), (3, "3rd"), (11, "11th"), (12, "12th"), (13, "13th"), (22, "22nd"), (30, "30th")],
)
def test_ordinals_are_english(day: int, expected: str) -> None:
    assert render("{{day | datetime_format('Do')}}", {"day": f"2026-01-{day:02}T00:00:00Z"}) == expected


def test_midnight_is_twelve() -> None:
    assert render('{{t|datetime_format("h:mm A")}}', {"t": "2026-01-01T00:05:00Z"}) == "12:05 AM"


def test_a_value_that_is_no_time_is_shown_unchanged() -> None:
    assert render('{{a|datetime_format("L")}}{{b|datetime_format("L")}}', {"a": "soon", "b": 5}) == "soon5"
    assert render('{{a|datetime_format("L")}}', {"a": "2026-99-99"}) == "2026-99-99"


def test_only_inserted_values_are_escaped() -> None:
    assert render_html("<p>{{ticket.subject}}</p>", CONTEXT) == "<p>Where is &lt;b&gt;it&lt;/b&gt;?</p>"
    assert render_html("{{a}}", {"a": "1\n2"}) == "1<br>2"
    url = render("/?email={{ticket.customer.email}}", CONTEXT, escape=urllib.parse.quote_plus)
    assert url == "/?email=ada%2Bshop%40example.com"


def test_a_value_that_looks_like_a_template_is_not_rendered_again() -> None:
    assert render("{{a}}", {"a": "{{b}}", "b": "secret"}) == "{{b}}"


def test_an_empty_path_is_the_data_itself() -> None:
    assert lookup("", {"a": 1}) == {"a": 1}
