"""The lookup as FastAPI's tutorials write it: plain functions, a session for each request, models of ORM and answer.

It reads the same SQLite file and checks the same key; e-mails are found by the same HMAC. What it leaves out of the
product's lookup is to its advantage: the award key, the ways in which addresses arrive, metrics, answers for trouble.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel
from sqlalchemy import JSON, ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

EMAIL_KEY = bytes.fromhex(os.environ["EMAIL_KEY"])

engine = create_engine(os.environ["DATABASE_URL"], connect_args={"check_same_thread": False})
session_maker = sessionmaker(engine)
app = FastAPI()


class Base(DeclarativeBase):
    """The tables that a card is read from."""


class ConnectionRow(Base):
    """A connection and the store that it shows."""

    __tablename__ = "connections"

    id: Mapped[int] = mapped_column(primary_key=True)
    store_id: Mapped[int]
    state: Mapped[str]


class KeyRow(Base):
    """A key, by its hash."""

    __tablename__ = "connection_keys"

    id: Mapped[int] = mapped_column(primary_key=True)
    connection_id: Mapped[int] = mapped_column(ForeignKey("connections.id"))
    purpose: Mapped[str]
    key_hash: Mapped[str]
    connection: Mapped[ConnectionRow] = relationship()


class MemberRow(Base):
    """A member with the kept sums and the latest changes."""

    __tablename__ = "members"

    id: Mapped[int] = mapped_column(primary_key=True)
    store_id: Mapped[int]
    email_hmac: Mapped[str]
    status: Mapped[str]
    balance: Mapped[int]
    lifetime_points: Mapped[int]
    referral_code: Mapped[str]
    latest_activity: Mapped[list[Any]] = mapped_column(JSON)


class Activity(BaseModel):
    """A line of the card's history."""

    when: datetime
    what: str
    points: int


class Card(BaseModel):
    """The card."""

    loyalty_status: str
    points_balance: int
    vip_tier_name: str
    referral_url: str
    store_credit_balance: str = ""
    lifetime_points: int
    points_expire_at: str = ""
    date_of_birth: str = ""
    recent_activity: list[Activity]
    as_of: datetime


def session() -> Iterator[Session]:
    """A session for one request."""
    with session_maker() as opened:
        yield opened


def connection_of(x_api_key: Annotated[str, Header()], db: Annotated[Session, Depends(session)]) -> ConnectionRow:
    """The connection that the key opens, or 401."""
    key_hash = hashlib.sha256(x_api_key.encode()).hexdigest()
    key = db.scalars(select(KeyRow).where(KeyRow.key_hash == key_hash, KeyRow.purpose == "lookup")).one_or_none()
    if key is None or key.connection.state != "active":
        raise HTTPException(status_code=401, detail="wrong key")
    return key.connection


@app.get("/widget/customer", response_model=Card)
def customer(
    email: str,
    connection: Annotated[ConnectionRow, Depends(connection_of)],
    db: Annotated[Session, Depends(session)],
) -> Card:
    """The member with this e-mail, and the latest five changes."""
    email_hmac = hmac.digest(EMAIL_KEY, email.strip().lower().encode(), "sha256")[:16].hex()
    member = db.scalars(
        select(MemberRow).where(MemberRow.store_id == connection.store_id, MemberRow.email_hmac == email_hmac)
    ).one_or_none()
    if member is None:
        raise HTTPException(status_code=404, detail="unknown member")
    return Card(
        loyalty_status=member.status.capitalize(),
        points_balance=member.balance,
        vip_tier_name="Gold" if member.lifetime_points >= 2_000 else "Bronze",
        referral_url=f"http://localhost/r/{member.referral_code}",
        lifetime_points=member.lifetime_points,
        recent_activity=[
            Activity(
                when=datetime.fromtimestamp(microseconds / 1e6, UTC),
                what=what,
                points=points,
            )
            for microseconds, what, points in reversed(member.latest_activity)
        ],
        as_of=datetime.now(UTC),
    )


@app.get("/healthz")
def alive() -> str:
    """Whether it runs."""
    return "ok"
