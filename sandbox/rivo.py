"""One store of the sandbox's Rivo: its key, customers, tiers, rewards, rules, and the book of points events.

A RivoStore is what tests read as the truth. It keeps everything in the shapes of Rivo's REST API
(https://developer-docs.rivo.io/reference) as far as they are known, checks nothing that only the API has to check, and
hands webhooks to sandbox.rivo_webhooks after the change is kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sandbox import rivo_shapes
from sandbox.records import Record, Records
from sandbox.rivo_shapes import RivoShapes, decimal_text, instant
from sandbox.rivo_webhooks import RivoDelivery, RivoWebhooks, Scheme, Subscription
from sandbox.state import read_people

STATUSES = ("member", "guest", "excluded")
ALL_TOPICS = "*"
_CENT = Decimal("0.01")
# Shopify numbers its customers with 13 digits.
CUSTOMER_IDS_FROM = 7_198_000_000_000

_TIERS = (("Silver", 500), ("Gold", 1250), ("Platinum", 5000))
_REWARDS: tuple[Record, ...] = (
    {"name": "$5 off coupon", "reward_type": "fixed_amount", "reward_value": 5.0, "points_amount": 100},
    {"name": "10% off", "reward_type": "percentage", "reward_value": 10.0, "points_amount": 250},
    {
        "name": "Free shipping",
        "reward_type": "free_shipping",
        "points_amount": 150,
        "purchase_type": "both",
        "min_order_value_in_cents": 2500,
    },
    {
        "name": "$10 off your subscription",
        "reward_type": "fixed_amount",
        "reward_value": 10.0,
        "points_amount": 200,
        "purchase_type": "subscription",
        "recurring_cycle_limit": 1,
    },
    {
        "name": "Points for a discount",
        "reward_type": "fixed_amount",
        "reward_value": 1.0,
        "points_type": "incremental",
        "increment_points_value": 100,
        "min_points_to_redeem_value": 100,
        "max_points_to_spend_value": 5000,
    },
    {"name": "$5 store credit", "reward_type": "points_to_credit", "reward_value": 5.0, "points_amount": 500},
    {"name": "Spend your credit", "reward_type": "gift_card", "source": "credits", "points_type": "incremental"},
    {"name": "Friend's discount", "reward_type": "percentage", "reward_value": 15.0, "source": "referrer"},
)
_RULES: tuple[Record, ...] = (
    {"title": "Place an order", "trigger": "order_placed", "points_amount": 5, "points_type": "multiplier"},
    {"title": "Sign up", "trigger": "customer_member_enabled", "points_amount": 100},
    {"title": "Birthday", "trigger": "customer_birthday", "points_amount": 200},
    {"title": "Refer a friend", "trigger": "referral_complete", "points_amount": 300},
    {"title": "Follow us", "trigger": "instagram_follow", "points_amount": 50},
    {"title": "Wrote to us", "trigger": "custom_action", "custom_action_name": "Wrote to us", "points_amount": 25},
    {"title": "Read our story", "trigger": "visit_url", "url": "https://shop.example.com/story", "points_amount": 10},
    # Rows that are null in part were seen.
    {"title": None, "trigger": "review_complete", "points_amount": None, "points_type": None},
)


class Refused(Exception):
    """Rivo does not do this; the message is its sentence. `status` None stands for the store's invalid_status."""

    def __init__(self, sentence: str, *, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class RivoStore:
    """One store. Safe to use from several threads.

    `shapes` may be replaced at any time; `deliver_twice` sends every webhook twice under the same id.
    """

    def __init__(
        self, name: str, *, records: Records, now: Callable[[], datetime], webhooks: RivoWebhooks, url: str
    ) -> None:
        self.name = name
        self.url = url
        self.shapes = RivoShapes()
        self.deliver_twice = False
        self._records = records
        self._now = now
        self._webhooks = webhooks
        # No account of the helpdesk has a slash in its name.
        self._account = f"rivo/{name}"
        with records.change():
            if records.get(self._account, "meta", "store") is None:
                self._keep_about({"key": secrets.token_hex(20), "shop_id": records.new_id(), "lapsed": False})
                for tier, threshold in _TIERS:
                    self._add_tier(tier, threshold)
                for reward in _REWARDS:
                    self.add_reward(**reward)
                for rule in _RULES:
                    self.add_earning_rule(**rule)

    # -- reading and keeping -------------------------------------------------------------------------------

    def _all(self, kind: str) -> list[Record]:
        return self._records.all(self._account, kind)

    def _get(self, kind: str, key: int | str) -> Record | None:
        return self._records.get(self._account, kind, key)

    def _keep(self, kind: str, record: Record) -> Record:
        self._records.put(self._account, kind, record["id"], record)
        return record

    def _about(self) -> Record:
        about = self._get("meta", "store")
        assert about is not None
        return about

    def _keep_about(self, about: Record) -> None:
        self._records.put(self._account, "meta", "store", about)

    def _stamp(self) -> str:
        return instant(self._now())

    @contextmanager
    def _change(self) -> Iterator[list[tuple[str, Record]]]:
        """One change, and after it is kept the webhooks (topic, body) that were put into the list."""
        announced: list[tuple[str, Record]] = []
        with self._records.change():
            yield announced
        for topic, body in announced:
            self.publish(topic, body)

    # -- the key and the plan ------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The one REST API key that works now."""
        return str(self._about()["key"])

    def regenerate_key(self) -> str:
        """Make a new key and answer it; the old one stops working at once."""
        with self._records.change():
            about = self._about() | {"key": secrets.token_hex(20)}
            self._keep_about(about)
        return str(about["key"])

    @property
    def lapsed(self) -> bool:
        """Whether the merchant's plan no longer includes the API."""
        return bool(self._about()["lapsed"])

    def lapse(self, lapsed: bool = True) -> None:
        """Take the API out of the merchant's plan: 403 with the right key. False puts it back."""
        with self._records.change():
            self._keep_about(self._about() | {"lapsed": lapsed})

    @property
    def shop_id(self) -> int:
        """The number of the shop, the first half of composite ids."""
        return int(self._about()["shop_id"])

    @property
    def domain(self) -> str:
        """The shop's Shopify domain."""
        return f"{self.name}.myshopify.com"

    # -- tiers, rewards, earning rules ---------------------------------------------------------------------

    def vip_tiers(self) -> list[Record]:
        """All tiers, lowest id first: {id, name, threshold, perks, icon_url, desc, rewards}."""
        return self._all("vip_tiers")

    def _add_tier(self, name: str, threshold: int) -> Record:
        tier: Record = {"id": self._records.new_id(), "name": name, "threshold": threshold, "perks": []}
        return self._keep("vip_tiers", {**tier, "icon_url": None, "desc": None, "rewards": []})

    def _tier(self, name: str | None) -> Record | None:
        """The tier with this name, made when it is new."""
        if name is None:
            return None
        return next((tier for tier in self.vip_tiers() if tier["name"] == name), None) or self._add_tier(name, 0)

    def rewards(self) -> list[Record]:
        """All rewards."""
        return self._all("rewards")

    def reward(self, reward_id: int) -> Record | None:
        """One reward, or None."""
        return self._get("rewards", reward_id)

    def add_reward(self, *, name: str, reward_type: str, **more: Any) -> Record:
        """Add a reward, by default one that is bought with points. `more` are attributes as in the API."""
        with self._records.change():
            return self._keep(
                "rewards",
                {
                    "id": self._records.new_id(),
                    "name": name,
                    "enabled": True,
                    "points_amount": None,
                    "points_type": "fixed",
                    "reward_type": reward_type,
                    "reward_value": None,
                    "source": "points",
                    "pretty_display_rewards": name,
                    "min_order_value_in_cents": None,
                    "min_order_quantity": None,
                    "expiry_months": None,
                    "redeemed_count": 0,
                    "purchase_type": "one_time",
                    "recurring_cycle_limit": None,
                    "icon_url": None,
                    "product_id": None,
                    "variant_ids": [],
                    "customer_points_get": None,
                    "increment_points_value": None,
                    "min_points_to_redeem_value": None,
                    "max_points_to_spend_value": None,
                    "terms_of_service": {"reward_type": reward_type, "show_tos": False},
                    "created_at": self._stamp(),
                    "updated_at": self._stamp(),
                    **more,
                },
            )

    def earning_rules(self) -> list[Record]:
        """All earning rules."""
        return self._all("earning_rules")

    def add_earning_rule(self, *, title: str | None, trigger: str, **more: Any) -> Record:
        """Add an earning rule. `more` are attributes as in the API."""
        with self._records.change():
            return self._keep(
                "earning_rules",
                {
                    "id": self._records.new_id(),
                    "title": title,
                    "name": title,
                    "description": None,
                    "status": "active",
                    "trigger": trigger,
                    "points_amount": None,
                    "credits_amount": None,
                    "balance_amount": None,
                    "points_type": "fixed",
                    "currency_base_amount": 1.0,
                    "pretty_earnings_text": None,
                    "url": None,
                    "button_text": None,
                    "card_click_method": None,
                    "hidden_from_ui": False,
                    "custom_action_name": None,
                    "multipliers": [],
                    "multi_balance_settings_by_tiers": None,
                    "icon_url": None,
                    "automation_id": None,
                    "step_id": None,
                    **more,
                },
            )

    # -- customers -----------------------------------------------------------------------------------------

    def customers(self) -> list[Record]:
        """All customers, lowest id first."""
        return self._all("customers")

    def customer(self, email: str) -> Record | None:
        """The customer with this address, whatever its case, in the fullest shape of the API, or None."""
        pointer = self._get("emails", email.lower())
        return None if pointer is None else self._get("customers", pointer["id"])

    def customer_by_id(self, customer_id: int) -> Record | None:
        """The customer with this Shopify id, or None."""
        return self._get("customers", customer_id)

    def identify(self, identifier: str) -> Record | None:
        """The customer whom the API means by a Shopify id or an e-mail address, as `shapes` has it, or None."""
        if identifier.isascii() and identifier.isdigit():
            return self._get("customers", identifier)
        if (found := self.customer(identifier)) is not None:
            return None if self.shapes.emails == "exact" and found["email"] != identifier else found
        if self.shapes.emails == "without_plus_tags":
            wanted = _without_plus_tag(identifier)
            return next((one for one in self.customers() if _without_plus_tag(one["email"] or "") == wanted), None)
        return None

    def add_customer(
        self,
        email: str | None,
        *,
        points: int | None = 0,
        credits: str | Decimal = "0.0",
        status: str = "member",
        tier: str | None = None,
        dob: str | None = None,
        referral_code: str | None = None,
        points_expire_at: str | None = None,
        lifetime: int | None = None,
        first_name: str | None = "Alex",
        last_name: str | None = "Example",
        membership: str | None = "active",
    ) -> Record:
        """Add a customer of the shop. A tier that does not exist is made; `membership` is `active` or None.

        Raises ValueError for an unknown status and for an e-mail address that is taken.
        """
        if status not in STATUSES:
            raise ValueError(f"{status!r} is no loyalty status: use {', '.join(STATUSES)}.")
        with self._records.change():
            number = self._records.new_id()
            code = f"ref{number}" if referral_code is None else referral_code
            record: Record = {
                "id": CUSTOMER_IDS_FROM + number,
                "email": None,
                "first_name": first_name,
                "last_name": last_name,
                "accepts_marketing": True,
                "verified_email": True,
                "orders_count": 2,
                "total_spent": 84.5,
                "shopify_tags": ["Rivo Excluded"] if status == "excluded" else [],
                "points_tally": points,
                "credits_tally": decimal_text(Decimal(credits)),
                "loyalty_status": status,
                "loyalty_status_last_changed_at": None,
                "dob": dob,
                "dob_last_updated_at": None if dob is None else self._stamp(),
                "referral_code": code or None,
                "referral_url": f"https://{self.domain}?referral_code={quote(code, safe='')}" if code else None,
                "vip_tier": self._tier(tier),
                # Null even where there are higher tiers, as seen.
                "next_vip_tier": None,
                "points_expire_at": points_expire_at,
                "credits_expire_at": None,
                "lifetime_earnings_tally": lifetime,
                "completed_earning_rule_ids": [],
                "remote_updated_at": self._stamp(),
                "membership": membership,
            }
            self._point_email(record, email)
            return self._keep("customers", record)

    def _point_email(self, record: Record, email: str | None) -> None:
        """Give a customer an address, and its old one back."""
        if record["email"] is not None:
            self._records.delete(self._account, "emails", record["email"].lower())
        if email is not None:
            if self._get("emails", email.lower()) is not None:
                raise ValueError(f"{email} belongs to another customer of {self.name}.")
            self._records.put(self._account, "emails", email.lower(), {"id": record["id"]})
        record["email"] = email

    def update_customer(self, email: str, /, **fields: Any) -> Record:
        """Change a customer as Rivo itself or its admin does, with the webhooks that go with it.

        `fields` are the names of add_customer or attributes of the API; `email` is the new address.
        Raises KeyError for an unknown customer and ValueError for a field, status or tier that cannot be.
        """
        names = {"points": "points_tally", "credits": "credits_tally", "status": "loyalty_status"}
        names |= {"lifetime": "lifetime_earnings_tally", "tier": "vip_tier"}
        changes = {names.get(name, name): value for name, value in fields.items()}
        with self._change() as announced:
            record = self._known(email)
            if unknown := changes.keys() - record.keys():
                raise ValueError(f"A customer has no {', '.join(sorted(unknown))}.")
            before = dict(record)
            if "email" in changes:
                self._point_email(record, changes.pop("email"))
            if "credits_tally" in changes:
                changes["credits_tally"] = decimal_text(Decimal(changes["credits_tally"]))
            if "vip_tier" in changes:
                changes["vip_tier"] = self._tier(changes["vip_tier"])
            if changes.get("loyalty_status", before["loyalty_status"]) not in STATUSES:
                raise ValueError(f"{changes['loyalty_status']!r} is no loyalty status: use {', '.join(STATUSES)}.")
            if changes.get("loyalty_status", before["loyalty_status"]) != before["loyalty_status"]:
                changes["loyalty_status_last_changed_at"] = self._stamp()
            if changes.get("dob", before["dob"]) != before["dob"]:
                changes["dob_last_updated_at"] = self._stamp()
            record |= changes
            record["remote_updated_at"] = self._stamp()
            self._keep("customers", record)
            body = self._in_webhook(record)
            told = ("points_tally", "credits_tally", "loyalty_status", "dob")
            if any(record[name] != before[name] for name in told):
                announced.append(("loyalty_profile/updated", body))
            if record["vip_tier"] != before["vip_tier"]:
                low, high = (
                    (tier or {"threshold": -1})["threshold"] for tier in (before["vip_tier"], record["vip_tier"])
                )
                change = rivo_shapes.tier_change_in_webhook(
                    shop_id=self.shop_id, customer_body=body, before=before["vip_tier"], after=record["vip_tier"]
                )
                announced.append((f"customer_vip_tier/{'upgraded' if high >= low else 'downgraded'}", change))
            return record

    def remove_customer(self, email: str) -> None:
        """Forget a customer; the book keeps their events. Raises KeyError."""
        with self._records.change():
            record = self._known(email)
            self._point_email(record, None)
            self._records.delete(self._account, "customers", record["id"])

    def _known(self, email: str) -> Record:
        record = self.customer(email)
        if record is None:
            raise KeyError(email)
        return record

    def _in_webhook(self, customer: Record) -> Record:
        return rivo_shapes.customer_in_webhook(customer, shop_id=self.shop_id, domain=self.domain)

    def cancel_membership(self, customer: Record) -> None:
        """End a paid membership with its present period. Raises Refused when there is none."""
        with self._change() as announced:
            record = self._get("customers", customer["id"]) or customer
            if record["membership"] != "active":
                raise Refused("This customer has no active membership.")
            record["membership"] = "pending_cancellation"
            self._keep("customers", record)
            announced.append(("membership/pending_cancellation", {"customer": self._in_webhook(record)}))

    # -- the book ------------------------------------------------------------------------------------------

    def events(self, email: str | None = None) -> list[Record]:
        """The book, oldest first: one row for each points event that was really written.

        With `email`, those of the customer who has this address now, or had it when the event was written.
        """
        if email is None:
            return self._all("events")
        customer = self.customer(email)
        if customer is None:
            return [event for event in self._all("events") if (event["email"] or "").lower() == email.lower()]
        return self.events_of(customer["id"])

    def events_of(self, customer_id: int) -> list[Record]:
        """The rows of one customer, oldest first."""
        found = (self._get("events", pointer["id"]) for pointer in self._all(f"events of {customer_id}"))
        return [event for event in found if event is not None]

    def add_event(
        self,
        email: str,
        *,
        points: int = 0,
        credits: str | Decimal = "0",
        source: str = "order_placed",
        title: str | None = None,
        internal_note: str | None = None,
        external_note: str | None = None,
        applied_at: datetime | str | None = None,
        hidden: bool = False,
        announce: bool = True,
    ) -> Record:
        """Write a points event as Rivo or its admin does, and move the balance.

        `announce=False` sends no webhooks, as for bulk adjustments and imports. Raises KeyError for an unknown
        customer.
        """
        if isinstance(applied_at, datetime):
            applied_at = instant(applied_at)
        elif applied_at is not None and (applied_at := read_time(applied_at)) is None:
            raise ValueError("applied_at is no ISO 8601 time.")
        customer = self._known(email)
        return self.write_event(
            customer,
            points=points,
            credits=Decimal(credits),
            source=source,
            title=title,
            internal_note=internal_note,
            external_note=external_note,
            applied_at=applied_at,
            hidden=hidden,
            announce=announce,
        )

    def write_event(self, customer: Record, *, announce: bool = True, **row: Any) -> Record:
        """Write one row of the book, move the balance, keep both together. Nothing makes two calls one.

        `row` is what _book takes. Raises Refused for an overdraft that may not be, and for a customer who is gone.
        """
        with self._change() as announced:
            event, webhooks = self._book(customer, **row)
            if announce:
                announced += webhooks
            return event

    def _book(
        self,
        customer: Record,
        *,
        points: int,
        credits: Decimal,
        source: str,
        title: str | None = None,
        internal_note: str | None = None,
        external_note: str | None = None,
        applied_at: str | None = None,
        custom_action_name: str | None = None,
        earning_rule_id: int | None = None,
        points_purchases_id: int | None = None,
        hidden: bool = False,
        may_overdraw: bool = True,
    ) -> tuple[Record, list[tuple[str, Record]]]:
        """The new row, and the webhooks that tell of it. Store credit is rounded to two decimals (UNKNOWN)."""
        record = self._get("customers", customer["id"])
        if record is None:
            raise Refused("Customer not found", status=404)
        before = self._in_webhook(record)
        if credits != credits.quantize(_CENT):
            credits = credits.quantize(_CENT, ROUND_HALF_UP)
        points_left = (record["points_tally"] or 0) + points
        credits_left = Decimal(record["credits_tally"]) + credits
        if not may_overdraw and ((points < 0 and points_left < 0) or (credits < 0 and credits_left < 0)):
            raise Refused("The balance is too low.")
        event: Record = {
            "id": self._records.new_id(),
            "email": record["email"],
            "customer_id": record["id"],
            "points_amount": abs(points),
            "points_diff": points,
            "credits_amount": decimal_text(abs(credits)),
            "credits_diff": decimal_text(credits),
            "source": source,
            "title": title or external_note or source.replace("_", " ").capitalize(),
            "external_note": external_note,
            "internal_note": internal_note,
            "custom_action_name": custom_action_name,
            "applied_at": applied_at or self._stamp(),
            "approved_at": None,
            "occurred_at": None,
            "created_at": self._stamp(),
            "expires_at": None,
            "per_event_expiration_at": None,
            "revoked_at": None,
            "hidden": hidden,
            "order_id": None,
            "sourceable_id": None,
            "earning_rule_id": earning_rule_id,
            "points_purchases_id": points_purchases_id,
        }
        self._keep("events", event)
        self._records.put(self._account, f"events of {record['id']}", event["id"], {"id": event["id"]})
        self._move(record, points=points, credits=credits)
        after = self._in_webhook(record)
        embedded = before if self.shapes.webhook_balance == "before" else after
        body = rivo_shapes.points_event_in_webhook(event, embedded)
        return event, [("points_event/created", body), ("loyalty_profile/updated", after)]

    def _move(self, record: Record, *, points: int, credits: Decimal) -> None:
        record["points_tally"] = (record["points_tally"] or 0) + points
        record["credits_tally"] = decimal_text(Decimal(record["credits_tally"]) + credits)
        if record["lifetime_earnings_tally"] is not None and points > 0:
            record["lifetime_earnings_tally"] += points
        record["remote_updated_at"] = self._stamp()
        self._keep("customers", record)

    def revoke_event(self, event_id: int) -> Record:
        """Take an event back as Rivo does when an order is refunded: the row stays, marked. Raises KeyError."""
        with self._change() as announced:
            event = self._get("events", event_id)
            if event is None:
                raise KeyError(event_id)
            if event["revoked_at"] is None:
                event["revoked_at"] = self._stamp()
                self._keep("events", event)
                record = self._get("customers", event["customer_id"])
                if record is not None:
                    self._move(record, points=-event["points_diff"], credits=-Decimal(event["credits_diff"]))
                    announced.append(("loyalty_profile/updated", self._in_webhook(record)))
            return event

    # -- redemptions ---------------------------------------------------------------------------------------

    def redemptions(self, email: str | None = None) -> list[Record]:
        """Redemptions, oldest first, of one customer or of all."""
        wanted = None if email is None else (self.customer(email) or {"id": None})["id"]
        return [one for one in self._all("redemptions") if email is None or one["customer_id"] == wanted]

    def redeem(self, customer: Record, reward: Record, *, points: int | None, credits: Decimal | None) -> Record:
        """Spend points or store credit on a reward: debits at once and makes a coupon code. Not idempotent.

        `points` and `credits` are for incremental rewards. Raises Refused.
        """
        if not reward["enabled"] or reward["source"] not in ("points", "credits"):
            raise Refused("This reward cannot be redeemed.")
        spent_points, spent_credits = 0, Decimal(0)
        if reward["source"] == "credits":
            if credits is None or credits <= 0:
                raise Refused("credits_amount is missing")
            spent_credits = credits
        elif reward["points_type"] == "incremental":
            step = reward["increment_points_value"] or 1
            if points is None or points <= 0 or points % step:
                raise Refused(f"points_amount must be a multiple of {step}")
            spent_points = points
        else:
            spent_points = reward["points_amount"] or 0
        with self._change() as announced:
            redemption_id = self._records.new_id()
            event, webhooks = self._book(
                customer,
                points=-spent_points,
                credits=-spent_credits,
                source="points_purchase",
                title=reward["name"],
                points_purchases_id=redemption_id,
                may_overdraw=False,
            )
            to_credit = reward["reward_type"] == "points_to_credit"
            if to_credit:
                record = self._get("customers", customer["id"]) or customer
                self._move(record, points=0, credits=Decimal(str(reward["reward_value"])))
            redemption = self._keep(
                "redemptions",
                {
                    "id": redemption_id,
                    "customer_id": customer["id"],
                    "email": customer["email"],
                    "code": None if to_credit else f"BAL-{secrets.token_hex(6)}",
                    "name": reward["name"],
                    "points_amount": spent_points,
                    "points_diff": -spent_points,
                    "credits_amount": event["credits_amount"],
                    "formatted_store_credit_amount": f"${reward['reward_value']:.2f}" if to_credit else None,
                    "applied_at": event["applied_at"],
                    "expires_at": None,
                    "used_at": None,
                    "refunded_at": None,
                    "revoked_at": None,
                    "reward": {
                        name: reward[name]
                        for name in ("id", "name", "source", "enabled", "reward_type", "reward_value", "points_amount")
                    },
                },
            )
            self._keep("rewards", {**reward, "redeemed_count": reward["redeemed_count"] + 1})
            owner = self._in_webhook(self._get("customers", customer["id"]) or customer)
            shown = {name: value for name, value in redemption.items() if name not in ("customer_id", "email")}
            announced += [*webhooks, ("points_redemption/created", {**shown, "customer": owner})]
            return redemption

    def use_redemption(self, redemption_id: int) -> Record:
        """Note that a shopper used the code in an order. Raises KeyError."""
        with self._records.change():
            redemption = self._get("redemptions", redemption_id)
            if redemption is None:
                raise KeyError(redemption_id)
            return self._keep("redemptions", redemption | {"used_at": self._stamp()})

    # -- webhooks ------------------------------------------------------------------------------------------

    def subscribe(
        self, url: str, *, secret: str, scheme: str = "standard", topics: tuple[str, ...] | None = None
    ) -> None:
        """Send webhooks of `topics` (None: all) to `url`. A topic has one receiver, as in Rivo: the latest.

        Raises ValueError for an unknown scheme.
        """
        kept = {"url": url, "secret": secret, "scheme": Scheme(scheme).value}
        with self._records.change():
            if topics is None:
                self.unsubscribe()
            for topic in topics or (ALL_TOPICS,):
                self._records.put(self._account, "webhooks", topic, {"topic": topic, **kept})

    def unsubscribe(self, topic: str | None = None) -> None:
        """Remove the webhook of a topic, or all of them."""
        with self._records.change():
            for webhook in self._all("webhooks"):
                if topic in (None, webhook["topic"]):
                    self._records.delete(self._account, "webhooks", webhook["topic"])

    def subscriptions(self) -> list[Record]:
        """The webhooks as set up: {topic, url, secret, scheme}; the topic `*` is for all others."""
        return self._all("webhooks")

    def publish(self, topic: str, body: Record) -> None:
        """Send a webhook, as the store does by itself when something happens. Without a receiver nothing is sent."""
        webhook = self._get("webhooks", topic) or self._get("webhooks", ALL_TOPICS)
        if webhook is not None:
            subscription = Subscription(url=webhook["url"], secret=webhook["secret"], scheme=Scheme(webhook["scheme"]))
            self._webhooks.send(self.name, subscription, topic, body, twice=self.deliver_twice)

    def deliveries(self) -> list[RivoDelivery]:
        """What was sent since the sandbox started, in the order in which it was finished."""
        return self._webhooks.log(self.name)

    # -- the demo ------------------------------------------------------------------------------------------

    def load_demo(self, customers: Path | None) -> None:
        """Fill a new store, once, with the people of a Shopify customer export and balances of its own.

        The one before the last is a guest, the last is excluded. Raises OSError and ValueError as load_demo of
        sandbox.state.
        """
        people = [] if customers is None else [(name, email) for name, email in read_people(customers) if email]
        with self._records.change():
            if self._get("meta", "demo") is not None:
                return
            for number, (name, email) in enumerate(people):
                if self.customer(email) is not None:
                    continue
                from_end = len(people) - number
                self._add_demo_customer(number, name, email, status={2: "guest", 1: "excluded"}.get(from_end, "member"))
            self._records.put(self._account, "meta", "demo", {"loaded_at": self._stamp()})

    def _add_demo_customer(self, number: int, name: str, email: str, *, status: str) -> None:
        first, _, last = name.partition(" ")
        points = 0 if status != "member" else 60 + number * 370 % 6200
        tier = next((tier for tier, threshold in reversed(_TIERS) if points >= threshold), None)
        self.add_customer(
            email,
            status=status,
            tier=tier,
            # Some store credit, for some.
            credits=f"{number * 7 % 40}.50" if status == "member" and number % 3 == 0 else "0.0",
            dob=f"{number % 12 + 1:02}-{number * 5 % 28 + 1:02}" if number % 4 == 1 else None,
            points_expire_at=f"December 31, {self._now().year + 1}" if number % 5 == 2 else None,
            first_name=first or None,
            last_name=last or None,
        )
        if points:
            ordered = points - min(points, 100)
            self.add_event(
                email, points=points - ordered, source="customer_member_enabled", title="Sign up", announce=False
            )
            if ordered:
                self.add_event(email, points=ordered, title=f"Order #{1001 + number}", announce=False)


def _without_plus_tag(email: str) -> str:
    local, at, domain = email.lower().rpartition("@")
    return local.partition("+")[0] + at + domain


def read_time(text: str) -> str | None:
    """An ISO 8601 date or time, as Rivo writes it back; without an offset it is UTC (UNKNOWN). None for anything
    else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return instant(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
