"""The tables, as SQLAlchemy Core metadata; the migrations in `migrations/` bring a database to this shape.

Secrets and e-mails are never stored plain: `*_sealed` columns hold Fernet tokens, `*_hmac` and `*_hash` columns what
they are found by. Times are UTC, stored as whole microseconds since 1970, alike on SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class UtcTime(TypeDecorator[datetime]):
    """A time-zone-aware datetime, stored as integer microseconds. SQLite's own DateTime forgets the zone."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - EPOCH) // MICROSECOND

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        """Not process_result_value, which SQLAlchemy calls through another function for every value."""
        return _time_of


def _time_of(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else EPOCH + timedelta(microseconds=microseconds)


# SQLite gives automatic ids to INTEGER keys only.
Id = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

app_keys = Table(
    "app_keys",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("sealed", Text, nullable=False),
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("state", String(20), nullable=False),
    Column("state_reason", String(60)),
    Column("access_token_sealed", Text),
    Column("refresh_token_sealed", Text),
    Column("access_expires_at", UtcTime),
    # Half of the token's life: from then on it is refreshed ahead of time.
    Column("refresh_at", UtcTime, index=True),
    # When Gorgias first refused to refresh while the access token still lived; a second refusal confirms it.
    Column("refused_at", UtcTime),
    # Since when refreshing fails without being refused: an answer that held new tokens may have been lost.
    Column("failing_since", UtcTime),
    # Which app of ours the tokens were given to: Gorgias refuses those of another as if it were uninstalled.
    Column("client_hash", String(64)),
    Column("token_version", Integer, nullable=False, server_default=text("0")),
    Column("lease_owner", String(40)),
    Column("lease_until", UtcTime),
    Column("user_email_sealed", Text),
    Column("connected_at", UtcTime, nullable=False),
    Column("disconnected_at", UtcTime),
    # When personal data was erased after it was disconnected; said again after each later time.
    Column("forgotten_at", UtcTime),
    # What could not be taken out of Gorgias and has to be deleted there by hand: a list of sentences.
    Column("left_over", JSON),
    Column("probed_at", UtcTime, index=True),
    # Where the merchant wants to be told of trouble; whoever knows such an address may often write to it.
    Column("notice_url_sealed", Text),
    Column("updated_at", UtcTime, nullable=False),
)

oauth_states = Table(
    "oauth_states",
    metadata,
    Column("state_hash", String(64), primary_key=True),
    Column("browser_hash", String(64), nullable=False),
    Column("account", String(63), nullable=False),
    Column("purpose", String(20), nullable=False),
    Column("nonce", String(64), nullable=False),
    # The page the person came from, with its award key: sealed, since whoever has the key may award with it.
    Column("return_to_sealed", Text),
    Column("expires_at", UtcTime, nullable=False, index=True),
)

stores = Table(
    "stores",
    metadata,
    Column("id", Id, primary_key=True),
    Column("program", String(20), nullable=False),
    # What makes a store that very store, e.g. one embedded ledger for each account: choosing it twice finds it.
    Column("identity", String(120), nullable=False, unique=True),
    Column("storefront_url", String(300)),
    # The key of a program elsewhere. The version tells an answer to the present key from one to its predecessor.
    Column("key_sealed", Text),
    Column("key_version", Integer, nullable=False, server_default=text("0")),
    Column("key_state", String(20), nullable=False, server_default=text("'ok'")),
    Column("key_state_since", UtcTime),
    Column("webhook_secret_sealed", Text),
    # Goes on counting while the merchant brings the new one into the program.
    Column("old_webhook_secret_sealed", Text),
    Column("created_at", UtcTime, nullable=False),
)

# Whether a program elsewhere may be called now; one row for each of its stores, found by a keyed hash of the key.
gates = Table(
    "gates",
    metadata,
    Column("name", String(80), primary_key=True),
    # Times of the latest calls, microseconds since 1970: all of them, and those of background work.
    Column("calls", JSON, nullable=False),
    Column("background_calls", JSON, nullable=False),
    Column("paused_until", UtcTime),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("open_until", UtcTime),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Id, primary_key=True),
    Column("store_id", Id, ForeignKey("stores.id"), nullable=False),
    Column("email_hmac", String(32), nullable=False),
    # Empty while somebody asks for the first time; `not_found` holds nothing but the fact and its time.
    Column("state", String(10)),
    Column("email_sealed", Text),
    Column("shown", JSON),
    Column("date_of_birth_sealed", Text),
    Column("as_of", UtcTime),
    # When it became known that the program has something newer.
    Column("outdated_at", UtcTime),
    Column("lease_owner", String(40)),
    Column("lease_until", UtcTime),
    Column("touched_at", UtcTime, nullable=False, index=True),
    UniqueConstraint("store_id", "email_hmac"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Id, primary_key=True),
    Column("store_id", Id, ForeignKey("stores.id"), nullable=False),
    Column("delivery_hash", String(64), nullable=False),
    Column("received_at", UtcTime, nullable=False, index=True),
    UniqueConstraint("store_id", "delivery_hash"),
)

