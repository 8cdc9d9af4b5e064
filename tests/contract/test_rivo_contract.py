"""Rivo, as the sandbox plays it, keeps the contract of a loyalty program, on both databases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import date, timedelta

import pytest
from sqlalchemy import Connection

from loyalty.gate import Gate
from loyalty.program import MemberStatus, ProgramKind, Store
from loyalty.rivo import RivoClient
from loyalty.rivo_program import Rivo
from loyalty.snapshots import Snapshots
from loyalty.stores import Stores
from outbound import Client
from sandbox import Sandbox
from storage.database import Database
from storage.sealing import Hasher, Sealer
from tests.contract.program_contract import ProgramContract, Subject
from tests.databases import Clock


class RivoRoom:
    """Rivo behind the port, with two stores of the sandbox."""

    def __init__(self, sandbox: Sandbox, database: Database, *, sealer: Sealer, hasher: Hasher, clock: Clock) -> None:
        self._sandbox = sandbox
        self._database = database
        self._hasher = hasher
        self._clock = clock
        self._stores = Stores(database, sealer=sealer, hasher=hasher, now=clock)
        self._snapshots = Snapshots(database, sealer=sealer, now=clock)
        gate = Gate(database, now=clock, sleep=self._wait)
        client = RivoClient(sandbox.rivo_url, client=Client(), gate=gate)
        self.program = Rivo(client, gate=gate, stores=self._stores, snapshots=self._snapshots, now=clock)
        self._names: dict[int, str] = {}
        self.store = self._open("northwind")
        self.other_store = self._open("fernhill")

    def _wait(self, seconds: float) -> None:
        self._clock.advance(seconds)
        time.sleep(0)

    def _open(self, name: str) -> Store:
        with self._database.write() as tx:
            key = self._sandbox.rivo(name).key
            store = self._stores.open(tx, account="acme", program=ProgramKind.RIVO, key=key)
        self._names[store.id] = name
        return store

    def enrol(
        self,
        store: Store,
        *,
        email: str,
        status: MemberStatus = MemberStatus.MEMBER,
        points: int = 0,
        date_of_birth: date | None = None,
    ) -> None:
        born = None if date_of_birth is None else date_of_birth.strftime("%m-%d")
        self._sandbox.rivo(self._names[store.id]).add_customer(email, points=points, status=status.value, dob=born)
        # An award key exists only where a card showed the member.
        member = self.program.member(store, email=email)
        assert member is not None
        hmac = self.hmac(email)
        assert self._snapshots.claim(store, member_hmac=hmac, seen=None, owner="card", lease=timedelta(seconds=10))
        self._snapshots.keep(store, member_hmac=hmac, member=member, with_activity=True, owner="card")

    def transaction(self) -> AbstractContextManager[Connection]:
        return self._database.read()

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def hmac(self, email: str) -> str:
        return self._hasher.email(email)


class TestRivo(ProgramContract):
    @pytest.fixture
    def subject(self, database: Database, sealer: Sealer, hasher: Hasher, clock: Clock) -> Iterator[Subject]:
        with Sandbox(rivo_stores=("northwind", "fernhill"), rivo_calls_per_s=10_000, now=clock) as sandbox:
            yield RivoRoom(sandbox, database, sealer=sealer, hasher=hasher, clock=clock)
