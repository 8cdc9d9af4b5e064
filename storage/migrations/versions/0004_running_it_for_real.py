"""running it for real: a job engine on PostgreSQL, troubles, attempts of awards, an audit, an inspector"""

import sqlalchemy as sa
from alembic import op

from storage import engine

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.BigInteger()


def upgrade() -> None:
    # Not in a batch: SQLite would make these tables anew, which others refer to.
    for name in ("refresh_at", "refused_at", "failing_since", "disconnected_at", "forgotten_at", "probed_at"):
        op.add_column("accounts", sa.Column(name, TIME))
    op.add_column("accounts", sa.Column("left_over", sa.JSON()))
    op.add_column("accounts", sa.Column("client_hash", sa.String(64)))
    op.add_column("accounts", sa.Column("notice_url_sealed", sa.Text()))
    # Tokens from before are refreshed once soon, which sets the time for good.
    op.execute("UPDATE accounts SET refresh_at = updated_at WHERE state = 'connected'")
    op.execute("UPDATE accounts SET disconnected_at = updated_at WHERE state = 'disconnected'")
    op.create_index(op.f("ix_accounts_refresh_at"), "accounts", ["refresh_at"])
    op.create_index(op.f("ix_accounts_probed_at"), "accounts", ["probed_at"])
    op.add_column("oauth_states", sa.Column("return_to_sealed", sa.Text()))
    op.add_column("connections", sa.Column("inspect_until", TIME))
    op.add_column("members", sa.Column("erased_at", TIME))
    op.add_column("awards", sa.Column("erased_at", TIME))
    op.create_index(
        "ix_awards_not_erased",
        "awards",
        ["created_at"],
        sqlite_where=sa.text("erased_at IS NULL"),
        postgresql_where=sa.text("erased_at IS NULL"),
    )
    for who_or_what in ("agent_hmac", "state"):
        columns = ["connection_id", who_or_what, "created_at"]
        op.create_index(f"ix_awards_{'_'.join(columns)}", "awards", columns)
    _let_words_be_erased()
    op.create_table(
        "award_attempts",
        sa.Column("id", ID, nullable=False),
        sa.Column("operation_id", sa.String(40), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("outcome", sa.String(40), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("last_at", TIME),
        sa.Column("took_ms", sa.Integer()),
        sa.Column("answer", sa.String(300)),
        sa.ForeignKeyConstraint(["operation_id"], ["awards.operation_id"], name=op.f("fk_award_attempts_operation_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_award_attempts")),
    )
    op.create_index(op.f("ix_award_attempts_operation_id"), "award_attempts", ["operation_id"])
    op.create_index(op.f("ix_award_attempts_at"), "award_attempts", ["at"])
    op.create_table(
        "troubles",
        sa.Column("id", ID, nullable=False),
        sa.Column("account_id", ID, nullable=False),
        sa.Column("subject", sa.String(40), nullable=False),
        sa.Column("finding", sa.String(60), nullable=False),
        sa.Column("severity", sa.String(10), nullable=False),
        sa.Column("sentence", sa.String(400), nullable=False),
        sa.Column("remedy", sa.String(400), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.Column("changed_at", TIME, nullable=False),
        sa.Column("told", sa.String(10), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_troubles_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_troubles")),
        sa.UniqueConstraint("account_id", "subject", "finding", name=op.f("uq_troubles_account_id_subject_finding")),
    )
    op.create_table(
        "changes",
        sa.Column("id", ID, nullable=False),
        sa.Column("account_id", ID, nullable=False),
        sa.Column("connection_id", ID),
        sa.Column("at", TIME, nullable=False),
        sa.Column("who_sealed", sa.Text(), nullable=False),
        sa.Column("what", sa.String(40), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_changes_account_id")),
        sa.ForeignKeyConstraint(["connection_id"], ["connections.id"], name=op.f("fk_changes_connection_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changes")),
    )
    op.create_index(op.f("ix_changes_at"), "changes", ["at"])
    op.create_index("ix_changes_account_id_id", "changes", ["account_id", "id"])
    op.create_table(
        "inspected_requests",
        sa.Column("id", ID, nullable=False),
        sa.Column("connection_id", ID, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("route", sa.String(40), nullable=False),
        sa.Column("outcome", sa.String(40), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("took_ms", sa.Integer(), nullable=False),
        sa.Column("seen", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["connection_id"], ["connections.id"], name=op.f("fk_inspected_requests_connection_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inspected_requests")),
    )
    op.create_index(op.f("ix_inspected_requests_at"), "inspected_requests", ["at"])
    op.create_index("ix_inspected_requests_connection_id_id", "inspected_requests", ["connection_id", "id"])
    if op.get_bind().dialect.name == "postgresql":
        # Every job is a hint: what waits in the old table is found by the sweep and asked for again.
        op.drop_table("jobs")
        engine.install(op.get_bind(), through="03.04.00_50")
        op.execute(
            "CREATE VIEW jobs AS SELECT id, task_name AS name, args->>'ref' AS ref,"
            " (extract(epoch FROM coalesce(scheduled_at, to_timestamp(0))) * 1000000)::bigint AS run_at, attempts,"
            " worker_id::text AS lease_owner, NULL::bigint AS lease_until"
            " FROM procrastinate_jobs WHERE status IN ('todo', 'doing') AND args ? 'ref'"
        )
        op.execute(
            "CREATE VIEW workers AS SELECT id::text AS owner,"
            " (extract(epoch FROM last_heartbeat) * 1000000)::bigint AS last_seen_at FROM procrastinate_workers"
        )
    else:
        op.create_table(
            "workers",
            sa.Column("owner", sa.String(40), nullable=False),
            sa.Column("last_seen_at", TIME, nullable=False),
            sa.PrimaryKeyConstraint("owner", name=op.f("pk_workers")),
        )


def _let_words_be_erased() -> None:
    """The words of a booking may be emptied, since they may be about a person; the booking itself stays as it is."""
    columns = ("id", "store_id", "member_id", "operation_id", "kind", "reverses_id", "created_at")
    if op.get_bind().dialect.name == "sqlite":
        kept = " AND ".join(f"NEW.{name} IS OLD.{name}" for name in columns)
        op.execute("DROP TRIGGER ledger_transactions_no_update")
        op.execute(
            f"CREATE TRIGGER ledger_transactions_no_update BEFORE UPDATE ON ledger_transactions "
            f"WHEN NOT (NEW.what = '' AND {kept}) "
            "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: book a reversal instead'); END"
        )
        return
    was, becomes = (", ".join(f"{row}.{name}" for name in columns) for row in ("OLD", "NEW"))
    op.execute("DROP TRIGGER ledger_transactions_append_only ON ledger_transactions")
    op.execute(
        "CREATE TRIGGER ledger_transactions_append_only BEFORE DELETE OR TRUNCATE ON ledger_transactions "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()"
    )
    op.execute(
        "CREATE TRIGGER ledger_transactions_no_update BEFORE UPDATE ON ledger_transactions FOR EACH ROW "
        f"WHEN (NEW.what <> '' OR ({was}) IS DISTINCT FROM ({becomes})) EXECUTE FUNCTION refuse_ledger_change()"
    )
