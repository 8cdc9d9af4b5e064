"""The embedded ledger keeps the contract of a loyalty program, on both databases."""

from __future__ import annotations

import pytest

from storage.database import Database
from storage.sealing import RandomBytes, Sealer
from tests.contract.program_contract import ProgramContract, Subject
from tests.databases import Clock
from tests.ledgers import LedgerRoom


class TestLedger(ProgramContract):
    @pytest.fixture
    def subject(self, database: Database, sealer: Sealer, clock: Clock, random_bytes: RandomBytes) -> Subject:
        return LedgerRoom(database, sealer=sealer, clock=clock, random_bytes=random_bytes)
