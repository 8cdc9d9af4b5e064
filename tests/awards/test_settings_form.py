"""The settings of a connection as the merchant types them: every fault at once, nothing kept that cannot serve."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.console import BadForm, ConnectionForm, read_connection_form, read_webhook_secret
from schemas.widget import one_line

GOOD = {
    "max_points_per_award": "1000",
    "max_points_per_agent_per_day": "10,000",
    "max_points_per_day": " 50,000 ",
    "reasons": "Late delivery\n\n  Good   will \r\nLate delivery\n",
    "presets": "50, 100;250",
    "storefront_url": " https://shop.example.com/welcome ",
    "show_date_of_birth": "on",
}


def test_a_form_is_read_as_it_is_meant() -> None:
    form = read_connection_form(GOOD)
    assert (form.max_points_per_award, form.max_points_per_agent_per_day, form.max_points_per_day) == (
        1_000,
        10_000,
        50_000,
    )
    assert form.reasons == ("Late delivery", "Good will")
    assert form.presets == (50, 100, 250)
    assert (form.allow_guests, form.show_date_of_birth) == (False, True)
    assert form.storefront_url == "https://shop.example.com/welcome"


def test_reasons_presets_and_shop_may_stay_empty() -> None:
    form = read_connection_form({**GOOD, "reasons": "", "presets": "  ", "storefront_url": ""})
    assert (form.reasons, form.presets, form.storefront_url) == ((), (), "")


@pytest.mark.parametrize(
    "typed", ["", "0", "-1", "+1", "1.5", "1e3", "1_000", "٥", "1,00", ",1", "1,", "2000000001", "x"]
)
def test_a_limit_is_a_whole_number_within_bounds(typed: str) -> None:
    for name in ("max_points_per_award", "max_points_per_agent_per_day", "max_points_per_day"):
        [fault] = _faults({**GOOD, "presets": "", name: typed})
        assert fault.endswith("must be a whole number from 1 to 2,000,000,000.")
    for accepted in ("1", "2000000000", "2,000,000,000"):
        assert read_connection_form({**GOOD, "presets": "", "max_points_per_award": accepted})


def test_every_fault_is_told_at_once() -> None:
    faults = _faults(
        {
            "max_points_per_award": "many",
            "reasons": "\n".join(f"Reason {n}" for n in range(21)) + "\n{{secret}}",
            "presets": "50, x",
            "storefront_url": "javascript:alert(1)",
        }
    )
    told = [fault.split(" ")[0] for fault in faults]
    assert told == ["Points", "Points", "Points", "Reasons:", "Reasons:", "Presets:", "Shop"]


@pytest.mark.parametrize("reasons", ["x" * 61, "{{ticket.id}}", "}}", "None", "\u200b"])
def test_a_reason_that_the_button_could_not_send_back_is_refused(reasons: str) -> None:
    assert len(_faults({**GOOD, "reasons": reasons})) == 1


@pytest.mark.parametrize("presets", ["0", "50 50", "1,2,3,4,5,6,7", "1001", "5.5", "-5", "fifty"])
def test_a_preset_is_one_of_six_awards_that_the_limit_allows(presets: str) -> None:
    assert len(_faults({**GOOD, "presets": presets})) == 1


@pytest.mark.parametrize(
    "address",
    [
        "shop.example.com",
        "ftp://shop.example.com",
        "javascript:alert(1)",
        "//shop.example.com",
        "https://",
        "https://user:password@shop.example.com",
        "https://shop.example.com/?a=b",
        "https://shop.example.com/#a",
        "https://shop.example.com\\@evil.example",
        'https://shop.example.com/"><script>',
        "https://shop.example.com/\x00",
        "https://shop\x00.example.com",
        "https://shop.example.com/a\r\nSet-Cookie: a=b",
        "https://shop.example.com/" + "a" * 300,
    ],
)
def test_a_shop_address_is_a_plain_web_address(address: str) -> None:
    assert len(_faults({**GOOD, "storefront_url": address})) == 1


@pytest.mark.parametrize(
    ("typed", "cents"),
    [("", 0), (" ", 0), ("0", 0), ("0.00", 0), ("0,0", 0), ("5", 500), ("5.00", 500), (" 5,5 ", 550), ("0.01", 1)],
)
def test_store_credit_is_an_amount_and_none_at_all_when_empty_or_nought(typed: str, cents: int) -> None:
    form = _elsewhere(max_store_credit_per_award=typed, max_store_credit_per_day="1000000")
    assert (form.max_credit_cents_per_award, form.max_credit_cents_per_day) == (cents, 100_000_000)
    form = _elsewhere()
    assert (form.max_credit_cents_per_award, form.max_credit_cents_per_day) == (0, 0)


@pytest.mark.parametrize(
    "typed", ["-5", "+5", "5.001", "1e3", "five", "$5", "5 EUR", "1,000.00", "1000000.01", "٥", "."]
)
def test_any_other_store_credit_is_refused_with_a_sentence_for_each_field(typed: str) -> None:
    for name, label in (("max_store_credit_per_award", "per award"), ("max_store_credit_per_day", "per day")):
        with pytest.raises(BadForm) as refused:
            _elsewhere(**{"max_store_credit_per_day": "9", name: typed})
        [fault] = refused.value.faults
        assert fault == f"Store credit {label} must be an amount such as 5 or 5.00, up to 1,000,000, or empty for none."


@pytest.mark.parametrize("per_day", ["", "4.99"])
def test_a_day_allows_at_least_one_award_of_store_credit(per_day: str) -> None:
    with pytest.raises(BadForm, match="at least as much as the store credit per award"):
        _elsewhere(max_store_credit_per_award="5", max_store_credit_per_day=per_day)


def test_the_ledger_has_a_shop_address_and_a_program_elsewhere_store_credit() -> None:
    both = {**GOOD, "max_store_credit_per_award": "5", "max_store_credit_per_day": "50"}
    form = read_connection_form(both)
    assert (form.storefront_url, form.max_credit_cents_per_award) == ("https://shop.example.com/welcome", 0)
    form = read_connection_form({**both, "storefront_url": "not an address"}, built_in=False)
    assert (form.storefront_url, form.max_credit_cents_per_award) == ("", 500)


def test_a_secret_is_trimmed_and_may_hold_anything_that_can_be_pasted() -> None:
    assert read_webhook_secret(" whsec_ä b/+=\n") == "whsec_ä b/+="
    assert read_webhook_secret("x" * 500) == "x" * 500


@pytest.mark.parametrize("typed", ["", " \n", "a\x00b", "a\nb", "x" * 501])
def test_what_cannot_be_a_secret_is_refused(typed: str) -> None:
    with pytest.raises(BadForm, match="secret"):
        read_webhook_secret(typed)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), st.text(max_size=80)))
def test_whatever_is_typed_is_read_or_refused_and_what_is_read_serves(typed: dict[str, str]) -> None:
    form, faults = _read({**GOOD, **typed})
    if form is None:
        assert faults
        assert all(fault.endswith(".") for fault in faults)
        return
    assert all(1 <= preset <= form.max_points_per_award <= 2_000_000_000 for preset in form.presets)
    assert len(form.presets) <= 6
    for reason in form.reasons:
        assert reason == one_line(reason), "what the button sends back is found on the list"
    assert "\x00" not in form.storefront_url


def _elsewhere(**typed: str) -> ConnectionForm:
    """The form of a connection whose program is not the ledger."""
    return read_connection_form({**GOOD, **typed}, built_in=False)


def _faults(form: dict[str, Any]) -> list[str]:
    read, faults = _read(form)
    assert read is None
    return faults


def _read(form: dict[str, Any]) -> tuple[ConnectionForm | None, list[str]]:
    try:
        return read_connection_form(form), []
    except BadForm as error:
        return None, error.faults
