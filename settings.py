"""Every setting of Tallydesk, read once from the environment (and `.env`) into one frozen object.

All faults are reported at once, as sentences. *Development* means that the host of PUBLIC_URL is this machine
(loopback): there the secrets are made once and kept under `var/`; anywhere else a missing or weak one stops the start.
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import tempfile
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from dotenv import dotenv_values
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

ROOT = Path(__file__).resolve().parent

SECRET_HELP = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"
SEALING_HELP = "make one with: python3 -c 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())'"


class SettingsError(Exception):
    """The environment does not make a working configuration. `faults` holds one sentence for each fault."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("Tallydesk cannot start with these settings:\n" + "\n".join(f"  - {f}" for f in faults))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole configuration. URLs have no trailing slash; sizes are points; durations are seconds."""

    database_url: str = field(repr=False)
    public_url: str
    port: int
    secret_key: str = field(repr=False)
    encryption_keys: tuple[str, ...] = field(repr=False)
    gorgias_client_id: str
    gorgias_client_secret: str = field(repr=False)
    gorgias_url: str
    max_points_per_award: int
    max_points_per_agent_per_day: int
    max_points_per_connection_per_day: int
    double_click_window_s: int
    rivo_url: str
    snapshot_fresh_s: int
    snapshot_not_found_s: int
    snapshot_retention_days: int
    card_deadline_s: float
    unknown_award_resend_after_s: int
    award_retention_days: int
    forget_after_disconnect_days: int
    metrics_token: str = field(repr=False)
    worker_metrics_port: int
    sentry_dsn: str = field(repr=False)

    @property
    def development(self) -> bool:
        """Whether this is a laptop: the host of PUBLIC_URL is loopback."""
        return is_loopback(urlsplit(self.public_url).hostname)

    def gorgias_base(self, account: str) -> str:
        """The base URL of one helpdesk. `account` must already be one valid DNS label."""
        return self.gorgias_url.replace("{account}", account)


def is_loopback(host: str | None) -> bool:
    """Whether `host` names this very machine: localhost, *.localhost, 127.0.0.0/8 or ::1."""
    if not host:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Environment(Schema):
    """What each variable may hold. Every message is the end of a sentence that begins with the variable's name."""

    class Meta:
        unknown = EXCLUDE

    DATABASE_URL = fields.String(load_default="")
    PUBLIC_URL = fields.String(load_default="")
    PORT = fields.Integer(
        load_default=8000,
        error_messages={"invalid": "must be a number."},
        validate=validate.Range(1, 65535, error="must lie between 1 and 65535."),
    )
    SECRET_KEY = fields.String(load_default="")
    ENCRYPTION_KEYS = fields.String(load_default="")
    GORGIAS_CLIENT_ID = fields.String(load_default="")
    GORGIAS_CLIENT_SECRET = fields.String(load_default="")
    GORGIAS_URL = fields.String(load_default="https://{account}.gorgias.com")
    MAX_POINTS_PER_AWARD = fields.Integer(load_default=1_000)
    MAX_POINTS_PER_AGENT_PER_DAY = fields.Integer(load_default=10_000)
    MAX_POINTS_PER_CONNECTION_PER_DAY = fields.Integer(load_default=50_000)
    DOUBLE_CLICK_WINDOW_S = fields.Integer(load_default=60)
    RIVO_URL = fields.String(load_default="https://developer-api.rivo.io/merchant_api/v1")
    SNAPSHOT_FRESH_S = fields.Integer(load_default=60)
    SNAPSHOT_NOT_FOUND_S = fields.Integer(load_default=30)
    SNAPSHOT_RETENTION_DAYS = fields.Integer(load_default=30)
    CARD_DEADLINE_S = fields.Float(
        load_default=2.5,
        error_messages=dict.fromkeys(("invalid", "special"), "must be a number of seconds, such as 2.5."),
        validate=validate.Range(0.5, 4.5, error="must lie between 0.5 and 4.5: Gorgias waits five seconds."),
    )
    UNKNOWN_AWARD_RESEND_AFTER_S = fields.Integer(load_default=45)
    AWARD_RETENTION_DAYS = fields.Integer(load_default=730)
    FORGET_AFTER_DISCONNECT_DAYS = fields.Integer(load_default=30)
    METRICS_TOKEN = fields.String(
        load_default="",
        validate=validate.Length(16, error="must have at least 16 characters, or be left empty."),
    )
    WORKER_METRICS_PORT = fields.Integer(
        load_default=0,
        error_messages={"invalid": "must be a number."},
        validate=validate.Range(0, 65535, error="must lie between 1 and 65535, or be 0 for none."),
    )
    SENTRY_DSN = fields.String(
        load_default="",
        validate=validate.Regexp(r"https://[^@\s]+@[^@\s]+", error="must be the https address that Sentry shows."),
    )


