"""What we put into Gorgias, as data: the HTTP integration, the widgets with their buttons, the ready-made macro.

Pure: built from a connection and its keys. Sources: https://developers.gorgias.com/reference/integrations,
https://developers.gorgias.com/reference/widgets; shapes of buttons and macros as seen in public integrations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from loyalty.program import ProgramKind
from widget.connections import Connection, Keys

# Hyphens: the underscored spelling in older pages makes an integration that never fires.
TRIGGERS = ("ticket-created", "ticket-updated", "ticket-message-created")
KEY_HEADER = "X-Api-Key"
CONTEXTS = ("ticket", "customer")

# Keys of the card with their titles, in the order in which agents read them.
FIELDS = (
    ("loyalty_status", "Status"),
    ("points_balance", "Points balance"),
    ("points_expire_at", "Points expire"),
    ("store_credit_balance", "Store credit"),
    ("vip_tier_name", "VIP tier"),
    ("lifetime_points", "Lifetime points"),
    ("referral_url", "Referral link"),
    ("date_of_birth", "Date of birth"),
)
# The ledger has neither: a row without a value would stand in every card.
NOT_IN_LEDGER = ("points_expire_at", "store_credit_balance")
IN_MACROS = ("loyalty_status", "points_balance", "vip_tier_name", "referral_url")


def lookup_url(public_url: str) -> str:
    """The integration's address. Put together as text: a URL library would encode the braces, ending substitution."""
    return public_url + "/widget/customer?email={{ticket.customer.email}}"


def award_url(connection: Connection, *, context: str, public_url: str) -> str:
    """Where the card's link leads: to the page on which a signed-in agent adds points. It never carries an address.

    UNKNOWN at Gorgias: whether a card's link resolves `{{award_key}}` against the card's own data, as public widgets do
    with their fields, and `{{ticket.id}}` beside it. This is the one place that assumes it. What arrives unresolved the
    page takes for missing, and asks for the customer.
    """
    url = f"{public_url}/connections/{connection.id}/award?award_key={{{{award_key}}}}"
    return url + "&ticket_id={{ticket.id}}" if context == "ticket" else url


def signature(connection: Connection) -> str:
    """What stands in the name of everything that is ours, for people."""
    return f"Tallydesk {connection.id}"


def integration_name(connection: Connection) -> str:
    """The integration's name, as merchants read it in Gorgias."""
    return f"Loyalty ({signature(connection)})"


def marker(connection: Connection) -> str:
    """What the integration is found by in Gorgias when its id is not known here."""
    return f"Tallydesk connection {connection.id}"


def card_title(connection: Connection) -> str:
    """What agents read above the card. Several cards beside one ticket must be told apart, and an account has one
    ledger but may have several Rivo stores."""
    return "Loyalty" if connection.store.program is ProgramKind.LEDGER else f"Loyalty · Rivo {connection.id}"


def rows_of(connection: Connection) -> list[tuple[str, str]]:
    """The plain rows of the card, as (key, title)."""
    left_out = set(NOT_IN_LEDGER) if connection.store.program is ProgramKind.LEDGER else set()
    if not connection.show_date_of_birth:
        left_out.add("date_of_birth")
    return [(path, title) for path, title in FIELDS if path not in left_out]


def integration_body(connection: Connection, *, keys: Keys, public_url: str) -> dict[str, Any]:
    """The full integration, for POST and PUT alike."""
    return {
        "name": integration_name(connection),
        "type": "http",
        "description": f"{marker(connection)}. Made by Tallydesk: shows loyalty in the sidebar. "
        "Changes here are put right by Repair.",
        "deactivated_datetime": None,
        "http": {
            "url": lookup_url(public_url),
            "method": "GET",
            "headers": {KEY_HEADER: keys.lookup},
            "form": None,
            "request_content_type": "application/json",
            "response_content_type": "application/json",
            "triggers": dict.fromkeys(TRIGGERS, True),
        },
    }


def widget_body(
    connection: Connection, *, context: str, integration_id: int, keys: Keys, public_url: str
) -> dict[str, Any]:
    """The full widget for `context`, `ticket` or `customer`: tickets' widgets do not show on the customers page."""
    rows: list[dict[str, Any]] = [
        {"type": "text", "path": path, "title": title, "order": order}
        for order, (path, title) in enumerate(rows_of(connection))
    ]
    rows.append(
        {
            "type": "list",
            "path": "recent_activity",
            "order": len(rows),
            "meta": {"limit": "5", "orderBy": ""},
            "widgets": [
                {
                    "type": "card",
                    "title": "{{what}}",
                    "meta": {"displayCard": True},
                    "widgets": [
                        {"type": "text", "path": "points", "title": "Points", "order": 0},
                        {"type": "date", "path": "when", "title": "When", "order": 1},
                    ],
                }
            ],
        }
    )
    rows.append({"type": "date", "path": "as_of", "title": "As of", "order": len(rows)})
    return {
        "type": "http",
        "context": context,
        "integration_id": integration_id,
        "order": 0,
        "template": {
            "type": "wrapper",
            "widgets": [
                {
                    "type": "card",
                    "path": "",
                    "title": card_title(connection),
                    "order": 0,
                    "meta": {
                        "displayCard": True,
                        "custom": {
                            "links": [
                                {
                                    "label": "Add points in Tallydesk",
                                    "url": award_url(connection, context=context, public_url=public_url),
                                },
                                {
                                    "label": "Activity in Tallydesk",
                                    "url": f"{public_url}/connections/{connection.id}/activity",
                                },
                            ],
                            "buttons": _buttons(connection, context=context, integration_id=integration_id,
                                                keys=keys, public_url=public_url),
                        },
                    },
                    "widgets": rows,
                }
            ],
        },
    }  # fmt: skip


