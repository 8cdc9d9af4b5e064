"""What the sandbox's rooms share: helpdesks, stores at Rivo, tokens, deliveries, and who is signed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flask import has_request_context, request

from sandbox.deliveries import ActionResult, Deliveries, Delivery
from sandbox.records import Record, Records
from sandbox.rivo import RivoStore
from sandbox.state import Helpdesk
from sandbox.tokens import Tokens

FIRST_PAINT_S = 3.0


@dataclass(eq=False, kw_only=True)
class Runtime:
    """What the sandbox's pages and endpoints share."""

    url: str
    accounts: tuple[str, ...]
    client_id: str
    client_secret: str
    redirect_urls: tuple[str, ...]
    app_url: str
    app_name: str
    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    calls_per_20_s: int
    rotate_refresh_tokens: bool
    records: Records
    tokens: Tokens
    deliveries: Deliveries
    rivo_calls_per_s: int | None
    rivo_retry_after: bool
    helpdesks: dict[str, Helpdesk] = field(default_factory=dict)
    rivo_stores: dict[str, RivoStore] = field(default_factory=dict)

    def helpdesk(self, account: str) -> Helpdesk | None:
        """The account's helpdesk, or None."""
        return self.helpdesks.get(account)

    def rivo_store_of(self, authorization: str | None) -> RivoStore | None:
        """The store of Rivo that this raw `Authorization` header opens, or None."""
        return next((store for store in self.rivo_stores.values() if store.key == authorization), None)

    def app_url_for(self, account: str) -> str:
        """Where *Connect App* leads: the App URL with the account in place of {gorgias_account}."""
        return self.app_url.replace("{gorgias_account}", account)

    def current_user(self, account: str) -> Record | None:
        """The user who is signed in to this account in the browser of the present request, or None."""
        helpdesk = self.helpdesk(account)
        chosen = request.cookies.get(f"sandbox_{account}", "") if has_request_context() else ""
        users = helpdesk.users() if helpdesk else []
        return next((user for user in users if str(user["id"]) == chosen), None)

    def view_ticket(self, account: str, ticket_id: int) -> None:
        """Open a ticket as an agent does. Waits up to 3 seconds for the integrations this calls.

        Raises UnknownRecord.
        """
        self.deliveries.wait(self.helpdesks[account].view_ticket(ticket_id), FIRST_PAINT_S)

    def run_action(
        self,
        helpdesk: Helpdesk,
        action: Mapping[str, Any],
        *,
        fields: Mapping[str, str],
        ticket_id: int | None,
        customer_id: int,
        user_id: int,
    ) -> ActionResult:
        """Send a widget button's request; see Deliveries.run_action."""
        return self.deliveries.run_action(
            helpdesk, action, fields=fields, ticket_id=ticket_id, customer_id=customer_id, user_id=user_id
        )

    def events(self, ticket_id: int) -> list[Record]:
        """The history of a ticket, of whichever account it is (ids are never used twice)."""
        return [event for helpdesk in self.helpdesks.values() for event in helpdesk.events(ticket_id)]

    def notices(self, account: str) -> list[Record]:
        """What Gorgias would have sent to this account's users by e-mail."""
        return self.helpdesks[account].notices()

    def delivery_log(self, integration_id: int) -> list[Delivery]:
        """The latest requests of an HTTP integration, oldest first."""
        return self.deliveries.log(integration_id)
