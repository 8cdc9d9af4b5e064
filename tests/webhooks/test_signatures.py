"""Whose webhooks are believed: signatures of every kind, rotation, time, and everything that is almost right."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loyalty.rivo_webhook import (
    Believed,
    Fault,
    NotBelieved,
    Scheme,
    TimeForm,
    check,
    read_time,
)
from tests.webhooks.rivo_sends import SECRET, Headers, Send, digest, legacy_base64, legacy_hex, standard

NOW = datetime(2026, 9, 16, 13, 42, 34, tzinfo=UTC)
SECONDS = str(int(NOW.timestamp()))
BODY = b'{"email": "ana@example.com", "points_tally": 5}'
NEW, OLD = "new secret", "old secret"


def signed(body: bytes) -> Headers:
    return standard(body, timestamp=SECONDS)


def believe(headers: Headers, body: bytes = BODY, *, secrets: tuple[str, ...] = (SECRET,)) -> Believed:
    return check(headers, body, secrets=secrets, now=NOW)


def fault(headers: Headers, body: bytes = BODY, *, secrets: tuple[str, ...] = (SECRET,)) -> Fault:
    """Why a delivery is not believed."""
    with pytest.raises(NotBelieved) as refused:
        believe(headers, body, secrets=secrets)
    return refused.value.fault


@pytest.mark.parametrize("label", ["v1,", ""])
def test_the_live_scheme_is_believed_with_and_without_its_label(label: str) -> None:
    believed = believe(standard(BODY, timestamp=SECONDS, label=label))
    assert (believed.scheme, believed.time_form) == (Scheme.STANDARD, TimeForm.SECONDS)


@pytest.mark.parametrize("send", [legacy_base64, legacy_hex])
def test_both_documented_schemes_are_believed(send: Send) -> None:
    assert believe(send(BODY)).scheme is Scheme.LEGACY


def test_hexadecimal_digits_may_be_upper_case_but_base64_may_not_change() -> None:
    assert believe({"rivo-signature": digest(BODY).hex().upper()}).scheme is Scheme.LEGACY
    assert fault({"rivo-signature": legacy_base64(BODY)["rivo-signature"].lower()}) is Fault.SIGNATURE_WRONG


def test_one_of_several_signatures_is_enough() -> None:
    ours = signed(BODY)
    one = ours["rivo-webhook-signature"]
    for header in (f"v1,AAAA {one}", f"{one} v1,AAAA", f"v1a,xyz  {one}", f"AAAA {one.removeprefix('v1,')}"):
        assert believe({**ours, "rivo-webhook-signature": header}).scheme is Scheme.STANDARD


def test_a_signature_under_another_label_is_not_ours() -> None:
    headers = signed(BODY)
    other = headers["rivo-webhook-signature"].replace("v1,", "v2,")
    assert fault({**headers, "rivo-webhook-signature": other}) is Fault.SIGNATURE_WRONG


@pytest.mark.parametrize("send", [signed, legacy_base64, legacy_hex])
def test_a_body_that_was_changed_is_refused(send: Send) -> None:
    assert fault(send(BODY), BODY.replace(b"5", b"6")) is Fault.SIGNATURE_WRONG
    assert fault(send(BODY), BODY + b" ") is Fault.SIGNATURE_WRONG
    assert fault(send(BODY), b"") is Fault.SIGNATURE_WRONG


@pytest.mark.parametrize(
    ("name", "value"), [("rivo-webhook-id", "msg_2"), ("rivo-webhook-timestamp", str(int(SECONDS) + 1))]
)
def test_an_id_or_a_time_that_was_changed_is_refused(name: str, value: str) -> None:
    assert fault({**signed(BODY), name: value}) is Fault.SIGNATURE_WRONG


@pytest.mark.parametrize("name", ["rivo-webhook-id", "rivo-webhook-timestamp"])
def test_a_signature_over_an_id_and_a_time_is_nothing_without_both(name: str) -> None:
    headers = {header: value for header, value in signed(BODY).items() if header != name}
    assert fault(headers) is Fault.HEADER_MISSING
    assert fault({**headers, name: ""}) is Fault.HEADER_MISSING


def test_without_a_signature_nothing_is_believed() -> None:
    assert fault({}) is Fault.SIGNATURE_MISSING
    assert fault({"rivo-webhook-id": "msg_1", "rivo-webhook-timestamp": SECONDS}) is Fault.SIGNATURE_MISSING
    assert fault({"rivo-signature": ""}) is Fault.SIGNATURE_WRONG


@pytest.mark.parametrize("wrong", ["", "v1,", "AAAA", "v1,AAAA", ",", "v1,,"])
def test_a_bad_new_signature_never_falls_back_to_a_good_old_one(wrong: str) -> None:
    headers = {**signed(BODY), **legacy_base64(BODY), "rivo-webhook-signature": wrong}
    assert fault(headers) is Fault.SIGNATURE_WRONG


def test_a_stale_new_signature_never_falls_back_to_a_good_old_one() -> None:
    headers = {**standard(BODY, timestamp=str(int(SECONDS) - 3600)), **legacy_base64(BODY)}
    assert fault(headers) is Fault.TIMESTAMP_STALE


@pytest.mark.parametrize(
    "send", [lambda secret: standard(BODY, timestamp=SECONDS, secret=secret),
             lambda secret: legacy_base64(BODY, secret=secret),
             lambda secret: legacy_hex(BODY, secret=secret)]
)  # fmt: skip
def test_two_secrets_count_while_they_change(send: Callable[[str], Headers]) -> None:
    for secret in (NEW, OLD):
        assert believe(send(secret), secrets=(NEW, OLD))
    assert fault(send("third"), secrets=(NEW, OLD)) is Fault.SIGNATURE_WRONG
    assert fault(send(OLD), secrets=(NEW,)) is Fault.SIGNATURE_WRONG


def test_an_empty_secret_signs_nothing() -> None:
    for secrets in ((), ("",), ("", "")):
        for guess in ("", "none", "None"):
            assert fault(legacy_base64(BODY, secret=guess), secrets=secrets) is Fault.SECRET_MISSING
            assert fault(standard(BODY, timestamp=SECONDS, secret=guess), secrets=secrets) is Fault.SECRET_MISSING
    assert fault(legacy_base64(BODY, secret=""), secrets=(NEW, "")) is Fault.SIGNATURE_WRONG


def test_the_secret_is_text_although_it_looks_like_hexadecimal_digits() -> None:
    decoded = bytes.fromhex(SECRET).decode("latin-1")
    assert fault(standard(BODY, timestamp=SECONDS, secret=decoded)) is Fault.SIGNATURE_WRONG
    assert believe(standard(BODY, timestamp=SECONDS, secret="ключ"), secrets=("ключ",))


@pytest.mark.parametrize("age_s", [-300, -1, 0, 1, 300])
def test_five_minutes_of_difference_are_borne(age_s: int) -> None:
    assert believe(standard(BODY, timestamp=str(int(SECONDS) - age_s)))


@pytest.mark.parametrize("age_s", [-86_400, -301, 301, 86_400, int(SECONDS) - 10**8])
def test_more_than_five_minutes_are_not(age_s: int) -> None:
    assert fault(standard(BODY, timestamp=str(int(SECONDS) - age_s))) is Fault.TIMESTAMP_STALE


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (SECONDS, TimeForm.SECONDS),
        (f"{SECONDS}000", TimeForm.MILLISECONDS),
        ("2026-09-16T13:42:34Z", TimeForm.ISO),
        ("2026-09-16T13:42:34.000Z", TimeForm.ISO),
        ("2026-09-16T13:42:34+00:00", TimeForm.ISO),
        ("2026-09-16T15:42:34.000+0200", TimeForm.ISO),
        ("2026-09-16 13:42:34Z", TimeForm.ISO),
    ],
)
def test_times_that_can_be_read_without_a_guess(text: str, form: TimeForm) -> None:
    assert read_time(text) == (NOW, form)
    assert believe(standard(BODY, timestamp=text)).time_form is form


@pytest.mark.parametrize(
    "text",
    ["now", "0", "-1", "1e9", "12345", f"{SECONDS}.5", f"{SECONDS}000000000", "٣٣٣٣٣٣٣٣٣٣", "2026-09-16",
     "2026-09-16T13:42:34", "2026-13-16T13:42:34Z", "20260916T134234Z", "0001-01-01T00:00:00+23:59",
     "Wed, 16 Sep 2026 13:42:34 GMT"],
)  # fmt: skip
def test_a_time_in_any_other_form_is_refused_although_it_is_signed(text: str) -> None:
    headers = standard(BODY, timestamp=text)
    expected = Fault.TIMESTAMP_UNREADABLE if text.isascii() else Fault.SIGNATURE_WRONG
    assert fault(headers) is expected


def test_an_unsigned_time_is_not_looked_at() -> None:
    headers = {**signed(BODY), "rivo-webhook-timestamp": "now"}
    assert fault(headers) is Fault.SIGNATURE_WRONG


def test_a_time_in_another_zone_is_the_same_time() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=-7))).isoformat()
    assert believe(standard(BODY, timestamp=there))


def test_a_repetition_is_recognised_by_what_is_signed() -> None:
    first = believe(signed(BODY)).delivery_hash
    later = standard(BODY, timestamp=str(int(SECONDS) + 60))
    assert believe({**later, "rivo-webhook-topic": "another/topic"}).delivery_hash == first
    assert believe(standard(BODY, timestamp=SECONDS, key="msg_2")).delivery_hash != first
    old = believe(legacy_base64(BODY)).delivery_hash
    assert believe({**legacy_hex(BODY), "rivo-webhook-id": "new", "rivo-webhook-topic": "a/b"}).delivery_hash == old
    assert old != first


def test_a_signature_for_one_scheme_does_not_open_the_other() -> None:
    headers = signed(BODY)
    mixed = {"rivo-signature": headers["rivo-webhook-signature"].removeprefix("v1,")}
    assert fault(mixed) is Fault.SIGNATURE_WRONG
    assert fault({**headers, "rivo-webhook-signature": legacy_base64(BODY)["rivo-signature"]}) is Fault.SIGNATURE_WRONG


@settings(deadline=None)
@given(body=st.binary(max_size=200), flipped=st.integers(0, 10_000), headers=st.sampled_from(["new", "old", "hex"]))
def test_no_single_bit_of_a_body_can_be_changed(body: bytes, flipped: int, headers: str) -> None:
    sent = {"new": signed, "old": legacy_base64, "hex": legacy_hex}[headers](body)
    assert believe(sent, body)
    if body:
        changed = bytearray(body)
        changed[flipped % len(body)] ^= 1 << (flipped % 8)
        assert fault(sent, bytes(changed)) is Fault.SIGNATURE_WRONG


_NAMES = ["rivo-webhook-signature", "rivo-webhook-id", "rivo-webhook-timestamp", "rivo-webhook-topic", "rivo-signature"]


@settings(deadline=None)
@given(
    headers=st.dictionaries(st.sampled_from(_NAMES), st.text()),
    body=st.binary(max_size=50),
    secrets=st.lists(st.text(st.characters(codec="utf-8")), max_size=2).map(tuple),
)
def test_whatever_comes_is_refused_with_a_word(headers: Headers, body: bytes, secrets: tuple[str, ...]) -> None:
    assert fault(headers, body, secrets=secrets) in Fault


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_time_or_none(text: str) -> None:
    found = read_time(text)
    assert found is None or found[0].tzinfo is UTC


def test_every_digit_count_of_a_time_is_read_or_refused() -> None:
    for count, digit in itertools.product(range(1, 30), "019"):
        found = read_time(digit * count)
        assert (found is not None) == (9 <= count <= 14), json.dumps([count, digit])
