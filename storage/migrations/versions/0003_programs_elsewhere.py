"""programs elsewhere: their keys, their call budgets, snapshots of members, awards that are confirmed later"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.BigInteger()
NOT_REJECTED = sa.text("state <> 'rejected'")


def upgrade() -> None:
    # Not in a batch: SQLite would make these tables anew, which others refer to.
    op.add_column("stores", sa.Column("key_sealed", sa.Text()))
    op.add_column("stores", sa.Column("key_version", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("stores", sa.Column("key_state", sa.String(20), nullable=False, server_default=sa.text("'ok'")))
    op.add_column("stores", sa.Column("key_state_since", TIME))
    op.add_column("stores", sa.Column("webhook_secret_sealed", sa.Text()))
    op.add_column("stores", sa.Column("old_webhook_secret_sealed", sa.Text()))
    op.create_table(
        "gates",
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("calls", sa.JSON(), nullable=False),
        sa.Column("background_calls", sa.JSON(), nullable=False),
        sa.Column("paused_until", TIME),
        sa.Column("failures", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("open_until", TIME),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_gates")),
    )
    op.create_table(
        "snapshots",
        sa.Column("id", ID, nullable=False),
        sa.Column("store_id", ID, nullable=False),
        sa.Column("email_hmac", sa.String(32), nullable=False),
        sa.Column("state", sa.String(10)),
        sa.Column("email_sealed", sa.Text()),
        sa.Column("shown", sa.JSON()),
        sa.Column("date_of_birth_sealed", sa.Text()),
        sa.Column("as_of", TIME),
        sa.Column("outdated_at", TIME),
        sa.Column("lease_owner", sa.String(40)),
        sa.Column("lease_until", TIME),
        sa.Column("touched_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["store_id"], ["stores.id"], name=op.f("fk_snapshots_store_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
        sa.UniqueConstraint("store_id", "email_hmac", name=op.f("uq_snapshots_store_id_email_hmac")),
    )
    op.create_index(op.f("ix_snapshots_touched_at"), "snapshots", ["touched_at"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", ID, nullable=False),
        sa.Column("store_id", ID, nullable=False),
        sa.Column("delivery_hash", sa.String(64), nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["store_id"], ["stores.id"], name=op.f("fk_webhook_deliveries_store_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
        sa.UniqueConstraint("store_id", "delivery_hash", name=op.f("uq_webhook_deliveries_store_id_delivery_hash")),
    )
    op.create_index(op.f("ix_webhook_deliveries_received_at"), "webhook_deliveries", ["received_at"])
    for name in ("max_credit_cents_per_award", "max_credit_cents_per_day"):
        op.add_column("connections", sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    # SQLite makes awards anew to drop a constraint, and would find undoes without their award on the way.
    op.execute("CREATE TEMPORARY TABLE undoes AS SELECT operation_id, reverses FROM awards WHERE reverses IS NOT NULL")
    op.execute("UPDATE awards SET reverses = NULL WHERE reverses IS NOT NULL")
    with op.batch_alter_table("awards") as table:
        table.add_column(sa.Column("credit_cents", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        table.add_column(sa.Column("note_due_at", TIME))
        table.add_column(sa.Column("settled_by", sa.String(20)))
        table.add_column(sa.Column("told", sa.String(200)))
        table.add_column(sa.Column("marked_by_sealed", sa.Text()))
        table.add_column(sa.Column("key_version", sa.Integer(), nullable=False, server_default=sa.text("0")))
        table.add_column(sa.Column("sends", sa.Integer(), nullable=False, server_default=sa.text("0")))
        table.add_column(sa.Column("lease_owner", sa.String(40)))
        table.add_column(sa.Column("lease_until", TIME))
        table.add_column(sa.Column("attempt_ended_at", TIME))
        table.add_column(sa.Column("looks", sa.Integer(), nullable=False, server_default=sa.text("0")))
        table.drop_constraint(op.f("uq_awards_reverses"), type_="unique")
    op.execute(
        "UPDATE awards SET reverses = (SELECT reverses FROM undoes WHERE undoes.operation_id = awards.operation_id)"
        " WHERE operation_id IN (SELECT operation_id FROM undoes)"
    )
    op.execute("DROP TABLE undoes")
    op.create_index("ix_awards_state_created_at", "awards", ["state", "created_at"])
    op.create_index("ix_awards_store_id_member_hmac_created_at", "awards", ["store_id", "member_hmac", "created_at"])
    op.create_index(
        "uq_awards_reverses",
        "awards",
        ["reverses"],
        unique=True,
        sqlite_where=NOT_REJECTED,
        postgresql_where=NOT_REJECTED,
    )
