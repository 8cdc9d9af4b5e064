"""A running house with nobody connected yet, and somebody who is told of trouble."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.health.chat import Chat, running_chat


@pytest.fixture
def chat() -> Iterator[Chat]:
    with running_chat() as chat:
        yield chat
