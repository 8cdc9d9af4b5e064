"""The sandbox's Rivo over real sockets: keys, budget, customers, lists, points events, redemptions."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
import requests

from sandbox import RivoShapes, RivoStore, Sandbox

ANA = "ana@example.com"
AWARD = {"customer_identifier": ANA, "source": "manual", "points_amount": "10", "internal_note": "op-1"}


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Rivo:
    """A client of one store, and the store behind it."""

    def __init__(self, sandbox: Sandbox, name: str = "northwind") -> None:
        self.sandbox = sandbox
        self.store: RivoStore = sandbox.rivo(name)

    def call(self, method: str, path: str, *, key: str | None = None, **more: Any) -> requests.Response:
        headers = {"Authorization": self.store.key if key is None else key}
        return requests.request(method, f"{self.sandbox.rivo_url}{path}", headers=headers, timeout=10, **more)

    def get(self, path: str, **params: Any) -> requests.Response:
        return self.call("GET", path, params=params.get("params"))

    def award(self, **fields: Any) -> requests.Response:
        return self.call("POST", "/points_events", data=AWARD | fields)

    def ids(self, path: str, **params: Any) -> list[int]:
        return [row["id"] for row in self.get(path, params=params).json()["data"]]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(rivo_stores=("northwind", "fernhill"), rivo_calls_per_s=None) as running:
        yield running


@pytest.fixture
def rivo(sandbox: Sandbox) -> Rivo:
    client = Rivo(sandbox)
    client.store.add_customer(ANA, points=120, credits="25.50", tier="Gold", dob="05-31")
    return client


# -- names, keys, the plan, the budget -------------------------------------------------------------------------


def test_rivo_is_the_name_of_no_account_and_stores_are_known_by_name(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="no account name"):
        Sandbox(accounts=("rivo",))
    with pytest.raises(ValueError, match="no name of a Rivo store"):
        Sandbox(rivo_stores=("North Wind",))
    with pytest.raises(KeyError):
        sandbox.rivo("globex")


@pytest.mark.parametrize("key", ["", "wrong", "Bearer {key}", "bearer {key}", "{key}x"])
def test_only_the_raw_key_opens_the_api(rivo: Rivo, key: str) -> None:
    refused = rivo.call("GET", "/vip_tiers", key=key.format(key=rivo.store.key))
    assert (refused.status_code, refused.json()) == (401, {"error": "The API key is missing or wrong."})


def test_a_call_without_any_key_is_401(rivo: Rivo) -> None:
    assert requests.get(f"{rivo.sandbox.rivo_url}/vip_tiers", timeout=5).status_code == 401


def test_a_new_key_ends_the_old_one(rivo: Rivo) -> None:
    old = rivo.store.key
    new = rivo.store.regenerate_key()
    assert rivo.call("GET", "/vip_tiers", key=old).status_code == 401
    assert rivo.call("GET", "/vip_tiers", key=new).status_code == 200


def test_a_lapsed_plan_is_403_with_the_right_key_until_it_is_renewed(rivo: Rivo) -> None:
    rivo.store.lapse(True)
    assert rivo.award().status_code == 403
    assert rivo.call("GET", "/vip_tiers", key="wrong").status_code == 401
    rivo.store.lapse(False)
    assert rivo.award().status_code == 201
    assert len(rivo.store.events()) == 1


def test_the_key_alone_decides_the_store(rivo: Rivo) -> None:
    other = Rivo(rivo.sandbox, "fernhill")
    assert other.get(f"/customers/{quote(ANA)}").status_code == 404
    other.store.add_customer(ANA, points=7)
    other.award()
    assert [event["points_diff"] for event in other.store.events()] == [10]
    assert rivo.store.events() == []
    assert (rivo.store.customer(ANA) or {})["points_tally"] == 120


@pytest.mark.parametrize("retry_after", [True, False])
def test_more_than_the_budget_of_a_second_is_429_for_that_store_alone(retry_after: bool) -> None:
    clock = Clock()
    with Sandbox(
        rivo_stores=("northwind", "fernhill"), rivo_calls_per_s=3, rivo_retry_after=retry_after, monotonic=clock
    ) as sandbox:
        rivo, other = Rivo(sandbox), Rivo(sandbox, "fernhill")
        statuses = [rivo.get("/vip_tiers").status_code for _ in range(3)]
        busy = rivo.get("/vip_tiers")
        assert (statuses, busy.status_code) == ([200] * 3, 429)
        assert busy.headers.get("Retry-After") == ("1" if retry_after else None)
        assert other.get("/vip_tiers").status_code == 200
        clock.now += 0.99
        assert rivo.get("/vip_tiers").status_code == 429
        clock.now += 0.01
        assert rivo.get("/vip_tiers").status_code == 200


def test_every_request_is_noted_with_its_store_and_pages_are_not(rivo: Rivo) -> None:
    rivo.award()
    rivo.call("GET", "/vip_tiers", key="wrong")
    requests.get(f"{rivo.sandbox.url}/rivo/northwind", timeout=5)
    noted = rivo.sandbox.requests.filter(account="rivo")
    assert [(one.store, one.method, one.path, one.status) for one in noted] == [
        ("northwind", "POST", "/merchant_api/v1/points_events", 201),
        (None, "GET", "/merchant_api/v1/vip_tiers", 401),
    ]
    (award,) = rivo.sandbox.requests.filter(store="northwind", path=r"/merchant_api/v1/points_events", method="POST")
    assert award.form["internal_note"] == "op-1"
    assert noted[0].at <= noted[1].at


@pytest.mark.parametrize("path", ["/nope", "/vip-tiers", "/memberships", "/credits_events", "/vip_tiers/12345"])
def test_what_does_not_exist_is_404(rivo: Rivo, path: str) -> None:
    assert (rivo.get(path).status_code, rivo.get(path).json()) == (404, {"error": "Not Found"})
    assert rivo.call("DELETE", "/points_events").status_code == 404


# -- customers -------------------------------------------------------------------------------------------------


def test_a_customer_is_found_by_id_and_by_address_whatever_its_case(rivo: Rivo) -> None:
    by_email = rivo.get(f"/customers/{quote('Ana@Example.COM', safe='')}").json()["data"]
    assert by_email == rivo.get(f"/customers/{by_email['id']}").json()["data"]
    assert (by_email["type"], by_email["id"] > 10**12) == ("customer", True)
    attributes = by_email["attributes"]
    assert attributes["points_tally"] == 120
    assert attributes["credits_tally"] == "25.50"
    assert attributes["vip_tier"]["name"] == "Gold"
    assert attributes["next_vip_tier"] is None
    assert attributes["dob"] == "05-31"
    assert attributes["referral_url"].startswith("https://northwind.myshopify.com?referral_code=")
    assert "membership" not in attributes


@pytest.mark.parametrize(
    "email", ["tom+shop@example.com", "zoë@example.org", "a/b?c#d@example.com", "o'neil @x.example"]
)
def test_an_address_needs_nothing_but_percent_encoding(rivo: Rivo, email: str) -> None:
    rivo.store.add_customer(email, points=5)
    found = rivo.get(f"/customers/{quote(email, safe='')}")
    assert found.json()["data"]["attributes"]["email"] == email
    assert rivo.sandbox.requests[-1].path == f"/merchant_api/v1/customers/{email}"


def test_shapes_change_what_a_customer_looks_like(rivo: Rivo) -> None:
    rivo.store.shapes = RivoShapes(
        tier="text", tally_name="loyalty_points_tally", credits_as="number", referral_url="empty"
    )
    attributes = rivo.get(f"/customers/{quote(ANA)}").json()["data"]["attributes"]
    assert "points_tally" not in attributes
    shown = [attributes[name] for name in ("vip_tier", "loyalty_points_tally", "credits_tally", "referral_url")]
    assert shown == ["Gold", 120, 25.5, ""]


def test_addresses_may_be_compared_otherwise(rivo: Rivo) -> None:
    upper, tagged = quote(ANA.upper()), quote("ana+gifts@example.com")
    assert rivo.get(f"/customers/{tagged}").status_code == 404
    rivo.store.shapes = RivoShapes(emails="exact")
    assert [rivo.get(f"/customers/{one}").status_code for one in (upper, quote(ANA))] == [404, 200]
    rivo.store.shapes = RivoShapes(emails="without_plus_tags")
    assert rivo.get(f"/customers/{tagged}").json()["data"]["attributes"]["email"] == ANA


def test_a_missing_customer_is_404_as_json_or_as_a_page(rivo: Rivo) -> None:
    missing = rivo.get("/customers/nobody%40example.com")
    assert (missing.status_code, missing.json()) == (404, {"error": "Customer not found"})
    assert rivo.get(f"/customers/{'9' * 5000}").status_code == 404
    rivo.store.shapes = RivoShapes(not_found="html")
    missing = rivo.get("/customers/nobody%40example.com")
    assert (missing.status_code, missing.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert rivo.award(customer_identifier="nobody@example.com").status_code == 404


@pytest.mark.parametrize(
    ("errors", "body"),
    [
        ("error", {"error": "source is missing"}),
        ("message", {"message": "source is missing"}),
        ("errors_list", {"errors": ["source is missing"]}),
        ("errors_object", {"errors": {"base": ["source is missing"]}}),
    ],
)
def test_the_sentence_of_an_error_stands_in_one_of_four_places(rivo: Rivo, errors: Any, body: dict[str, Any]) -> None:
    rivo.store.shapes = RivoShapes(errors=errors, invalid_status=400)
    refused = rivo.award(source="")
    assert (refused.status_code, refused.json()) == (400, body)


@pytest.mark.parametrize(("given", "kept"), [("7-4", "07-04"), ("12-31", "12-31"), ("1990-02-03", "02-03")])
def test_a_date_of_birth_can_be_set(rivo: Rivo, given: str, kept: str) -> None:
    changed = rivo.call("PUT", f"/customers/{quote(ANA)}", json={"dob": given})
    assert (changed.status_code, changed.json()["data"]["attributes"]["dob"]) == (200, kept)
    assert (rivo.store.customer(ANA) or {})["dob"] == kept
    assert rivo.call("PUT", f"/customers/{quote(ANA)}", data={"dob": "13-40"}).status_code == 422


def test_a_membership_is_cancelled_once(rivo: Rivo) -> None:
    path = f"/memberships/{quote(ANA, safe='')}/cancel"
    cancelled = rivo.call("DELETE", path)
    assert (cancelled.status_code, cancelled.content) == (204, b"")
    assert rivo.call("DELETE", path).json() == {"error": "This customer has no active membership."}
    rivo.store.add_customer("bo@example.com")
    rivo.store.shapes = RivoShapes(cancelled_as="json")
    cancelled = rivo.call("DELETE", "/memberships/bo%40example.com/cancel")
    assert (cancelled.status_code, cancelled.json()["data"]["type"]) == (200, "membership_cancellation")


def test_what_tests_change_is_what_the_api_tells(rivo: Rivo) -> None:
    rivo.store.update_customer(ANA, status="guest", points=3, credits="1", tier=None, email="anna@example.com")
    assert rivo.store.customer(ANA) is None
    attributes = rivo.get("/customers/anna%40example.com").json()["data"]["attributes"]
    shown = [attributes[name] for name in ("loyalty_status", "points_tally", "credits_tally", "vip_tier")]
    assert shown == ["guest", 3, "1.0", None]
    with pytest.raises(ValueError, match="has no colour"):
        rivo.store.update_customer("anna@example.com", colour="red")
    rivo.store.add_customer(ANA)
    with pytest.raises(ValueError, match="belongs to another"):
        rivo.store.update_customer("anna@example.com", email="ANA@example.com")
    rivo.store.remove_customer("anna@example.com")
    assert rivo.get("/customers/anna%40example.com").status_code == 404
    with pytest.raises(KeyError):
        rivo.store.remove_customer("anna@example.com")
    with pytest.raises(ValueError, match="no loyalty status"):
        rivo.store.add_customer("cy@example.com", status="vip")


# -- lists -----------------------------------------------------------------------------------------------------


@pytest.fixture
def seven(rivo: Rivo) -> list[int]:
    """The ids of seven customers, lowest first."""
    for number in range(6):
        rivo.store.add_customer(f"c{number}@example.com")
    return [customer["id"] for customer in rivo.store.customers()]


def test_offset_pages_link_to_the_next_and_the_last(rivo: Rivo, seven: list[int]) -> None:
    first = rivo.get("/customers", params={"pagination[per_page]": 3}).json()
    assert [row["id"] for row in first["data"]] == seven[:3]
    second = rivo.call("GET", first["links"]["next"].removeprefix(rivo.sandbox.rivo_url)).json()
    assert [row["id"] for row in second["data"]] == seven[3:6]
    last = rivo.call("GET", first["links"]["last"].removeprefix(rivo.sandbox.rivo_url)).json()
    assert [row["id"] for row in last["data"]] == seven[6:]
    assert last["links"]["next"] is None
    assert rivo.ids("/customers", **{"pagination[page]": 9}) == []
    rivo.store.shapes = RivoShapes(no_more="missing")
    assert "next" not in rivo.get("/customers").json()["links"]


def test_a_cursor_goes_on_after_an_id_and_ends_with_null(rivo: Rivo, seven: list[int]) -> None:
    seen: list[int] = []
    since: int | None = 0
    while since is not None:
        page = rivo.get("/customers", params={"pagination[since_id]": since, "pagination[limit]": 3}).json()
        seen += [row["id"] for row in page["data"]]
        assert (page["links"]["since_id"], page["links"]["limit"]) == (since, 3)
        since = page["links"]["next_since_id"]
    assert seen == seven
    rivo.store.shapes = RivoShapes(cursor_links="older")
    links = rivo.get("/customers", params={"pagination[since_id]": 0, "pagination[limit]": 3}).json()["links"]
    assert list(links) == ["self"]


def test_a_cursor_mixed_with_per_page_drops_to_offset_mode(rivo: Rivo, seven: list[int]) -> None:
    mixed = {"pagination[since_id]": seven[4], "pagination[per_page]": 2}
    page = rivo.get("/customers", params=mixed).json()
    assert [row["id"] for row in page["data"]] == seven[:2]
    assert "last" in page["links"]


def test_a_page_has_25_rows_and_never_more_than_250(rivo: Rivo) -> None:
    for _ in range(260):
        rivo.store.add_event(ANA, points=1, announce=False)
    assert len(rivo.ids("/points_events")) == 25
    assert len(rivo.ids("/points_events", **{"pagination[limit]": 500})) == 250
    assert len(rivo.ids("/points_events", **{"pagination[per_page]": 500})) == 250


@pytest.mark.parametrize(
    "params", [{"page": "0"}, {"page": "501"}, {"per_page": "x"}, {"since_id": "-1"}, {"limit": "1.5"}]
)
def test_pages_that_cannot_be_are_refused(rivo: Rivo, params: dict[str, str]) -> None:
    wrong = {f"pagination[{name}]": value for name, value in params.items()}
    assert rivo.get("/customers", params=wrong).status_code == 422


def test_tiers_rewards_and_rules_are_listed(rivo: Rivo) -> None:
    by_threshold = {"sort[order_type]": "threshold", "sort[order_direction]": "desc"}
    tiers = rivo.get("/vip_tiers", params=by_threshold).json()["data"]
    assert [tier["attributes"]["name"] for tier in tiers] == ["Platinum", "Gold", "Silver"]
    assert rivo.get(f"/vip_tiers/{tiers[0]['id']}").json() == {"data": tiers[0]}
    # A cursor knows no order but that of ids.
    assert rivo.ids("/vip_tiers", **by_threshold, **{"pagination[since_id]": 0}) == sorted(rivo.ids("/vip_tiers"))
    for spelling in ("filters[purchase_type]", "purchase_type"):
        (reward,) = rivo.get("/rewards", params={spelling: "subscription"}).json()["data"]
        assert reward["attributes"]["name"] == "$10 off your subscription"
    rules = rivo.get("/earning_rules").json()["data"]
    assert {"order_placed", "custom_action"} < {rule["attributes"]["trigger"] for rule in rules}
    assert None in {rule["attributes"]["title"] for rule in rules}


# -- points events ---------------------------------------------------------------------------------------------


def test_an_award_is_one_row_of_the_book_and_moves_the_balance(rivo: Rivo) -> None:
    answer = rivo.award()
    assert answer.status_code == 201
    (row,) = rivo.store.events(ANA)
    told = answer.json()["data"]
    assert (told["id"], told["type"]) == (row["id"], "points_event")
    assert told["attributes"]["id"] == [rivo.store.shop_id, row["id"]]
    assert told["attributes"]["customer"]["points_tally"] == 130
    assert (row["email"], row["points_amount"], row["points_diff"], row["internal_note"]) == (ANA, 10, 10, "op-1")
    assert (row["source"], row["revoked_at"], row["hidden"]) == ("manual", None, False)
    assert (rivo.store.customer(ANA) or {})["points_tally"] == 130


def test_json_counts_as_a_form_does_and_nothing_makes_two_awards_one(rivo: Rivo) -> None:
    body = {"customer_identifier": (rivo.store.customer(ANA) or {})["id"], "source": "manual", "points_amount": -20}
    assert [rivo.call("POST", "/points_events", json=body).status_code for _ in range(2)] == [201, 201]
    assert [(row["points_amount"], row["points_diff"]) for row in rivo.store.events()] == [(20, -20)] * 2
    assert (rivo.store.customer(ANA) or {})["points_tally"] == 80


@pytest.mark.parametrize(("amount", "left"), [("5", "30.50"), ("-0.255", "25.24"), ("2.4", "27.90")])
def test_store_credit_is_a_points_event_without_points(rivo: Rivo, amount: str, left: str) -> None:
    answer = rivo.award(points_amount="", credits_amount=amount)
    assert answer.status_code == 201
    attributes = answer.json()["data"]["attributes"]
    assert (attributes["points_amount"], attributes["credits_amount"]) == (0, rivo.store.events()[0]["credits_amount"])
    assert attributes["credits_diff"] == float(rivo.store.events()[0]["credits_diff"])
    assert (rivo.store.customer(ANA) or {})["credits_tally"] == left


def test_shapes_change_what_a_created_event_looks_like(rivo: Rivo) -> None:
    rivo.store.shapes = RivoShapes(
        create="without_customer", composite_ids=False, points_diff=False, credits_diff=False, credits_as="number"
    )
    told = rivo.award().json()["data"]
    assert told["attributes"]["id"] == told["id"]
    assert "customer" not in told["attributes"]
    assert "credits_diff" not in told["attributes"]
    assert (told["attributes"]["points_diff"], told["attributes"]["credits_amount"]) == (None, 0.0)
    rivo.store.shapes = RivoShapes(create="empty")
    empty = rivo.award()
    assert (empty.status_code, empty.content) == (201, b"")
    assert len(rivo.store.events()) == 2


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"customer_identifier": ""}, "customer_identifier is missing"),
        ({"source": ""}, "source is missing"),
        ({"source": "order_placed"}, "source does not have a valid value"),
        ({"points_amount": ""}, "points_amount is missing"),
        ({"points_amount": "0"}, "points_amount must not be zero"),
        ({"points_amount": "1.5"}, "points_amount is invalid"),
        ({"points_amount": "1e3"}, "points_amount is invalid"),
        ({"points_amount": "2147483648"}, "points_amount is invalid"),
        ({"credits_amount": "nan"}, "credits_amount is invalid"),
        ({"applied_at": "yesterday"}, "applied_at is invalid"),
        ({"source": "custom_action"}, "custom_action_name is missing"),
        (
            {"source": "custom_action", "custom_action_name": "wrote to us"},
            "custom_action_name does not match an earning rule",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_a_sentence_and_nothing_is_written(
    rivo: Rivo, fields: dict[str, str], sentence: str
) -> None:
    refused = rivo.award(**fields)
    assert (refused.status_code, refused.json()) == (422, {"error": sentence})
    assert rivo.store.events() == []


@pytest.mark.parametrize("body", ["[1]", "{", "true"])
def test_a_body_that_is_no_json_object_is_400(rivo: Rivo, body: str) -> None:
    headers = {"Authorization": rivo.store.key, "Content-Type": "application/json"}
    url = f"{rivo.sandbox.rivo_url}/points_events"
    assert requests.post(url, data=body, headers=headers, timeout=5).status_code == 400


def test_an_excluded_customer_is_not_changed_and_a_guest_is(rivo: Rivo) -> None:
    rivo.store.update_customer(ANA, status="excluded")
    refused = rivo.award()
    assert (refused.status_code, refused.json()) == (
        422,
        {"error": "This customer is excluded from the loyalty program."},
    )
    assert rivo.store.events() == []
    rivo.store.update_customer(ANA, status="guest")
    assert rivo.award().status_code == 201


def test_more_may_be_taken_than_there_is_unless_the_store_refuses(rivo: Rivo) -> None:
    rivo.store.shapes = RivoShapes(overdraft="refused")
    assert rivo.award(points_amount="-121").json() == {"error": "The balance is too low."}
    rivo.store.shapes = RivoShapes()
    assert rivo.award(points_amount="-121").status_code == 201
    assert (rivo.store.customer(ANA) or {})["points_tally"] == -1


def test_a_custom_action_gives_what_its_rule_says_unless_the_call_says_otherwise(rivo: Rivo) -> None:
    action = {"source": "custom_action", "custom_action_name": "Wrote to us"}
    assert rivo.award(**action, points_amount="").status_code == 201
    assert rivo.award(**action, points_amount="70", applied_at="2026-01-02T03:04:05+01:00").status_code == 201
    first, second = rivo.store.events()
    assert (first["points_diff"], first["title"], second["points_diff"]) == (25, "Wrote to us", 70)
    assert second["applied_at"] == "2026-01-02T02:04:05.000Z"
    visit = {"source": "visit_url", "custom_action_name": "https://shop.example.com/story"}
    assert rivo.award(**visit, points_amount="").status_code == 201
    assert rivo.award(source="instagram_follow", points_amount="").status_code == 201
    assert [row["points_diff"] for row in rivo.store.events()[2:]] == [10, 50]


def test_the_book_can_be_filtered_by_customer_and_source_and_sorted(rivo: Rivo) -> None:
    rivo.store.add_customer("bo@example.com")
    ids = [
        rivo.store.add_event(email, points=1, source=source, applied_at=applied_at)["id"]
        for email, source, applied_at in [
            (ANA, "order_placed", "2026-03-01"),
            ("bo@example.com", "order_placed", None),
            (ANA, "manual", "2026-01-01"),
        ]
    ]
    assert rivo.ids("/points_events") == ids
    of_ana = {"filters[customer_identifier]": ANA}
    assert rivo.ids("/points_events", **of_ana, **{"filters[colour]": "red"}) == [ids[0], ids[2]]
    assert rivo.ids("/points_events", **of_ana, **{"filters[source]": "manual"}) == [ids[2]]
    assert rivo.ids("/points_events", **of_ana, **{"sort[order_type]": "applied_at"}) == [ids[2], ids[0]]
    assert rivo.ids("/points_events", **of_ana, **{"sort[order_direction]": "desc"}) == [ids[2], ids[0]]
    assert rivo.ids("/points_events", **{"filters[customer_identifier]": "nobody@example.com"}) == []
    assert rivo.get("/points_events", params=of_ana).json()["data"][0]["attributes"]["internal_note"] is None
    rivo.store.shapes = RivoShapes(newest_first=True)
    assert rivo.ids("/points_events", **of_ana) == [ids[2], ids[0]]
    assert rivo.ids("/points_events", **of_ana, **{"pagination[since_id]": 0}) == [ids[0], ids[2]]


def test_a_revoked_event_stays_in_the_list_and_gives_the_points_back_once(rivo: Rivo) -> None:
    event = rivo.store.add_event(ANA, points=40, credits="2")
    for _ in range(2):
        rivo.store.revoke_event(event["id"])
    customer = rivo.store.customer(ANA) or {}
    assert (customer["points_tally"], customer["credits_tally"]) == (120, "25.50")
    (row,) = rivo.get("/points_events").json()["data"]
    assert row["attributes"]["revoked_at"] is not None
    with pytest.raises(KeyError):
        rivo.store.revoke_event(1)


def test_the_book_keeps_the_rows_of_a_customer_who_is_gone(rivo: Rivo) -> None:
    rivo.award()
    rivo.store.remove_customer(ANA)
    assert [row["internal_note"] for row in rivo.store.events(ANA)] == ["op-1"]


def test_awards_at_once_are_all_written(rivo: Rivo) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: rivo.award(internal_note=str(number)), range(24)))
    assert {answer.status_code for answer in answers} == {201}
    assert sorted(int(row["internal_note"]) for row in rivo.store.events()) == list(range(24))
    assert (rivo.store.customer(ANA) or {})["points_tally"] == 120 + 240


# -- redemptions -----------------------------------------------------------------------------------------------


def redeem(rivo: Rivo, name: str, **more: Any) -> requests.Response:
    reward = next(reward for reward in rivo.store.rewards() if reward["name"] == name)
    body = {"customer_identifier": ANA, "reward_id": reward["id"], **more}
    return rivo.call("POST", "/points_redemptions", data=body)


def test_a_redemption_debits_at_once_and_brings_a_code(rivo: Rivo) -> None:
    made = redeem(rivo, "$5 off coupon")
    attributes = made.json()["data"]["attributes"]
    assert (made.status_code, attributes["points_diff"], attributes["used_at"]) == (201, -100, None)
    assert attributes["code"]
    assert (attributes["reward"]["name"], attributes["customer"]["points_tally"]) == ("$5 off coupon", 20)
    (row,) = rivo.store.events(ANA)
    assert (row["source"], row["points_diff"], row["points_purchases_id"]) == (
        "points_purchase",
        -100,
        made.json()["data"]["id"],
    )
    assert redeem(rivo, "$5 off coupon").json() == {"error": "The balance is too low."}
    assert len(rivo.store.redemptions(ANA)) == 1


def test_incremental_rewards_and_store_credit(rivo: Rivo) -> None:
    rivo.store.update_customer(ANA, points=1000)
    assert redeem(rivo, "Points for a discount", points_amount=250).status_code == 422
    assert redeem(rivo, "Points for a discount", points_amount=300).status_code == 201
    assert redeem(rivo, "Spend your credit").status_code == 422
    assert redeem(rivo, "Spend your credit", credits_amount="10.50").status_code == 201
    to_credit = redeem(rivo, "$5 store credit").json()["data"]["attributes"]
    assert (to_credit["code"], to_credit["formatted_store_credit_amount"]) == (None, "$5.00")
    customer = rivo.store.customer(ANA) or {}
    assert (customer["points_tally"], customer["credits_tally"]) == (200, "20.00")
    assert redeem(rivo, "Friend's discount").status_code == 422
    rivo.store.update_customer(ANA, status="excluded")
    assert redeem(rivo, "10% off").status_code == 422


def test_redemptions_are_listed_by_customer_and_by_use(rivo: Rivo) -> None:
    rivo.store.update_customer(ANA, points=1000)
    used, unused = (redeem(rivo, "$5 off coupon").json()["data"]["id"] for _ in range(2))
    rivo.store.use_redemption(used)
    of_ana = {"filters[customer_identifier]": ANA}
    assert rivo.ids("/points_redemptions", **of_ana) == [used, unused]
    assert rivo.ids("/points_redemptions", **of_ana, **{"filters[used]": "true"}) == [used]
    assert rivo.ids("/points_redemptions", **of_ana, **{"filters[used]": "false"}) == [unused]
    assert rivo.ids("/points_redemptions", **{"filters[customer_identifier]": "nobody@example.com"}) == []
    assert (
        rivo.call("POST", "/points_redemptions", data={"customer_identifier": ANA, "reward_id": 1}).status_code == 404
    )
    rivo.store.remove_customer(ANA)
    assert rivo.get("/points_redemptions").json()["data"][0]["attributes"]["customer"] is None
    with pytest.raises(KeyError):
        rivo.store.use_redemption(1)
