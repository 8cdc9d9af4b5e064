"""The client and the sandbox's Rivo: everything the mission lists, and both ways to page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from loyalty import rivo_wire as wire
from loyalty.gate import Call, Lane
from loyalty.program import OutcomeUnknown, ProgramReason, ProgramRefused, ProgramUnavailable, UnknownMember
from loyalty.rivo import Access, RivoClient
from loyalty.rivo_wire import NewRivoEvent, Paging
from sandbox import Sandbox
from sandbox.rivo import RivoStore
from sandbox.rivo_shapes import RivoShapes

OPERATION = "td_abcdefghijklmnopqrstuvwx"
LATELY = datetime.now(UTC) - timedelta(minutes=1)


@pytest.fixture
def store(sandbox: Sandbox) -> RivoStore:
    store = sandbox.rivo("northwind")
    store.add_customer("ana@example.com", points=120, credits="25.50", status="member", tier="Gold", dob="05-31")
    return store


def award(points: int | None = 5, *, credits: Decimal | None = None, email: str = "ana@example.com") -> NewRivoEvent:
    return NewRivoEvent(
        customer_identifier=email, points=points, credits=credits, internal_note=wire.internal_note(OPERATION, "Sorry")
    )


SHAPES = [
    RivoShapes(),
    RivoShapes(
        not_found="html",
        errors="errors_object",
        invalid_status=400,
        create="empty",
        tier="text",
        tally_name="loyalty_points_tally",
        credits_as="number",
        referral_url="empty",
        composite_ids=False,
        points_diff=False,
        credits_diff=False,
        newest_first=True,
        cursor_links="older",
        no_more="missing",
        overdraft="refused",
        cancelled_as="json",
    ),
    RivoShapes(errors="message", create="without_customer", cursor_links="older", no_more="missing"),
    RivoShapes(errors="errors_list", no_more="missing"),
]


@pytest.fixture(params=SHAPES, ids=["likely", "other", "third", "fourth"])
def shaped(store: RivoStore, request: pytest.FixtureRequest) -> RivoStore:
    """The store, in each of several shapes that its answers may have."""
    store.shapes = request.param
    return store


def test_a_customer_is_read_whatever_shape_the_answer_has(
    shaped: RivoStore, client: RivoClient, access: Access
) -> None:
    found = client.customer(access, "ana@example.com")
    assert found is not None
    assert (found.points_tally, found.credits_tally, found.vip_tier_name) == (120, Decimal("25.5"), "Gold")
    assert (found.status, found.date_of_birth) == ("member", "05-31")
    assert found.id is not None
    assert client.customer(access, found.id) == found


def test_nobody_is_nobody(shaped: RivoStore, client: RivoClient, access: Access) -> None:
    assert client.customer(access, "nobody@example.com") is None
    with pytest.raises(UnknownMember):
        client.create_points_event(access, award(email="nobody@example.com"))


def test_points_are_added_and_found_again(shaped: RivoStore, client: RivoClient, access: Access) -> None:
    client.create_points_event(access, award(7))
    assert [event["points_diff"] for event in shaped.events("ana@example.com")][-1:] == [7]
    found = client.find_points_event(access, OPERATION, customer="ana@example.com", since=LATELY)
    assert found is not None
    assert (found.points, wire.read_internal_note(found.internal_note)) == (7, (OPERATION, "Sorry"))
    assert client.find_points_event(access, "td_other", customer="ana@example.com", since=LATELY) is None


def test_store_credit_is_added(shaped: RivoStore, client: RivoClient, access: Access) -> None:
    client.create_points_event(access, award(None, credits=Decimal("2.50")))
    found = client.customer(access, "ana@example.com")
    assert found is not None
    assert (found.points_tally, found.credits_tally) == (120, Decimal("28.0"))


def test_an_excluded_customer_is_refused_in_rivos_words(shaped: RivoStore, client: RivoClient, access: Access) -> None:
    shaped.add_customer("eve@example.com", status="excluded")
    with pytest.raises(ProgramRefused) as caught:
        client.create_points_event(access, award(email="eve@example.com"))
    assert "xcluded" in caught.value.told
    assert shaped.events("eve@example.com") == []


@pytest.mark.parametrize("paging", list(Paging))
def test_every_customer_is_listed_once_either_way(
    shaped: RivoStore, client: RivoClient, access: Access, paging: Paging
) -> None:
    for number in range(9):
        shaped.add_customer(f"c{number}@example.com")
    for size in (1, 2, 5, 250):
        emails = [found.email for found in client.customers(access, paging=paging, page_size=size)]
        assert sorted(emails) == sorted(["ana@example.com", *(f"c{number}@example.com" for number in range(9))])


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 250])
def test_every_points_event_is_listed_once_either_way(
    shaped: RivoStore, client: RivoClient, access: Access, newest_first: bool, size: int
) -> None:
    for points in range(1, 7):
        shaped.add_event("ana@example.com", points=points)
    shaped.add_customer("ben@example.com")
    shaped.add_event("ben@example.com", points=99)
    ids = [
        event.id
        for event in client.points_events(access, customer="ana@example.com", newest_first=newest_first, page_size=size)
    ]
    book = [event["id"] for event in shaped.events("ana@example.com")]
    assert ids == (book[::-1] if newest_first else book)


def test_tiers_rewards_and_rules(shaped: RivoStore, client: RivoClient, access: Access) -> None:
    tiers = list(client.vip_tiers(access))
    assert [tier.name for tier in tiers] == ["Silver", "Gold", "Platinum"]
    assert tiers[1].id is not None
    assert client.vip_tier(access, tiers[1].id) == tiers[1]
    assert client.vip_tier(access, 999_999_999) is None
    names = {reward.name for reward in client.rewards(access)}
    subscription = {reward.name for reward in client.rewards(access, purchase_type="subscription")}
    assert "$10 off your subscription" in subscription < names
    assert all(rule.title for rule in client.earning_rules(access))


def test_a_reward_is_redeemed_and_listed(shaped: RivoStore, client: RivoClient, access: Access) -> None:
    reward = next(reward for reward in client.rewards(access) if reward.points == 100)
    assert reward.id is not None
    made = client.create_redemption(access, customer="ana@example.com", reward_id=reward.id)
    listed = list(client.redemptions(access, customer="ana@example.com", used=False))
    assert len(listed) == 1
    assert (listed[0].points, listed[0].used) == (-100, False)
    assert made is None or made.code == listed[0].code != ""
    assert list(client.redemptions(access, customer="ana@example.com", used=True)) == []


def test_a_date_of_birth_is_set(shaped: RivoStore, client: RivoClient, access: Access) -> None:
    client.set_date_of_birth(access, "ana@example.com", month=2, day=29)
    found = client.customer(access, "ana@example.com")
    assert found is not None
    assert found.date_of_birth == "02-29"


def test_a_membership_is_cancelled_either_way(shaped: RivoStore, client: RivoClient, access: Access) -> None:
    told = client.cancel_membership(access, "ana@example.com")
    assert told.policy in ("", "end_of_period")
    with pytest.raises(ProgramRefused, match="no active membership"):
        client.cancel_membership(access, "ana@example.com")
    with pytest.raises(UnknownMember):
        client.cancel_membership(access, "nobody@example.com")


def test_a_key_is_tried(store: RivoStore, client: RivoClient, access: Access) -> None:
    client.try_key(access)
    for key in ("wrong", f"Bearer {access.key}"):
        with pytest.raises(ProgramUnavailable) as caught:
            client.try_key(Access(key=key, gate="other"))
        assert caught.value.reason is ProgramReason.KEY_REFUSED
    store.lapse(True)
    with pytest.raises(ProgramUnavailable) as caught:
        client.try_key(access)
    assert caught.value.reason is ProgramReason.KEY_REFUSED


AFTER = ["reset_after", "status_after", "html_after", "truncated"]
BEFORE = ["reset_before", "status", "html", "empty", "redirect"]


@pytest.mark.parametrize("kind", [*AFTER, *BEFORE])
def test_a_write_that_meets_trouble_is_unknown_and_was_sent_once(
    sandbox: Sandbox, store: RivoStore, client: RivoClient, access: Access, kind: str
) -> None:
    sandbox.faults.add(path=r"/merchant_api/v1/points_events", account="rivo", method="POST", kind=kind, status=503)
    with pytest.raises(OutcomeUnknown):
        client.create_points_event(access, award())
    sent = sandbox.requests.filter(account="rivo", path=r"/merchant_api/v1/points_events", method="POST")
    assert len(sent) == 1
    found = client.find_points_event(access, OPERATION, customer="ana@example.com", since=LATELY)
    assert (found is not None) is (kind in AFTER)


@pytest.mark.parametrize("kind", ["hang", "hang_after", "drip"])
def test_a_write_that_takes_too_long_is_unknown(
    sandbox: Sandbox, store: RivoStore, client: RivoClient, access: Access, kind: str
) -> None:
    sandbox.faults.add(
        path=r"/merchant_api/v1/points_events",
        account="rivo",
        method="POST",
        kind=kind,
        seconds=30 if "h" in kind else 0.05,
    )
    with pytest.raises(OutcomeUnknown) as caught:
        client.create_points_event(access, award(), call=Call(lane=Lane.AGENT, within_s=1.5))
    assert caught.value.reason is ProgramReason.NO_ANSWER
