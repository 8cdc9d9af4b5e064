"""The lookup on the connection's page goes out and comes in again as Gorgias' does, and says when it cannot."""

from __future__ import annotations

import socket

import pytest

from tests.house import House
from tests.oauth.scripted import Answer, Scripted
from widget.connections import Connection
from widget.proof import NotProven, look_up

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def test_a_lookup_comes_back_through_the_front_door(house: House, connection: Connection) -> None:
    house.add_member(connection.store, "jane@example.com", points=7)
    assert _look_up(house, connection, house.url)["points_balance"] == 7


def test_an_address_where_nobody_answers_is_named(house: House, connection: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(NotProven, match=f"could not call itself at {address}"):
        _look_up(house, connection, address)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(body=b"<html>Welcome</html>"), "Something else than Tallydesk"),
        (Answer(status=401, body=b"{}"), "answered 401. Press Repair"),
        (Answer(status=302, headers={"Location": "/elsewhere"}), "answered 302"),
        (Answer(body=b"[]"), "answered 200"),
    ],
)
def test_an_answer_that_is_no_card_is_named(house: House, connection: Connection, answer: Answer, told: str) -> None:
    with Scripted() as elsewhere:
        elsewhere.answers = [answer]
        with pytest.raises(NotProven, match=told):
            _look_up(house, connection, elsewhere.url)


def _look_up(house: House, connection: Connection, public_url: str) -> dict[str, object]:
    services = house.services
    return look_up(
        "jane@example.com",
        connection=connection,
        connections=services.connections,
        public_url=public_url,
        session=services.http,
    )
