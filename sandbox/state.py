"""One helpdesk account of the sandbox: users, customers, tickets, messages, integrations, widgets, macros.

A Helpdesk answers copies as plain dicts in the shapes of Gorgias' REST API
(https://developers.gorgias.com/reference). It checks nothing that only the API has to check (scopes, unknown
parameters) and sends nothing itself: when something happens on a ticket it calls `on_activity`, and
sandbox.deliveries does the rest.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from werkzeug.exceptions import NotFound

from sandbox.records import Record, Records

TRIGGERS = (
    "ticket-created",
    "ticket-updated",
    "ticket-message-created",
    "ticket-self-unsnoozed",
    "ticket-message-failed",
    "ticket-assignment-updated",
    "ticket-status-updated",
    "ticket-handed-over",
)
"""Keys of `http.triggers` that fire. Older pages of the documentation spell them with underscores: those are
accepted by the API and never fire, which is what integrators report."""

FAILURES_BEFORE_DISABLING = 100
"""Failed requests in a row after which an HTTP integration is disabled (Gorgias help centre, "Broken or
disconnected HTTP integration")."""

Activity = Callable[["Helpdesk", tuple[str, ...], int], "list[Future[None]]"]
"""Told (helpdesk, names of the triggers, ticket id) after the change is kept; answers the deliveries it
began.
"""


class UnknownRecord(NotFound):
    """No such user, customer, ticket, integration, widget or macro in this account: 404 wherever a request
    meets it.
    """

    def __init__(self, kind: str, key: int | str) -> None:
        super().__init__(f"There is no {kind} {key}.")


class DuplicateExternalId(ValueError):
    """A message of this ticket already has this external_id."""


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds and offset, as in the API's answers."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


class Helpdesk:
    """One account. Safe to use from several threads."""

    def __init__(
        self,
        account: str,
        *,
        base_url: str,
        records: Records,
        now: Callable[[], datetime],
        on_activity: Activity,
        open_fires: bool,
    ) -> None:
        self.account = account
        self.base_url = base_url
        self.records = records
        self.now = now
        self._on_activity = on_activity
        self._open_fires = open_fires
        with records.change():
            if not self._all("users"):
                for first, last, role in (
                    ("Ada", "Okafor", "admin"),
                    ("Ben", "Lindqvist", "agent"),
                    ("Lea", "Moreau", "lite-agent"),
                ):
                    self.add_user(f"{first} {last}", email=f"{first.lower()}@{account}.example", role=role)
            if self.records.get(account, "meta", "account") is None:
                self.records.put(account, "meta", "account", {"created_datetime": timestamp(now())})

    # -- reading and keeping -------------------------------------------------------------------------------

    def _all(self, kind: str) -> list[Record]:
        return self.records.all(self.account, kind)

    def _one(self, kind: str, key: int | str) -> Record:
        record = self.records.get(self.account, kind, key)
        if record is None:
            raise UnknownRecord(kind.removesuffix("s"), key)
        return record

    def _keep(self, kind: str, record: Record) -> Record:
        self.records.put(self.account, kind, record["id"], record)
        return record

    def _stamp(self) -> str:
        return timestamp(self.now())

    def about(self) -> Record:
        """The account object of GET /api/account. There is no numeric id; `domain` is the key."""
        created = self._one("meta", "account")["created_datetime"]
        return {
            "domain": self.account,
            "created_datetime": created,
            "deactivated_datetime": None,
            "settings": [],
            "status": {"status": "active"},
        }

    # -- users ---------------------------------------------------------------------------------------------

    def users(self) -> list[Record]:
        """Everybody who works here, in the order they were added."""
        return self._all("users")

    def user(self, user_id: int) -> Record:
        """One user. Raises UnknownRecord."""
        return self._one("users", user_id)

    def user_by_email(self, email: str) -> Record | None:
        """The user with this address, whatever its case."""
        wanted = email.strip().lower()
        return next((user for user in self.users() if user["email"].lower() == wanted), None)

    def add_user(self, name: str, *, email: str, role: str) -> Record:
        """Add a user with role `admin`, `agent` or `lite-agent`."""
        first, _, last = name.partition(" ")
        with self.records.change():
            return self._keep(
                "users",
                {
                    "id": self.records.new_id(),
                    "active": True,
                    "name": name,
                    "firstname": first,
                    "lastname": last,
                    "email": email,
                    "bio": None,
                    "role": {"name": role},
                    "external_id": None,
                    "language": "en",
                    "timezone": "UTC",
                    "meta": None,
                    "created_datetime": self._stamp(),
                    "updated_datetime": self._stamp(),
                    "deactivated_datetime": None,
                },
            )

    def set_role(self, user_id: int, role: str) -> Record:
        """Give a user another role, as an admin would in the settings."""
        with self.records.change():
            user = self.user(user_id) | {"role": {"name": role}, "updated_datetime": self._stamp()}
            return self._keep("users", user)

    # -- customers -----------------------------------------------------------------------------------------

    def customers(self) -> list[Record]:
        """All customers, oldest first."""
        return self._all("customers")

    def customer(self, customer_id: int) -> Record:
        """One customer, with channels, and integrations keyed by integration id as text. Raises
        UnknownRecord.
        """
        return self._one("customers", customer_id)

    def create_customer(self, name: str, email: str | None = None, extra_emails: Iterable[str] = ()) -> Record:
        """Add a customer. `email` is the primary address; `extra_emails` only become channels."""
        first, _, last = name.partition(" ")
        addresses = [address for address in (email, *extra_emails) if address]
        with self.records.change():
            customer_id = self.records.new_id()
            channels = [
                {
                    "id": self.records.new_id(),
                    "type": "email",
                    "address": address,
                    "preferred": address == email,
                    "customer": {"id": customer_id, "name": name},
                    "created_datetime": self._stamp(),
                    "updated_datetime": self._stamp(),
                    "deleted_datetime": None,
                }
                for address in addresses
            ]
            return self._keep(
                "customers",
                {
                    "id": customer_id,
                    "name": name,
                    "firstname": first,
                    "lastname": last,
                    "email": email,
                    "external_id": None,
                    "note": None,
                    "data": None,
                    "meta": {"name_set_via": "api"},
                    "channels": channels,
                    "integrations": {},
                    "language": None,
                    "timezone": None,
                    "created_datetime": self._stamp(),
                    "updated_datetime": self._stamp(),
                },
            )

    def set_customer_email(self, customer_id: int, email: str | None) -> Record:
        """Change the primary address, as an agent does on a chat ticket that had none."""
        with self.records.change():
            customer = self.customer(customer_id)
            customer["email"] = email
            for channel in customer["channels"]:
                channel["preferred"] = channel["address"] == email
            if email and not any(channel["address"] == email for channel in customer["channels"]):
                customer["channels"].append(
                    {
                        "id": self.records.new_id(),
                        "type": "email",
                        "address": email,
                        "preferred": True,
                        "customer": {"id": customer_id, "name": customer["name"]},
                        "created_datetime": self._stamp(),
                        "updated_datetime": self._stamp(),
                        "deleted_datetime": None,
                    }
                )
            customer["updated_datetime"] = self._stamp()
            return self._keep("customers", customer)

    def set_customer_data(self, customer_id: int, data: Any, *, version: str | None) -> None:
        """Replace the custom data. A version older than the stored one is silently ignored."""
        with self.records.change():
            customer = self.customer(customer_id)
            stored = self.records.get(self.account, "customer_data_versions", customer_id) or {"version": None}
            newest = stored["version"]
            if version and newest and datetime.fromisoformat(version) < datetime.fromisoformat(newest):
                return
            customer |= {"data": data, "updated_datetime": self._stamp()}
            self._keep("customers", customer)
            self.records.put(self.account, "customer_data_versions", customer_id, {"version": version})

    def set_integration_data(self, customer_id: int, integration_id: int, data: Record) -> None:
        """Keep an integration's answer, raw, under customer.integrations["<id>"]."""
        with self.records.change():
            customer = self.customer(customer_id)
            customer["integrations"][str(integration_id)] = data
            self._keep("customers", customer)

    # -- tickets -------------------------------------------------------------------------------------------

    def tickets(self) -> list[Record]:
        """All tickets, oldest first, each with its customer, without its messages."""
        return [self._whole(ticket) for ticket in self._all("tickets")]

    def ticket(self, ticket_id: int) -> Record:
        """One ticket with customer, account.domain and messages, as templates see it."""
        return self._whole(self._one("tickets", ticket_id)) | {"messages": self.messages(ticket_id)}

    def _whole(self, ticket: Record) -> Record:
        assignee = ticket["assignee_user_id"]
        return {key: value for key, value in ticket.items() if not key.endswith("_id") or key == "external_id"} | {
            "customer": self.customer(ticket["customer_id"]),
            "assignee_user": None if assignee is None else self.user(assignee),
            "account": {"domain": self.account},
        }

    def create_ticket(
        self, customer_id: int, subject: str, text: str, *, channel: str = "email", fire: bool = True
    ) -> Record:
        """Open a ticket with the customer's first message. Fires ticket-created unless `fire` is false."""
        self.customer(customer_id)
        with self.records.change():
            ticket_id = self.records.new_id()
            self._keep(
                "tickets",
                {
                    "id": ticket_id,
                    "uri": f"/api/tickets/{ticket_id}/",
                    "external_id": None,
                    "customer_id": customer_id,
                    "assignee_user_id": None,
                    "subject": subject,
                    "excerpt": text[:255],
                    "status": "open",
                    "priority": "normal",
                    "channel": channel,
                    "via": channel,
                    "from_agent": False,
                    "language": "en",
                    "spam": False,
                    "tags": [],
                    "meta": None,
                    "messages_count": 0,
                    "created_datetime": self._stamp(),
                    "opened_datetime": None,
                    "last_message_datetime": None,
                    "updated_datetime": self._stamp(),
                    "closed_datetime": None,
                },
            )
            self.add_message(ticket_id, text, channel=channel, via=channel, fire=False)
        if fire:
            self._on_activity(self, ("ticket-created", "ticket-message-created"), ticket_id)
        return self.ticket(ticket_id)

    def update_ticket(
        self,
        ticket_id: int,
        *,
        status: str | None = None,
        assignee_user_id: int | None = None,
        customer_id: int | None = None,
        tags: Iterable[str] | None = None,
        user_id: int | None = None,
    ) -> Record:
        """Change what is given. Fires ticket-updated, and the trigger of status or assignment when that
        changed.
        """
        fired = ["ticket-updated"]
        with self.records.change():
            ticket = self._one("tickets", ticket_id)
            if status is not None and status != ticket["status"]:
                closed = self._stamp() if status == "closed" else None
                ticket |= {"status": status, "closed_datetime": closed}
                fired.append("ticket-status-updated")
                self.add_event(ticket_id, f"ticket-{status}", user_id=user_id, data={})
            if assignee_user_id is not None and assignee_user_id != ticket["assignee_user_id"]:
                ticket["assignee_user_id"] = self.user(assignee_user_id)["id"]
                fired.append("ticket-assignment-updated")
            if customer_id is not None:
                ticket["customer_id"] = self.customer(customer_id)["id"]
            if tags is not None:
                ticket["tags"] = [self._tag(name) for name in dict.fromkeys(tags)]
            ticket["updated_datetime"] = self._stamp()
            self._keep("tickets", ticket)
        self._on_activity(self, tuple(fired), ticket_id)
        return self.ticket(ticket_id)

    def add_tags(self, ticket_id: int, names: Iterable[str]) -> Record:
        """Add tags by name (case-sensitive; a new name makes a new tag). Fires ticket-updated."""
        present = [tag["name"] for tag in self._one("tickets", ticket_id)["tags"]]
        return self.update_ticket(ticket_id, tags=[*present, *names])

    def _tag(self, name: str) -> Record:
        tag = next((tag for tag in self._all("tags") if tag["name"] == name), None)
        if tag is None:
            tag = self._keep("tags", {"id": self.records.new_id(), "name": name})
        return tag

    def tags(self) -> list[Record]:
        """All tags of the account, {id, name}."""
        return self._all("tags")

    def view_ticket(self, ticket_id: int) -> list[Future[None]]:
        """What happens when an agent opens a ticket: ticket-updated fires when the sandbox is set so (UNKNOWN
        8).

        Answers the deliveries that began, so that a page can wait for them.
        """
        self._one("tickets", ticket_id)
        return self._on_activity(self, ("ticket-updated",), ticket_id) if self._open_fires else []

    # -- messages and events -------------------------------------------------------------------------------

    def messages(self, ticket_id: int) -> list[Record]:
        """The messages of a ticket, oldest first. Raises UnknownRecord when there is no such ticket."""
        self._one("tickets", ticket_id)
        return [message for message in self._all("messages") if message["ticket_id"] == ticket_id]

    def add_message(
        self,
        ticket_id: int,
        text: str,
        *,
        html: str | None = None,
        channel: str = "email",
        via: str = "helpdesk",
        from_agent: bool = False,
        sender_id: int | None = None,
        subject: str | None = None,
        external_id: str | None = None,
        extra: Mapping[str, Any] | None = None,
        fire: bool = True,
    ) -> Record:
        """Add a message and fire ticket-message-created. `channel="internal-note"` makes a note nobody
        outside sees.

        `sender_id` is a user's id when `from_agent`, else the ticket's customer is the sender.

        Raises UnknownRecord, or DuplicateExternalId when the ticket has a message with this external_id.
        """
        with self.records.change():
            ticket = self._one("tickets", ticket_id)
            if external_id is not None and any(m["external_id"] == external_id for m in self.messages(ticket_id)):
                raise DuplicateExternalId(external_id)
            sender = self.user(sender_id) if from_agent and sender_id is not None else None
            if sender is None and not from_agent:
                sender = self.customer(ticket["customer_id"])
            message_id = self.records.new_id()
            message = self._keep(
                "messages",
                {
                    "id": message_id,
                    "uri": f"/api/tickets/{ticket_id}/messages/{message_id}/",
                    "ticket_id": ticket_id,
                    "external_id": external_id,
                    "message_id": None,
                    "channel": channel,
                    "via": via,
                    "from_agent": from_agent,
                    "public": channel != "internal-note",
                    "sender": sender and {key: sender[key] for key in ("id", "email", "name", "firstname", "lastname")},
                    "receiver": None,
                    "source": None,
                    "subject": subject,
                    "body_text": text,
                    "body_html": html,
                    "stripped_text": text,
                    "attachments": [],
                    "integration_id": None,
                    "rule_id": None,
                    "meta": None,
                    "created_datetime": self._stamp(),
                    "sent_datetime": self._stamp(),
                    "failed_datetime": None,
                }
                | dict(extra or {}),
            )
            ticket |= {
                "messages_count": ticket["messages_count"] + 1,
                "last_message_datetime": self._stamp(),
                "updated_datetime": self._stamp(),
            }
            self._keep("tickets", ticket)
        if fire:
            self._on_activity(self, ("ticket-message-created",), ticket_id)
        return message

    def add_event(self, ticket_id: int, type: str, *, user_id: int | None, data: Record) -> Record:
        """Write a line into the ticket's history."""
        with self.records.change():
            return self._keep(
                "events",
                {
                    "id": self.records.new_id(),
                    "type": type,
                    "object_type": "Ticket",
                    "object_id": ticket_id,
                    "user_id": user_id,
                    "data": data,
                    "created_datetime": self._stamp(),
                },
            )

    def events(self, ticket_id: int) -> list[Record]:
        """The history of a ticket other than its messages, oldest first."""
        return [event for event in self._all("events") if event["object_id"] == ticket_id]

    # -- integrations, widgets, macros ---------------------------------------------------------------------

    def integrations(self) -> list[Record]:
        """The HTTP integrations, oldest first, without their write-only hmac_secret."""
        return self._all("integrations")

    def integration(self, integration_id: int) -> Record:
        """One integration. Raises UnknownRecord."""
        return self._one("integrations", integration_id)

    def widgets(self, context: str | None = None) -> list[Record]:
        """The sidebar widgets, low `order` first; of one context (`ticket`, `customer`) or all."""
        chosen = [widget for widget in self._all("widgets") if context in (None, widget["context"])]
        return sorted(chosen, key=lambda widget: (widget["order"], widget["id"]))

    def widget(self, widget_id: int) -> Record:
        """One widget. Raises UnknownRecord."""
        return self._one("widgets", widget_id)

    def macros(self) -> list[Record]:
        """The macros, oldest first."""
        return self._all("macros")

    def macro(self, macro_id: int) -> Record:
        """One macro. Raises UnknownRecord."""
        return self._one("macros", macro_id)

    def keep_object(self, kind: str, fields: Record, *, key: int | None = None) -> Record:
        """Create (`key` None) or replace an integration, a widget or a macro; sets id, uri and times.

        `fields` are complete and checked. An integration's `http.hmac_secret` is put aside: it is write-only.
        """
        with self.records.change():
            if key is None:
                number = self.records.new_id()
                own = {"id": number, "created_datetime": self._stamp()}
            else:
                number = key
                own = {"id": key, "created_datetime": self._one(kind, key)["created_datetime"]}
            if kind == "integrations" and "hmac_secret" in fields["http"]:
                secret = fields["http"].pop("hmac_secret")
                self.records.put(self.account, "hmac_secrets", number, {"value": secret})
            record = {"uri": f"/api/{kind}/{number}/"} | fields | own | {"updated_datetime": self._stamp()}
            if kind == "integrations" and record["deactivated_datetime"] is None and key is not None:
                self.records.delete(self.account, "failures", key)
            return self._keep(kind, record)

    def delete_object(self, kind: str, key: int) -> None:
        """Delete an integration, a widget or a macro. Raises UnknownRecord.

        An integration takes the data it stored on customers with it, and leaves its widgets and macros
        behind: that is what merchants report after uninstalling apps.
        """
        with self.records.change():
            self._one(kind, key)
            self.records.delete(self.account, kind, key)
            if kind == "integrations":
                self.records.delete(self.account, "hmac_secrets", key)
                self.records.delete(self.account, "failures", key)
                for customer in self.customers():
                    if customer["integrations"].pop(str(key), None) is not None:
                        self._keep("customers", customer)

    def hmac_secret(self, integration_id: int) -> str | None:
        """The secret an integration's calls are signed with, if it has one."""
        kept = self.records.get(self.account, "hmac_secrets", integration_id)
        return None if kept is None else kept["value"]

    def failures(self, integration_id: int) -> int:
        """Failed requests of an integration since the last one that went well."""
        return int((self.records.get(self.account, "failures", integration_id) or {"count": 0})["count"])

    def count_success(self, integration_id: int) -> None:
        """A request went well: the row of failures ends."""
        if self.failures(integration_id):
            self.records.delete(self.account, "failures", integration_id)

    def count_failure(self, integration_id: int) -> None:
        """A request failed: the 100th in a row disables the integration and leaves a notice."""
        with self.records.change():
            count = self.failures(integration_id) + 1
            self.records.put(self.account, "failures", integration_id, {"count": count})
            if count < FAILURES_BEFORE_DISABLING:
                return
            integration = self.integration(integration_id)
            if integration["deactivated_datetime"] is not None:
                return
            self._keep("integrations", integration | {"deactivated_datetime": self._stamp()})
            self._keep(
                "notices",
                {
                    "id": self.records.new_id(),
                    "to": (integration["user"] or {}).get("email"),
                    "subject": f"Your HTTP integration {integration['name']} was disabled",
                    "body": (
                        f"{count} requests in a row failed, so {integration['name']} is no longer called. "
                        "Repair the address it calls, then enable it again."
                    ),
                    "created_datetime": self._stamp(),
                },
            )

    def notices(self) -> list[Record]:
        """What Gorgias would have sent by e-mail, oldest first: {id, to, subject, body, created_datetime}."""
        return self._all("notices")

    # -- installed apps ------------------------------------------------------------------------------------

    def installations(self, client_id: str | None = None) -> list[Record]:
        """Living refresh tokens, {client_id, user_id, scope, created_datetime}, oldest first, without the
        tokens.
        """
        return [
            {name: token[name] for name in ("client_id", "user_id", "scope", "created_datetime")}
            for token in self._all("refresh_tokens")
            if not token["revoked"] and client_id in (None, token["client_id"])
        ]

    @property
    def access_generation(self) -> int:
        """How often every access token was ended; those of an earlier generation are dead."""
        return int((self.records.get(self.account, "access", "generation") or {"number": 0})["number"])

    def uninstall(self, client_id: str | None = None, *, end_access: bool = False) -> None:
        """Uninstall an app (or every app) as a merchant does in Gorgias: its refresh tokens are revoked.

        Access tokens work until they expire, and the app's integrations, widgets and macros stay. With `end_access`
        every access token ends too: whether Gorgias may come to do that is not known.
        """
        with self.records.change():
            if end_access:
                self.records.put(self.account, "access", "generation", {"number": self.access_generation + 1})
            for token in self._all("refresh_tokens"):
                if client_id in (None, token["client_id"]):
                    self.records.put(self.account, "refresh_tokens", token["token"], token | {"revoked": True})
            for consent in self._all("consents"):
                if client_id in (None, consent["client_id"]):
                    self.records.delete(self.account, "consents", f"{consent['client_id']} {consent['user_id']}")


_FIRST_MESSAGES = (
    (
        "Where is my order?",
        "Hi, I ordered last week and the tracking page has not moved since Monday. Could you have a look?",
    ),
    ("Wrong size", "Hello, the jumper is lovely but one size too small. Can I swap it for a medium?"),
    (
        "My points",
        "Hi there! I bought two things on Saturday and I think my points were not added. Thank you!",
    ),
    (
        "Discount code does not work",
        "The code from your newsletter says it has expired, but the mail came yesterday.",
    ),
    ("Damaged parcel", "The box arrived wet and one of the candles is broken. I can send photographs."),
    (
        "A question before I buy",
        "Do you know when the blue one will be back? I would also like to use my reward.",
    ),
    ("Change of address", "I moved last month. Can the next order go to the new address, please?"),
)


def load_demo(helpdesk: Helpdesk, customers: Path | None) -> None:
    """Fill a new helpdesk, once: one open ticket for each row of a Shopify customer export, one for a
    customer whom no loyalty program knows, and a chat whose customer left no e-mail.

    `customers` has the columns First Name, Last Name and Email; rows without name and e-mail are passed over.

    Raises OSError when the file cannot be read and ValueError (one sentence) when it is not such a file.
    """
    people = [] if customers is None else read_people(customers)
    with helpdesk.records.change():
        if helpdesk.records.get(helpdesk.account, "meta", "demo") is not None:
            return
        for number, (name, email) in enumerate(people):
            subject, text = _FIRST_MESSAGES[number % len(_FIRST_MESSAGES)]
            helpdesk.create_ticket(helpdesk.create_customer(name, email)["id"], subject, text, fire=False)
        stranger = helpdesk.create_customer("Nora Stranger", "nora.stranger@example.org")
        helpdesk.create_ticket(
            stranger["id"],
            "First time here",
            "Hello, I have never ordered from you before. Do you ship to Norway?",
            fire=False,
        )
        visitor = helpdesk.create_customer("Website visitor")
        helpdesk.create_ticket(
            visitor["id"],
            "Chat from the shop",
            "hi, is anybody there? quick question",
            channel="chat",
            fire=False,
        )
        helpdesk.records.put(helpdesk.account, "meta", "demo", {"loaded_datetime": timestamp(helpdesk.now())})


def read_people(customers: Path) -> list[tuple[str, str | None]]:
    """Name and address of each row of a Shopify customer export. Raises OSError and ValueError as load_demo."""
    people: list[tuple[str, str | None]] = []
    try:
        with customers.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            missing = {"First Name", "Last Name", "Email"} - set(rows.fieldnames or ())
            if missing:
                columns = ", ".join(sorted(missing))
                raise ValueError(f"{customers} is no Shopify customer export: it has no column {columns}.")
            for row in rows:
                email = (row["Email"] or "").strip()
                name = f"{row['First Name'] or ''} {row['Last Name'] or ''}".strip() or email
                if name:
                    people.append((name, email or None))
    except UnicodeDecodeError as error:
        raise ValueError(f"{customers} is no Shopify customer export: it is no UTF-8 text.") from error
    return people
