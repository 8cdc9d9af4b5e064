"""awards that are not decided yet stand in an index of their own, which every award looks through"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

OPEN = sa.text("state <> 'applied' AND state <> 'rejected'")


def upgrade() -> None:
    op.create_index(
        "ix_awards_open", "awards", ["connection_id", "member_hmac"], sqlite_where=OPEN, postgresql_where=OPEN
    )