connections = Table(
    "connections",
    metadata,
    Column("id", Id, primary_key=True),
    Column("account_id", Id, ForeignKey("accounts.id"), nullable=False),
    Column("store_id", Id, ForeignKey("stores.id"), nullable=False, index=True),
    Column("state", String(20), nullable=False),
    Column("integration_id", BigInteger),
    Column("ticket_widget_id", BigInteger),
    Column("customer_widget_id", BigInteger),
    Column("macro_id", BigInteger),
    # Digest of what was last put into Gorgias; a difference means that our side has changed since.
    Column("placed_digest", String(64)),
    Column("placement_problem", String(60)),
    Column("lease_owner", String(40)),
    Column("lease_until", UtcTime),
    Column("max_points_per_award", Integer, nullable=False),
    Column("max_points_per_agent_per_day", Integer, nullable=False),
    Column("max_points_per_day", Integer, nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("presets", JSON, nullable=False),
    Column("allow_guests", Boolean, nullable=False),
    # Store credit in hundredths; 0 means that agents may give none.
    Column("max_credit_cents_per_award", BigInteger, nullable=False, server_default=text("0")),
    Column("max_credit_cents_per_day", BigInteger, nullable=False, server_default=text("0")),
    Column("show_date_of_birth", Boolean, nullable=False),
    # Until when the requests of Gorgias are recorded for the inspector.
    Column("inspect_until", UtcTime),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("account_id", "store_id"),
)

connection_keys = Table(
    "connection_keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("connection_id", Id, ForeignKey("connections.id"), nullable=False, index=True),
    Column("purpose", String(10), nullable=False),
    Column("key_hash", String(64), nullable=False, unique=True),
    Column("key_sealed", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("id", Id, primary_key=True),
    Column("store_id", Id, ForeignKey("stores.id"), nullable=False),
    Column("email_hmac", String(32), nullable=False),
    Column("email_sealed", Text, nullable=False),
    Column("status", String(10), nullable=False),
    Column("customer_id", String(40)),
    Column("date_of_birth_sealed", Text),
    Column("referral_code", String(16), nullable=False, unique=True),
    # Kept sums of the entries; `flask ledger verify` derives them anew and compares.
    Column("balance", BigInteger, nullable=False),
    Column("lifetime_points", BigInteger, nullable=False),
    # Kept as well, for the card, which reads this row and nothing else: the latest transactions, oldest first, each as
    # [microseconds since 1970, what, points].
    Column("latest_activity", JSON().with_variant(JSONB(), "postgresql"), nullable=False, server_default=text("'[]'")),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    # When what tells who it is was erased: the sealed e-mail is an empty text since.
    Column("erased_at", UtcTime),
    UniqueConstraint("store_id", "email_hmac"),
)

ledger_transactions = Table(
    "ledger_transactions",
    metadata,
    Column("id", Id, primary_key=True),
    Column("store_id", Id, ForeignKey("stores.id"), nullable=False),
    Column("member_id", Id, ForeignKey("members.id"), nullable=False),
    Column("operation_id", String(60), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("what", String(200), nullable=False),
    Column("reverses_id", Id, ForeignKey("ledger_transactions.id"), unique=True),
    # What the member's entry says, with its sign; the entries are the books, and `verify` compares.
    Column("points", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", UtcTime, nullable=False),
    # No index by member: whoever asks for a member's transactions finds them by their entries.
    UniqueConstraint("store_id", "operation_id"),
)

ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("id", Id, primary_key=True),
    Column(
        "transaction_id",
        Id,
        ForeignKey("ledger_transactions.id"),
        nullable=False,
        index=True,
    ),
    # The member's account, or the program's where empty: points owed to members are the program's liability.
    Column("member_id", Id, ForeignKey("members.id"), index=True),
    Column("side", String(6), nullable=False),
    Column("points", BigInteger, nullable=False),
    CheckConstraint("points > 0", name="points_positive"),
    CheckConstraint("side IN ('debit', 'credit')", name="side_known"),
)

awards = Table(
    "awards",
    metadata,
    Column("operation_id", String(40), primary_key=True),
    Column("store_id", Id, ForeignKey("stores.id"), nullable=False),
    Column("connection_id", Id, ForeignKey("connections.id"), nullable=False),
    Column("state", String(20), nullable=False),
    Column("member_hmac", String(32), nullable=False),
    Column("member_email_sealed", Text, nullable=False),
    Column("points", BigInteger, nullable=False),
    # Store credit in hundredths, given instead of points.
    Column("credit_cents", BigInteger, nullable=False, server_default=text("0")),
    Column("reason", String(200), nullable=False),
    Column("channel", String(20), nullable=False),
    Column("ticket_id", String(40), nullable=False),
    # Empty when the helpdesk did not name the agent: all unknown agents count as one.
    Column("agent_hmac", String(32), nullable=False),
    Column("agent_email_sealed", Text),
    Column("agent_proof", String(10), nullable=False),
    Column("award_key_nonce", String(32)),
    Column("fingerprint", String(64), nullable=False),
    Column("reverses", String(40), ForeignKey("awards.operation_id")),
    Column("balance_after", BigInteger),
    Column("created_at", UtcTime, nullable=False),
    Column("settled_at", UtcTime),
    # How it was settled, and what the program or a person said about it.
    Column("settled_by", String(20)),
    Column("told", String(200)),
    Column("marked_by_sealed", Text),
    # The version of the store's key with which it was first sent: another key may open another store.
    Column("key_version", Integer, nullable=False, server_default=text("0")),
    # Times it was sent to a program elsewhere, whoever holds it now, and when the last attempt's connection ended.
    Column("sends", Integer, nullable=False, server_default=text("0")),
    Column("lease_owner", String(40)),
    Column("lease_until", UtcTime),
    Column("attempt_ended_at", UtcTime),
    # How often the program was looked through since then, in vain.
    Column("looks", Integer, nullable=False, server_default=text("0")),
    Column("note_state", String(20), nullable=False),
    Column("note_reason", String(60)),
    Column("note_attempts", Integer, nullable=False, server_default=text("0")),
    # Since when it is tried; empty in rows from before an award could get a second note.
    Column("note_due_at", UtcTime),
    # When everything personal in it was erased: sealed e-mails are empty texts since, HMACs mean nobody.
    Column("erased_at", UtcTime),
    UniqueConstraint("connection_id", "award_key_nonce"),
    # All that the sums of a connection's day are made of.
    Index("ix_awards_day", "connection_id", "created_at", "state", "agent_hmac", "points", "credit_cents", "reverses"),
    Index("ix_awards_connection_id_agent_hmac_created_at", "connection_id", "agent_hmac", "created_at"),
    Index("ix_awards_connection_id_state_created_at", "connection_id", "state", "created_at"),
    Index("ix_awards_store_id_member_hmac_created_at", "store_id", "member_hmac", "created_at"),
    # What is not decided yet: few at any time, and looked through with every award.
    Index(
        "ix_awards_open",
        "connection_id",
        "member_hmac",
        "state",
        "created_at",
        sqlite_where=text("state <> 'applied' AND state <> 'rejected'"),
        postgresql_where=text("state <> 'applied' AND state <> 'rejected'"),
    ),
    Index(
        "ix_awards_note_due",
        "created_at",
        sqlite_where=text("note_state = 'due'"),
        postgresql_where=text("note_state = 'due'"),
    ),
    # The retention's: those that are past their time are found without reading what is erased already.
    Index(
        "ix_awards_not_erased",
        "created_at",
        sqlite_where=text("erased_at IS NULL"),
        postgresql_where=text("erased_at IS NULL"),
    ),
    # One undo for an award; an undo that was rejected undid nothing and stands in nobody's way.
    Index(
        "uq_awards_reverses",
        "reverses",
        unique=True,
        sqlite_where=text("reverses IS NOT NULL AND state <> 'rejected'"),
        postgresql_where=text("reverses IS NOT NULL AND state <> 'rejected'"),
    ),
)

award_attempts = Table(
    "award_attempts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("operation_id", String(40), ForeignKey("awards.operation_id"), nullable=False, index=True),
    Column("at", UtcTime, nullable=False, index=True),
    # What was done: sent, looked for, told by a webhook, marked by a person; and the reason word it ended with.
    Column("kind", String(20), nullable=False),
    Column("outcome", String(40), nullable=False),
    # How often it went just so one after the other, since `at`, and when it last did (empty: once).
    Column("times", Integer, nullable=False, server_default=text("1")),
    Column("last_at", UtcTime),
    Column("took_ms", Integer),
    # What was answered, without anything personal.
    Column("answer", String(300)),
)

# What is wrong now, as it was last seen; a row goes when all is well again and the merchant knows it.
troubles = Table(
    "troubles",
    metadata,
    Column("id", Id, primary_key=True),
    Column("account_id", Id, ForeignKey("accounts.id"), nullable=False),
    # What the finding is about within the account, such as `connection 3`; empty for the account itself.
    Column("subject", String(40), nullable=False),
    Column("finding", String(60), nullable=False),
    Column("severity", String(10), nullable=False),
    Column("sentence", String(400), nullable=False),
    Column("remedy", String(400), nullable=False),
    Column("since", UtcTime, nullable=False),
    # When its severity last changed, and the severity that the merchant was last told of.
    Column("changed_at", UtcTime, nullable=False),
    Column("told", String(10), nullable=False),
    UniqueConstraint("account_id", "subject", "finding"),
)

# Who changed what in the console.
changes = Table(
    "changes",
    metadata,
    Column("id", Id, primary_key=True),
    Column("account_id", Id, ForeignKey("accounts.id"), nullable=False),
    Column("connection_id", Id, ForeignKey("connections.id")),
    Column("at", UtcTime, nullable=False, index=True),
    Column("who_sealed", Text, nullable=False),
    Column("what", String(40), nullable=False),
    # Settings before and after, by name; never a secret.
    Column("details", JSON, nullable=False),
    Index("ix_changes_account_id_id", "account_id", "id"),
)

# Requests of Gorgias, without their values, while a merchant asks why a card or macro is blank.
inspected_requests = Table(
    "inspected_requests",
    metadata,
    Column("id", Id, primary_key=True),
    Column("connection_id", Id, ForeignKey("connections.id"), nullable=False),
    Column("at", UtcTime, nullable=False, index=True),
    Column("route", String(40), nullable=False),
    Column("outcome", String(40), nullable=False),
    Column("status", Integer, nullable=False),
    Column("took_ms", Integer, nullable=False),
    Column("seen", JSON, nullable=False),
    Index("ix_inspected_requests_connection_id_id", "connection_id", "id"),
)

# Worker processes and when each last showed that it runs. On PostgreSQL a view of what the job engine keeps.
workers = Table(
    "workers",
    metadata,
    Column("owner", String(40), primary_key=True),
    Column("last_seen_at", UtcTime, nullable=False),
)

# Jobs that wait or run. On PostgreSQL a view of what the job engine keeps, to be read alone.
jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(40), nullable=False),
    Column("ref", String(60), nullable=False),
    Column("run_at", UtcTime, nullable=False, index=True),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("lease_owner", String(40)),
    Column("lease_until", UtcTime),
    UniqueConstraint("name", "ref"),
)
