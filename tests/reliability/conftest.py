"""Fixtures of the proofs under faults."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.reliability.world import WORLDS, Crash, Rivo, World


@pytest.fixture(scope="session")
def rivo() -> Iterator[Rivo]:
    """One Rivo for every world of this test process."""
    with Rivo() as rivo:
        yield rivo


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of databases that nobody has to find again."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def new_sqlite(migrated_file: Path, scratch: Path) -> Callable[[], str]:
    """Makes a migrated SQLite database in place of the one before; its URL."""
    path = scratch / "tallydesk.db"

    def make() -> str:
        for old in scratch.glob("tallydesk.db*"):
            old.unlink()
        shutil.copyfile(migrated_file, path)
        return f"sqlite:///{path}"

    return make


@pytest.fixture
def threads_may_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of a process that died has no more to say; what else ends a thread is an error as everywhere."""
    report = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        if not issubclass(ended.exc_type, Crash):
            report(ended)

    monkeypatch.setattr(threading, "excepthook", hook)


@pytest.fixture
def world(rivo: Rivo, new_sqlite: Callable[[], str], threads_may_crash: None) -> Iterator[World]:
    """One world to tell a story in. At its end faults stop, and everything must be settled within a day."""
    world = World(rivo, database_url=new_sqlite(), number=next(WORLDS))
    try:
        yield world
        world.recover()
    finally:
        world.close()
