"""what a card shows of a member's history, and what a connection's day is summed from, stand in one index each"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = ("id", "store_id", "member_id", "operation_id", "kind", "reverses_id", "points", "created_at")
SHOWN = ["member_id", "id", "created_at", "what", "points"]
SUMMED = ["connection_id", "created_at", "state", "agent_hmac", "points", "credit_cents", "reverses"]


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    # The trigger would refuse to fill the new column; until the end of this migration nobody else writes.
    op.execute(f"DROP TRIGGER ledger_transactions_no_update{'' if sqlite else ' ON ledger_transactions'}")
    op.add_column(
        "ledger_transactions", sa.Column("points", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )
    op.execute(
        # A sum, so that damaged books come through and `flask ledger verify` can tell of them.
        "UPDATE ledger_transactions SET points = ("
        "SELECT coalesce(sum(CASE side WHEN 'credit' THEN points ELSE -points END), 0) FROM ledger_entries "
        "WHERE transaction_id = ledger_transactions.id AND member_id = ledger_transactions.member_id)"
    )
    if sqlite:
        kept = " AND ".join(f"NEW.{name} IS OLD.{name}" for name in COLUMNS)
        op.execute(
            f"CREATE TRIGGER ledger_transactions_no_update BEFORE UPDATE ON ledger_transactions "
            f"WHEN NOT (NEW.what = '' AND {kept}) "
            "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: book a reversal instead'); END"
        )
    else:
        was, becomes = (", ".join(f"{row}.{name}" for name in COLUMNS) for row in ("OLD", "NEW"))
        op.execute(
            "CREATE TRIGGER ledger_transactions_no_update BEFORE UPDATE ON ledger_transactions FOR EACH ROW "
            f"WHEN (NEW.what <> '' OR ({was}) IS DISTINCT FROM ({becomes})) EXECUTE FUNCTION refuse_ledger_change()"
        )
    op.drop_index("ix_ledger_transactions_member_id_id", "ledger_transactions")
    op.create_index(f"ix_ledger_transactions_{'_'.join(SHOWN)}", "ledger_transactions", SHOWN)
    op.drop_index("ix_awards_connection_id_created_at", "awards")
    op.create_index("ix_awards_day", "awards", SUMMED)