MAX_POINTS = 2_000_000_000  # what the database's columns and the console's form hold

# The lowest value where it is not 1: longer than the worker's own wait for an answer of the program.
_LOWEST = {"UNKNOWN_AWARD_RESEND_AFTER_S": 15}

# The highest value of each number.
_HIGHEST = {
    "MAX_POINTS_PER_AWARD": MAX_POINTS,
    "MAX_POINTS_PER_AGENT_PER_DAY": MAX_POINTS,
    "MAX_POINTS_PER_CONNECTION_PER_DAY": MAX_POINTS,
    "DOUBLE_CLICK_WINDOW_S": 86_400,
    "SNAPSHOT_FRESH_S": 86_400,
    "SNAPSHOT_NOT_FOUND_S": 3_600,
    "SNAPSHOT_RETENTION_DAYS": 3_650,
    "UNKNOWN_AWARD_RESEND_AFTER_S": 3_600,
    "AWARD_RETENTION_DAYS": 3_650,
    "FORGET_AFTER_DISCONNECT_DAYS": 365,
}


def from_environment() -> Settings:
    """Settings of this process: the environment first, then `.env` beside the code. Raises SettingsError."""
    dotenv = {name: value for name, value in dotenv_values(ROOT / ".env").items() if value is not None}
    return load({**dotenv, **os.environ}, var=ROOT / "var")


