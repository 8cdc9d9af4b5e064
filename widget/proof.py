"""A lookup exactly as Gorgias makes it: over the network, at our public address, with the connection's key.

What an admin sees on the connection's page is thereby proven from the front door to the ledger, not assembled inside.
"""

from __future__ import annotations

from typing import Any

import orjson
import requests

from widget.connections import Connection, Connections
from widget.template import KEY_HEADER

TIMEOUTS_S = (3.05, 5.0)  # connect, read


class NotProven(Exception):
    """The lookup did not come back as it should; the text says what to look at."""


def look_up(
    email: str, *, connection: Connection, connections: Connections, public_url: str, session: requests.Session
) -> dict[str, Any]:
    """The card that Gorgias would get for `email` as typed. Raises NotProven."""
    headers = {KEY_HEADER: connections.newest_keys(connection.id).lookup}
    try:
        response = session.get(
            f"{public_url}/widget/customer",
            params={"email": email},
            headers=headers,
            timeout=TIMEOUTS_S,
            allow_redirects=False,
        )
        card = orjson.loads(response.content)
    except requests.RequestException as error:
        raise NotProven(
            f"This service could not call itself at {public_url}. Gorgias calls the same address: check that "
            "PUBLIC_URL is right and reachable. If only this machine cannot reach it, agents see the card all the same."
        ) from error
    except orjson.JSONDecodeError as error:
        raise NotProven(f"Something else than Tallydesk answers at {public_url}. Check PUBLIC_URL.") from error
    if response.status_code != 200 or not isinstance(card, dict):
        raise NotProven(f"The lookup at {public_url} answered {response.status_code}. Press Repair, then try again.")
    return card
