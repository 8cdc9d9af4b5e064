"""One house for the tests of this folder that change nothing in it which others could see."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import Clock
from tests.house import House, running_house


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[House]:
    path = tmp_path_factory.mktemp("watching") / "tallydesk.db"
    shutil.copyfile(migrated_file, path)
    with running_house(f"sqlite:///{path}", clock=Clock()) as running:
        yield running
