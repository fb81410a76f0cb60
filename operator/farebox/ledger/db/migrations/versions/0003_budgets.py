"""Budgets of gateways (B17): what each may still spend of an account. Not history: a claim is set anew."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("account_id", _INT, sa.ForeignKey("accounts.id"), primary_key=True, autoincrement=False),
        sa.Column("granted", _INT, nullable=False),
        sa.Column("spent", _INT, nullable=False),
        sa.Column("expires_at", _INT, nullable=False),
        sa.Column("revision", _INT, nullable=False),
        sa.CheckConstraint("granted >= 0 AND spent >= 0", name="amounts"),
        sqlite_strict=True,
    )
    op.create_index("ix_budgets_revision", "budgets", ["revision"])
