"""awards that are decided, have no note to come or undo nothing take no place in the indexes that find the others"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

OPEN = sa.text("state <> 'applied' AND state <> 'rejected'")
DUE = sa.text("note_state = 'due'")
UNDOES = sa.text("reverses IS NOT NULL AND state <> 'rejected'")


def upgrade() -> None:
    for name in (
        "ix_awards_state_created_at",
        "ix_awards_note_state_created_at",
        "ix_awards_open",
        "uq_awards_reverses",
    ):
        op.drop_index(name, "awards")
    for name, columns, where in (
        ("ix_awards_open", ["connection_id", "member_hmac", "state", "created_at"], OPEN),
        ("ix_awards_note_due", ["created_at"], DUE),
        ("uq_awards_reverses", ["reverses"], UNDOES),
    ):
        op.create_index(
            name, "awards", columns, unique=name.startswith("uq"), sqlite_where=where, postgresql_where=where
        )
