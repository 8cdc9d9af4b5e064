"""One card after the other inside one process, without sockets: `python -m bench.in_process`, for `bench/cpu.py`.

Its environment is that of a server: settings, PROMETHEUS_MULTIPROC_DIR, standard error into a file. Prints microseconds
of processor time by name, the best of several rounds: what is more than that was not the code's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from app import create_app
from bench.baselines import bare_flask, raw_wsgi
from bench.measure import alternated
from bench.store import email, lookup_key
from loyalty import award_key
from schemas.email import read_addresses
from services import Services
from storage.sealing import Stock
from telemetry import REQUEST_SECONDS, REQUESTS, tell_plainly
from widget import card
from widget.room import CUSTOMER

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

AT_ONCE = 50
WHOLE, BARE, RAW = "a card", "bare Flask", "a raw WSGI function"


def main(members: int, rounds: int, count: int) -> None:
    """Measure, `count` times a round, with members drawn out of all."""
    random = Random(1)
    emails = [email(random.randint(1, members)) for _ in range(count)]
    app = create_app()
    services: Services = app.extensions["tallydesk"]
    pieces = parts(services)
    subjects: dict[str, Callable[[], dict[str, float]]] = {
        WHOLE: lambda: {WHOLE: _requests(app, emails)},
        BARE: lambda: {BARE: _requests(bare_flask.app, emails)},
        RAW: lambda: {RAW: _requests(raw_wsgi.app, emails)},
        "parts": lambda: _calls(pieces, emails),
    }
    alternated(subjects, rounds=1)  # statements compiled, caches filled
    took: dict[str, float] = {}
    for found in alternated(subjects, rounds=rounds).values():
        best: dict[str, float] = min(found, key=_all_of)
        took.update(best)
    print(json.dumps({name: 1e6 * seconds / count for name, seconds in took.items()}))


def _all_of(took: dict[str, float]) -> float:
    return sum(took.values())


def parts(services: Services) -> Mapping[str, Callable[[str], object]]:
    """What a card is made of, each to be called with an e-mail."""
    opened = services.connections.opened_by(lookup_key(1))
    assert opened is not None
    [member] = [services.members.first(opened.store, emails=[email(1)])]
    assert member is not None
    random_bytes = Stock(services.random_bytes)
    counter, histogram = REQUESTS.labels(CUSTOMER, "found"), REQUEST_SECONDS.labels(CUSTOMER)

    def metrics(_email: str) -> None:
        counter.inc()
        histogram.observe(0.001)

    def mint(address: str) -> str:
        return award_key.mint(
            hasher=services.hasher,
            connection_id=opened.id,
            member_hmac=services.hasher.email(address),
            now=services.now(),
            random_bytes=random_bytes,
        )

    return {
        "key check": lambda _: services.connections.opened_by(lookup_key(1)),
        "the address, as it arrived": lambda address: read_addresses(parse_qs(f"email={address}")["email"]),
        "member": lambda address: services.members.first(opened.store, emails=[address]),
        "award key": mint,
        "card as JSON": lambda _: card.as_json(card.found(member, award_key="A" * 68)),
        "metrics": metrics,
        "log line": lambda _: tell_plainly("lookup", outcome="found", status=200, ms=0.12),
    }


def _requests(app: WSGIApplication, emails: list[str]) -> float:
    """Processor seconds for a request for each of `emails`."""
    statuses: list[str] = []
    took = 0.0

    def start_response(status: str, _headers: list[tuple[str, str]], *_error: Any) -> Callable[[bytes], object]:
        statuses.append(status)
        return lambda _: None

    # A few at a time: a server does not have thousands of requests in memory for the collector to look through.
    for first in range(0, len(emails), AT_ONCE):
        environs = [_environ(address) for address in emails[first : first + AT_ONCE]]
        began = time.process_time()
        for environ in environs:
            answer = app(environ, start_response)
            b"".join(answer)
            if hasattr(answer, "close"):
                answer.close()
        took += time.process_time() - began
    assert set(statuses) == {"200 OK"}, set(statuses)
    return took


def _calls(pieces: Mapping[str, Callable[[str], object]], emails: list[str]) -> dict[str, float]:
    """Processor seconds of each part, called in turns for each of `emails`.

    Called a thousand times in a row, a part would have the processor's caches to itself and take half as long.
    """
    took = dict.fromkeys(pieces, 0.0)
    clock = time.process_time
    for address in emails:
        for name, part in pieces.items():
            began = clock()
            part(address)
            took[name] += clock() - began
    read = _reading_the_clock() * len(emails)
    return {name: seconds - read for name, seconds in took.items()}


def _reading_the_clock() -> float:
    began = time.process_time()
    for _ in range(1_000):
        time.process_time()
    return (time.process_time() - began) / 1_000


def _environ(address: str) -> WSGIEnvironment:
    """What gunicorn gives for a request of Gorgias."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/widget/customer",
        "QUERY_STRING": f"email={address.replace('@', '%40')}",
        "RAW_URI": f"/widget/customer?email={address}",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "gunicorn",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "50000",
        "HTTP_HOST": "127.0.0.1:8000",
        "HTTP_ACCEPT": "*/*",
        "HTTP_ACCEPT_ENCODING": "gzip, deflate",
        "HTTP_USER_AGENT": "python-requests",
        "HTTP_X_API_KEY": lookup_key(1),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
