"""What we put into Gorgias, as data: the HTTP integration, the widgets with their buttons, the ready-made macro.

Pure: built from a connection and its keys. Sources: https://developers.gorgias.com/reference/integrations,
https://developers.gorgias.com/reference/widgets; shapes of buttons and macros as seen in public integrations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from widget.connections import Connection, Keys

# Hyphens: the underscored spelling in older pages makes an integration that never fires.
TRIGGERS = ("ticket-created", "ticket-updated", "ticket-message-created")
KEY_HEADER = "X-Api-Key"
CONTEXTS = ("ticket", "customer")

FIELDS = (
    ("loyalty_status", "Status", "text"),
    ("points_balance", "Points balance", "text"),
    ("vip_tier_name", "VIP tier", "text"),
    ("lifetime_points", "Lifetime points", "text"),
    ("referral_url", "Referral link", "text"),
)


def lookup_url(public_url: str) -> str:
    """The integration's address. Put together as text: a URL library would encode the braces, ending substitution."""
    return public_url + "/widget/customer?email={{ticket.customer.email}}"


def signature(connection: Connection) -> str:
    """What stands in the name of everything that is ours, for people."""
    return f"Tallydesk {connection.id}"


def marker(connection: Connection) -> str:
    """What the integration is found by in Gorgias when its id is not known here."""
    return f"Tallydesk connection {connection.id}"


def integration_body(connection: Connection, *, keys: Keys, public_url: str) -> dict[str, Any]:
    """The full integration, for POST and PUT alike."""
    return {
        "name": f"Loyalty ({signature(connection)})",
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
        {"type": kind, "path": path, "title": title, "order": order} for order, (path, title, kind) in enumerate(FIELDS)
    ]
    if connection.show_date_of_birth:
        rows.append({"type": "text", "path": "date_of_birth", "title": "Date of birth", "order": len(rows)})
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
                    "title": "Loyalty",
                    "order": 0,
                    "meta": {
                        "displayCard": True,
                        "custom": {
                            "links": [
                                {
                                    "label": "Activity in Tallydesk",
                                    "url": f"{public_url}/connections/{connection.id}/activity",
                                }
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
    asked = [_editable("points", label="Points", kind="number", mandatory=True)]
    reasons = connection.rules.reasons
    asked.append(
        _editable(
            "reason",
            label="Reason",
            kind="dropdown" if reasons else "string",
            mandatory=False,
            options=reasons,
        )
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
    return [button("Add Earnings", asked), *presets]


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
        for path, title, _ in FIELDS
        if path in ("points_balance", "loyalty_status", "referral_url", "vip_tier_name")
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
