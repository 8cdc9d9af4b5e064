"""How the sandbox calls others: one request within its time, and a small crew of threads for what runs behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Event

import requests

_log = logging.getLogger("sandbox")

MAX_ANSWER_BYTES = 256 * 1024


class NoAnswer(Exception):
    """The request brought no usable HTTP answer; `again` tells whether another attempt may help."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def send(
    method: str, url: str, *, headers: Mapping[str, str], body: bytes, timeout_s: float, user_agent: str
) -> tuple[int, bytes]:
    """Status and body of the answer. `timeout_s` bounds it all. Redirects are answers, not followed.

    Raises NoAnswer.
    """
    deadline = time.monotonic() + timeout_s
    try:
        with requests.Session() as session:
            session.trust_env = False
            session.headers["User-Agent"] = user_agent
            with session.request(
                method,
                url,
                # Bytes, since requests writes text as Latin-1 and names of customers are not.
                headers={name: value.encode() for name, value in headers.items()},
                data=body or None,
                timeout=timeout_s,
                allow_redirects=False,
                stream=True,
            ) as response:
                received = b""
                for chunk in response.iter_content(8192):
                    received += chunk
                    if len(received) > MAX_ANSWER_BYTES:
                        raise NoAnswer("The answer is larger than 256 kB.", again=False)
                    if time.monotonic() > deadline:
                        raise requests.Timeout
                return response.status_code, received
    except requests.Timeout as error:
        raise NoAnswer(f"No answer within {timeout_s:g} seconds.", again=True) from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise NoAnswer("The connection failed or was closed without a whole answer.", again=True) from error
    except (requests.RequestException, ValueError) as error:
        raise NoAnswer("The address or a header is not valid, nothing was sent.", again=False) from error


class Crew:
    """A few threads that send what runs behind, and the count of what is under way."""

    def __init__(self) -> None:
        self.stopping = Event()
        self._pool = ThreadPoolExecutor(max_workers=12, thread_name_prefix="sandbox-delivery")
        self._idle = Condition()
        self._in_flight = 0

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """Begin `work` behind. Its retries are its own; it should end early when `stopping` is set.

        Raises RuntimeError after stop().
        """
        with self._idle:
            self._in_flight += 1
        try:
            future = self._pool.submit(work)
        except RuntimeError:
            with self._idle:
                self._in_flight -= 1
            raise
        future.add_done_callback(self._landed)
        return future

    def _landed(self, future: Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            _log.error("A delivery broke off: %s", error, exc_info=error)
        with self._idle:
            self._in_flight -= 1
            self._idle.notify_all()

    def settle(self, timeout_s: float) -> None:
        """Wait until nothing is in flight, retries included. Raises TimeoutError after `timeout_s`."""
        with self._idle:
            if not self._idle.wait_for(lambda: self._in_flight == 0, timeout_s):
                raise TimeoutError(f"{self._in_flight} deliveries are still in flight after {timeout_s:g} seconds.")

    def stop(self) -> None:
        """Begin nothing new, give up retries and wait for the requests under way."""
        self.stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
