"""a member's latest activity is kept in the member's row, where a card finds all that it shows"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# By the entries, as `flask ledger verify` proves it, and in the order of a sum, which no index has: PostgreSQL would
# rather walk through all entries. SQLite's aggregate has no order of its own before 3.44, and takes that of the query
# under it.
KEPT_ON_SQLITE = """
    UPDATE members SET latest_activity = (
        SELECT json_group_array(json_array(created_at, what, points)) FROM (
            SELECT * FROM (
                SELECT id, created_at, what, points FROM ledger_transactions JOIN (
                    SELECT transaction_id FROM ledger_entries WHERE member_id = members.id
                    ORDER BY transaction_id + 0 DESC LIMIT 5
                ) ON id = transaction_id
            ) ORDER BY id
        )
    )
"""
KEPT_ON_POSTGRESQL = """
    UPDATE members SET latest_activity = (
        SELECT coalesce(jsonb_agg(jsonb_build_array(created_at, what, points) ORDER BY id), '[]') FROM (
            SELECT id, created_at, what, points FROM ledger_transactions JOIN (
                SELECT transaction_id FROM ledger_entries WHERE member_id = members.id
                ORDER BY transaction_id + 0 DESC LIMIT 5
            ) AS ids ON id = transaction_id
        ) AS latest
    )
"""


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    kept = sa.Column(
        "latest_activity", sa.JSON() if sqlite else JSONB(), nullable=False, server_default=sa.text("'[]'")
    )
    op.add_column("members", kept)
    op.execute(KEPT_ON_SQLITE if sqlite else KEPT_ON_POSTGRESQL)
    op.drop_index("ix_ledger_transactions_member_id_id_created_at_what_points", "ledger_transactions")