def _buttons(
    connection: Connection, *, context: str, integration_id: int, keys: Keys, public_url: str
) -> list[dict[str, Any]]:
    rules = connection.rules
    reason = _editable(
        "reason",
        label="Reason",
        kind="dropdown" if rules.reasons else "string",
        mandatory=False,
        options=rules.reasons,
    )

    def button(label: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "label": label,
            "action": {
                "method": "POST",
                "url": f"{public_url}/widget/earnings",
                "headers": [{"key": KEY_HEADER, "value": keys.award}],
                "params": [],
                "body": {
                    "contentType": "application/x-www-form-urlencoded",
                    "application/json": {},
                    "application/x-www-form-urlencoded": entries
                    + _known(context=context, integration_id=integration_id),
                },
            },
        }

    presets = [
        button(f"Add {points:,} points", [{"key": "points", "value": str(points)}]) for points in connection.presets
    ]
    made = [button("Add Earnings", [_editable("points", label="Points", kind="number", mandatory=True), reason])]
    if rules.max_credit_cents_per_award:
        # Text: a browser's number field may take whole numbers alone.
        amount = _editable("store_credit", label="Store credit", kind="string", mandatory=True)
        made.append(button("Add Store Credit", [amount, reason]))
    return made + presets


def _editable(key: str, *, label: str, kind: str, mandatory: bool, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """A value that the agent enters when the button is pressed.

    UNKNOWN at Gorgias: the shape of such an entry is in no public source. This is the one place that assumes it; build
    a button by hand under "Edit widgets", read it with GET /api/widgets/{id}, mend it here. Preset buttons need none.
    """
    entry = {"key": key, "value": "", "label": label, "type": kind, "editable": True, "mandatory": mandatory}
    return {**entry, "options": list(options)} if options else entry


def _known(*, context: str, integration_id: int) -> list[dict[str, Any]]:
    """What Gorgias fills in.

    UNKNOWN at Gorgias: which variables resolve in a button's body beyond `ticket.id` and `ticket.customer.email`. Those
    that do not arrive empty or as `{{…}}`, and the award works without them.
    """
    customer = "ticket.customer" if context == "ticket" else "customer"
    values = {
        "email": f"{{{{{customer}.email}}}}",
        "award_key": f"{{{{{customer}.integrations[{integration_id}].award_key}}}}",
        "agent_email": "{{current_user.email}}",
    }
    if context == "ticket":
        values["ticket_id"] = "{{ticket.id}}"
    return [{"key": key, "value": value} for key, value in values.items()]


def macro_variables(integration_id: int) -> dict[str, str]:
    """The four fields as macro variables of this very connection: the id differs for every merchant."""
    return {
        title: f"{{{{ticket.customer.integrations[{integration_id}].{path}}}}}"
        for path, title in FIELDS
        if path in IN_MACROS
    }


def macro_body(connection: Connection, *, integration_id: int) -> dict[str, Any]:
    """The ready-made macro."""
    variables = macro_variables(integration_id)
    lines = [
        "Hi {{ticket.customer.firstname}},",
        "",
        f"here is where you stand in our loyalty program: {variables['Points balance']} points, "
        f"status {variables['Status']}, VIP tier {variables['VIP tier']}.",
        f"Share your referral link with a friend: {variables['Referral link']}",
    ]
    return {
        "name": macro_name(connection),
        "actions": [
            {
                "name": "setResponseText",
                "title": "Add response text",
                "type": "user",
                "arguments": {"body_text": "\n".join(lines), "body_html": "<br>".join(lines)},
            }
        ],
    }


def macro_name(connection: Connection) -> str:
    """The macro's name, by which it is found again."""
    return f"Loyalty summary ({signature(connection)})"


def digest(*bodies: Mapping[str, Any]) -> str:
    """A fingerprint of what belongs into Gorgias, to see whether our side has changed since it was put there."""
    return hashlib.sha256(json.dumps(bodies, sort_keys=True).encode()).hexdigest()
