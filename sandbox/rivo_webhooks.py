"""Rivo's webhooks: signed in either way that is known, asked again on trouble, and written down.

https://developer-docs.rivo.io/reference/verifying-webhook-signatures describes `rivo-signature` over the body; real
deliveries were seen with `rivo-webhook-id`, `-timestamp`, `-topic` and `-signature` over "{id}.{timestamp}.{body}".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial

from sandbox.records import Record
from sandbox.sending import Crew, NoAnswer, send

USER_AGENT = "Rivo-Sandbox/1"


class Scheme(StrEnum):
    """How a webhook is signed."""

    STANDARD = "standard"
    """`rivo-webhook-signature`: base64 over id, timestamp and body, labelled `v1,`; the topic only as a header."""
    LEGACY_BASE64 = "legacy_base64"
    """`rivo-signature`: base64 over the body, which names its `event_type`."""
    LEGACY_HEX = "legacy_hex"
    """The same in hexadecimal digits, as older documentation has it."""


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """Where the webhooks of a topic go."""

    url: str
    secret: str
    scheme: Scheme


@dataclass(frozen=True, kw_only=True)
class RivoDelivery:
    """One webhook as sent. `status` is that of the last attempt, None when it brought no answer; `error` is None when
    the receiver took it with a 2xx."""

    topic: str
    id: str
    url: str
    status: int | None
    attempts: int
    error: str | None
    at: datetime


class RivoWebhooks:
    """Sends the webhooks of all stores of one sandbox.

    `retry_delays_s` are the pauses before further attempts (UNKNOWN) after anything but a 2xx.
    """

    def __init__(
        self, *, crew: Crew, now: Callable[[], datetime], timeout_s: float, retry_delays_s: Sequence[float]
    ) -> None:
        self._crew = crew
        self._now = now
        self._timeout_s = timeout_s
        self._retry_delays_s = tuple(retry_delays_s)
        self._lock = threading.Lock()
        self._log: dict[str, deque[RivoDelivery]] = {}

    def send(self, store: str, subscription: Subscription, topic: str, body: Record, *, twice: bool) -> None:
        """Send a webhook behind; `twice` sends it again at the same time under the same id."""
        if self._crew.stopping.is_set():
            return
        if subscription.scheme is not Scheme.STANDARD:
            body = {**body, "event_type": topic}
        payload = json.dumps(body).encode()
        key = f"msg_{secrets.token_hex(12)}"
        for _ in range(2 if twice else 1):
            self._crew.submit(partial(self._deliver, store, subscription, topic, key, payload))

    def _deliver(self, store: str, subscription: Subscription, topic: str, key: str, payload: bytes) -> None:
        status: int | None = None
        reason: str | None = None
        attempts = 0
        for pause_s in (0.0, *self._retry_delays_s):
            if self._crew.stopping.wait(pause_s):
                break
            attempts += 1
            headers = sign(subscription, topic=topic, key=key, payload=payload, timestamp=int(self._now().timestamp()))
            try:
                status, _ = send(
                    "POST",
                    subscription.url,
                    headers=headers,
                    body=payload,
                    timeout_s=self._timeout_s,
                    user_agent=USER_AGENT,
                )
            except NoAnswer as error:
                status, reason = None, str(error)
                if not error.again:
                    break
            else:
                reason = None if 200 <= status < 300 else f"HTTP status {status}."
                if reason is None:
                    break
        if attempts:
            delivery = RivoDelivery(
                topic=topic,
                id=key,
                url=subscription.url,
                status=status,
                attempts=attempts,
                error=reason,
                at=self._now(),
            )
            with self._lock:
                self._log.setdefault(store, deque(maxlen=10_000)).append(delivery)

    def log(self, store: str) -> list[RivoDelivery]:
        """What was sent for a store since the sandbox started, in the order in which it was finished."""
        with self._lock:
            return list(self._log.get(store, ()))


def sign(subscription: Subscription, *, topic: str, key: str, payload: bytes, timestamp: int) -> dict[str, str]:
    """The headers of a webhook. The secret is used as text, not decoded, whatever it looks like."""

    def digest(signed: bytes) -> bytes:
        return hmac.digest(subscription.secret.encode(), signed, hashlib.sha256)

    headers = {"Content-Type": "application/json"}
    match subscription.scheme:
        case Scheme.STANDARD:
            signature = base64.b64encode(digest(f"{key}.{timestamp}.".encode() + payload)).decode()
            headers |= {
                "rivo-webhook-id": key,
                "rivo-webhook-timestamp": str(timestamp),
                "rivo-webhook-topic": topic,
                "rivo-webhook-signature": f"v1,{signature}",
            }
        case Scheme.LEGACY_BASE64:
            headers["rivo-signature"] = base64.b64encode(digest(payload)).decode()
        case Scheme.LEGACY_HEX:
            headers["rivo-signature"] = digest(payload).hex()
    return headers
