"""Sealing, re-sealing and the root key."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, update

from storage.database import Database
from storage.sealing import (
    CannotOpen,
    Hasher,
    RandomBytes,
    Sealer,
    Stock,
    load_hasher,
    reseal_everything,
)
from storage.tables import accounts, app_keys
from tests.databases import FIRST_KEY, SECOND_KEY, Clock, seeded_random_bytes

ROOT = Path(__file__).resolve().parents[2]

LOAD_HASHER = """
import os, sys
from storage.database import Database
from storage.sealing import Sealer, load_hasher
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
database = Database(sys.argv[1])
print(load_hasher(database, sealer=Sealer((sys.argv[2],)), random_bytes=os.urandom).email("ana@example.com"))
database.close()
"""


def test_random_bytes_in_stock_are_the_system_s_and_each_is_given_once() -> None:
    drawn: list[bytes] = []

    def random_bytes(count: int) -> bytes:
        drawn.append(os.urandom(count))
        return drawn[-1]

    stock = Stock(random_bytes)
    given = [stock(12) for _ in range(1_000)]
    assert {len(one) for one in given} == {12}
    assert len(set(given)) == 1_000
    pieces = [piece[at : at + 12] for piece in drawn for at in range(0, Stock.PIECE - 11, 12)]
    assert given == pieces[:1_000]
    assert len(drawn) == 3


def test_two_processes_are_not_given_the_same_random_bytes_though_one_was_forked_from_the_other() -> None:
    script = (
        "import os\n"
        "from storage.sealing import Stock\n"
        "stock = Stock(os.urandom)\n"
        "stock(12)\n"
        "child = os.fork()\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
        "print(stock(12).hex(), flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(set(done.stdout.split())) == 2


def test_what_was_sealed_opens_again_and_shows_nothing() -> None:
    sealer = Sealer((FIRST_KEY,))
    sealed = sealer.seal("ana@example.com")
    assert "ana" not in sealed
    assert sealer.open(sealed) == "ana@example.com"
    assert sealer.seal("ana@example.com") != sealed, "equal values do not look equal"


def test_a_second_key_still_opens_and_resealing_frees_it() -> None:
    sealed = Sealer((FIRST_KEY,)).seal("a token")
    both = Sealer((SECOND_KEY, FIRST_KEY))
    assert both.open(sealed) == "a token"
    assert Sealer((SECOND_KEY,)).open(both.reseal(sealed)) == "a token"


def test_a_wrong_key_is_a_sentence_that_says_what_to_do() -> None:
    sealed = Sealer((FIRST_KEY,)).seal("a token")
    stranger = Sealer((SECOND_KEY,))
    for use in (stranger.open, stranger.reseal):
        with pytest.raises(CannotOpen, match=r"sealed with another key\. Put the key .* ENCRYPTION_KEYS"):
            use(sealed)


def test_resealing_moves_every_sealed_column_and_keeps_the_hmacs(database: Database, clock: Clock) -> None:
    old, both, new = Sealer((FIRST_KEY,)), Sealer((SECOND_KEY, FIRST_KEY)), Sealer((SECOND_KEY,))
    before = load_hasher(database, sealer=old, random_bytes=seeded_random_bytes()).email("ana@example.com")
    _insert_accounts(database, sealer=old, clock=clock, count=7)

    resealed = reseal_everything(database, sealer=both, batch=3)

    assert resealed == 1 + 7, "the root key and a token of each account; empty columns are left out"
    with database.read() as tx:
        tokens = tx.scalars(select(accounts.c.access_token_sealed).order_by(accounts.c.id)).all()
    assert [new.open(token) for token in tokens if token] == [f"token {number}" for number in range(7)]
    after = load_hasher(database, sealer=new, random_bytes=seeded_random_bytes(1))
    assert after.email("ana@example.com") == before


def test_resealing_twice_does_no_harm(database: Database, clock: Clock) -> None:
    """An interrupted run is simply repeated."""
    both = Sealer((SECOND_KEY, FIRST_KEY))
    _insert_accounts(database, sealer=Sealer((FIRST_KEY,)), clock=clock, count=2)
    assert reseal_everything(database, sealer=both) == reseal_everything(database, sealer=both) == 2


def test_a_token_refreshed_while_everything_is_resealed_is_kept(database: Database, clock: Clock) -> None:
    sealer = Sealer((FIRST_KEY,))
    _insert_accounts(database, sealer=sealer, clock=clock, count=1)

    def refresh() -> None:
        with database.write() as tx:
            tx.execute(update(accounts).values(access_token_sealed=sealer.seal("refreshed")))

    rival = threading.Thread(target=refresh)

    class Resealing(Sealer):
        def reseal(self, sealed: str) -> str:
            rival.start()
            rival.join(0.3)  # gives up when the rival has to wait for us, as it should
            return super().reseal(sealed)

    reseal_everything(database, sealer=Resealing((FIRST_KEY,)))
    rival.join()
    with database.read() as tx:
        assert sealer.open(tx.scalars(select(accounts.c.access_token_sealed)).one() or "") == "refreshed"


def test_the_root_key_is_made_once_by_threads_that_start_at_once(database: Database, sealer: Sealer) -> None:
    barrier = threading.Barrier(4)
    found: list[str] = []

    def load(seed: int) -> None:
        barrier.wait()
        hasher = load_hasher(database, sealer=sealer, random_bytes=seeded_random_bytes(seed))
        found.append(hasher.email("ana@example.com"))

    threads = [threading.Thread(target=load, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    with database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(app_keys)) == 1


def test_the_root_key_is_made_once_by_processes_that_start_at_once(database: Database) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", LOAD_HASHER, database.url, FIRST_KEY]
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    told = [process.communicate("go\n", timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert told[0][0] == told[1][0] != ""


def test_a_root_key_of_another_key_is_a_sentence(database: Database, random_bytes: RandomBytes) -> None:
    load_hasher(database, sealer=Sealer((FIRST_KEY,)), random_bytes=random_bytes).email("ana@example.com")
    stranger = load_hasher(database, sealer=Sealer((SECOND_KEY,)), random_bytes=random_bytes)
    with pytest.raises(CannotOpen, match="ENCRYPTION_KEYS"):
        stranger.email("ana@example.com")


def test_each_purpose_has_its_own_key(hasher: Hasher) -> None:
    assert hasher.email("ana@example.com") != hasher.award_key(b"ana@example.com").hex()
    assert len(hasher.email("ana@example.com")) == 32
    assert len(hasher.award_key(b"")) == 16


def _insert_accounts(database: Database, *, sealer: Sealer, clock: Clock, count: int) -> None:
    with database.write() as tx:
        tx.execute(
            insert(accounts),
            [
                {
                    "name": f"acme{number}",
                    "state": "connected",
                    "access_token_sealed": sealer.seal(f"token {number}"),
                    "connected_at": clock(),
                    "updated_at": clock(),
                }
                for number in range(count)
            ],
        )