def load(environment: Mapping[str, str], *, var: Path) -> Settings:
    """Read and check `environment`; an empty variable counts as absent.

    `var` is the folder for what a laptop keeps: the SQLite file and the secrets made on first use.
    Raises SettingsError with every fault at once.
    """
    given = {name: value.strip() for name, value in environment.items() if value.strip()}
    faults: list[str] = []
    try:
        values: dict[str, Any] = _Environment().load(given)
    except ValidationError as error:
        messages = cast("dict[str, list[str]]", error.messages)
        faults += [f"{name} {' '.join(told).replace('Not a valid integer.', 'must be a whole number.')}"
                   for name, told in messages.items()]  # fmt: skip
        values = _Environment().load({name: value for name, value in given.items() if name not in messages})

    port = values["PORT"]
    public_url = values["PUBLIC_URL"].rstrip("/") or f"http://localhost:{port}"
    gorgias_url = values["GORGIAS_URL"].rstrip("/")
    rivo_url = values["RIVO_URL"].rstrip("/")
    development = is_loopback(_hostname(public_url))

    faults += _url_faults("PUBLIC_URL", public_url, https=not development)
    faults += _url_faults("GORGIAS_URL", gorgias_url, https=not development)
    faults += _url_faults("RIVO_URL", rivo_url, https=not development)
    if gorgias_url.count("{account}") != 1:
        faults.append("GORGIAS_URL must contain {account} once, where the account's name goes.")
    if "/" in public_url.partition("://")[2]:
        faults.append("PUBLIC_URL must be a host without a path: pages and Gorgias find everything from its root.")
    faults += [
        f"{name} must lie between {_LOWEST.get(name, 1)} and {highest:,}."
        for name, highest in _HIGHEST.items()
        if not _LOWEST.get(name, 1) <= values[name] <= highest
    ]

    secret_key = values["SECRET_KEY"]
    # Fernet writes base64 with - and _; platforms that make secrets themselves write the same bytes with + and /.
    urlsafe = values["ENCRYPTION_KEYS"].replace("+", "-").replace("/", "_")
    encryption_keys = tuple(key.strip() for key in urlsafe.split(",") if key.strip())
    if development and not (secret_key and encryption_keys):
        try:
            made = _development_secrets(var / "secrets.json")
        except OSError as error:
            faults.append(
                f"The folder {var} cannot be written ({error.strerror}): make it writable, "
                "or set SECRET_KEY and ENCRYPTION_KEYS."
            )
        except (ValueError, TypeError, KeyError):
            # Never made anew by itself: what was sealed with the lost keys would be lost with them.
            faults.append(
                f"The file {var / 'secrets.json'} is damaged: restore it, or delete it together with the database "
                "beside it, whose secrets only it can open."
            )
        else:
            secret_key = secret_key or made["SECRET_KEY"]
            encryption_keys = encryption_keys or (made["ENCRYPTION_KEYS"],)
    if not development or secret_key:
        faults += _secret_faults(secret_key)
    if not development or encryption_keys:
        faults += _sealing_faults(encryption_keys)
    if not development:
        for name in ("GORGIAS_CLIENT_ID", "GORGIAS_CLIENT_SECRET"):
            if not values[name]:
                faults.append(f"{name} is missing: copy it from your app in the Gorgias developer portal.")

    database_url = values["DATABASE_URL"] or f"sqlite:///{var / 'tallydesk.db'}"
    # Hosts such as Heroku hand out postgres://, a scheme that SQLAlchemy no longer reads.
    for scheme in ("postgres://", "postgresql://"):
        if database_url.startswith(scheme):
            database_url = "postgresql+psycopg://" + database_url.removeprefix(scheme)
    if not database_url.startswith(("sqlite:///", "postgresql+psycopg://")):
        faults.append("DATABASE_URL must begin with sqlite:/// or postgresql://.")

    if faults:
        raise SettingsError(faults)
    return Settings(
        database_url=database_url,
        public_url=public_url,
        port=port,
        secret_key=secret_key,
        encryption_keys=encryption_keys,
        gorgias_client_id=values["GORGIAS_CLIENT_ID"],
        gorgias_client_secret=values["GORGIAS_CLIENT_SECRET"],
        gorgias_url=gorgias_url,
        max_points_per_award=values["MAX_POINTS_PER_AWARD"],
        max_points_per_agent_per_day=values["MAX_POINTS_PER_AGENT_PER_DAY"],
        max_points_per_connection_per_day=values["MAX_POINTS_PER_CONNECTION_PER_DAY"],
        double_click_window_s=values["DOUBLE_CLICK_WINDOW_S"],
        rivo_url=rivo_url,
        snapshot_fresh_s=values["SNAPSHOT_FRESH_S"],
        snapshot_not_found_s=values["SNAPSHOT_NOT_FOUND_S"],
        snapshot_retention_days=values["SNAPSHOT_RETENTION_DAYS"],
        card_deadline_s=values["CARD_DEADLINE_S"],
        unknown_award_resend_after_s=values["UNKNOWN_AWARD_RESEND_AFTER_S"],
        award_retention_days=values["AWARD_RETENTION_DAYS"],
        forget_after_disconnect_days=values["FORGET_AFTER_DISCONNECT_DAYS"],
        metrics_token=values["METRICS_TOKEN"],
        worker_metrics_port=values["WORKER_METRICS_PORT"],
        sentry_dsn=values["SENTRY_DSN"],
    )


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _url_faults(name: str, url: str, *, https: bool) -> list[str]:
    host = _hostname(url.replace("{account}", "account"))
    if not host or not url.startswith(("http://", "https://")):
        return [f"{name} must be a full address such as https://loyalty.example.com."]
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.username:
        return [f"{name} must be a plain address, without a user, a query or a fragment."]
    if https and not url.startswith("https://"):
        return [f"{name} must begin with https://, because it is not on this machine."]
    return []


def _secret_faults(secret_key: str) -> list[str]:
    if not secret_key:
        return [f"SECRET_KEY is missing: {SECRET_HELP}"]
    if len(secret_key) < 32 or len(set(secret_key)) < 12:
        return [f"SECRET_KEY is too weak: {SECRET_HELP}"]
    return []


def _sealing_faults(keys: tuple[str, ...]) -> list[str]:
    if not keys:
        return [f"ENCRYPTION_KEYS is missing: {SEALING_HELP}"]
    faults = []
    for position, key in enumerate(keys, start=1):
        try:
            Fernet(key)
            weak = len(set(urlsafe_b64decode(key))) < 12
        except ValueError:
            weak = True
        if weak:
            faults.append(f"ENCRYPTION_KEYS, key {position}, is not a good Fernet key: {SEALING_HELP}")
    return faults


def _development_secrets(path: Path) -> dict[str, str]:
    """The laptop's secrets, made once. Two processes starting at once agree: the first to link its file wins."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = {
            "SECRET_KEY": secrets.token_urlsafe(48),
            "ENCRYPTION_KEYS": Fernet.generate_key().decode(),
        }
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".secrets-") as draft:
            json.dump(made, draft)
            draft.flush()
            os.fsync(draft.fileno())
            with suppress(FileExistsError):
                os.link(draft.name, path)
    kept = json.loads(path.read_text())
    return {"SECRET_KEY": str(kept["SECRET_KEY"]), "ENCRYPTION_KEYS": str(kept["ENCRYPTION_KEYS"])}
