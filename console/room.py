"""What the console works with, and the words in which its requests end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import requests
from flask_wtf import CSRFProtect

from loyalty.awards import Awards
from loyalty.members import Members
from loyalty.rivo_program import Rivo
from loyalty.snapshots import Snapshots
from loyalty.stores import Stores
from notices import Notices
from oauth.accounts import Accounts
from oauth.gorgias_api import GorgiasApi
from settings import Settings
from storage.database import Database
from storage.sealing import Hasher, RandomBytes, Sealer
from troubles import Troubles
from widget.connections import Connections
from widget.leaving import Leaving
from widget.placement import Placement
from widget.probe import Probe


@dataclass(frozen=True, kw_only=True)
class ConsoleRoom:
    """What this room needs from the front door."""

    settings: Settings
    database: Database
    accounts: Accounts
    connections: Connections
    placement: Placement
    leaving: Leaving
    probe: Probe
    troubles: Troubles
    notices: Notices
    http: requests.Session
    members: Members
    awards: Awards
    rivo: Rivo
    stores: Stores
    snapshots: Snapshots
    sealer: Sealer
    hasher: Hasher
    csrf: CSRFProtect
    api_for: Callable[[int, str], GorgiasApi]
    now: Callable[[], datetime]
    random_bytes: RandomBytes


class Outcome(StrEnum):
    """How a request to the console ended; where a room below has a word for it, that word counts instead."""

    SHOWN = "shown"
    DONE = "done"
    FORM_INVALID = "form_invalid"
    FORM_TOO_OLD = "form_too_old"
    KEY_IN_USE = "key_in_use"
    SIGN_IN_NEEDED = "sign_in_needed"
    ADMIN_NEEDED = "admin_needed"
    ROLE_UNREADABLE = "role_unreadable"
    LEFT_HELPDESK = "left_helpdesk"
    ACCESS_LOST = "access_lost"
    LEFT_OVER = "left_over"
    NOT_HERE = "not_here"
