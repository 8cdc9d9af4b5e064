"""Puts a connection into Gorgias, repairs it and takes it out again.

`ensure` leaves exactly one integration, two widgets and one macro, however often, from however many callbacks at once
and after whatever half-finished attempt it runs: it works under a lease that every call renews, finds what is ours by
id or marker, removes doubles, updates by PUT (a new id would break merchants' macros) and keeps each id as soon as it
is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import structlog
from sqlalchemy import ColumnElement, or_, true, update

from findings import Finding, Severity
from oauth.gorgias_api import GorgiasApi, GorgiasError, GorgiasReason
from schemas.gorgias import Integration, Macro, Unreadable, Widget, read_integration, read_macro, read_widget
from schemas.widget import without_addresses
from storage.database import Database
from storage.sealing import RandomBytes
from storage.tables import connections
from widget.connections import Connection, Connections, ConnectionState, Keys
from widget.template import (
    CONTEXTS,
    KEY_HEADER,
    TRIGGERS,
    digest,
    integration_body,
    lookup_url,
    macro_body,
    macro_name,
    marker,
    signature,
    widget_body,
)

# Longer than any one call that creates something (3 s to connect, 10 s to read, 8 s of patience with Gorgias' limit):
# whoever stalls longer finds at the next call that the lease is lost, and stops.
LEASE = timedelta(seconds=25)
# Longer than the lease, so that whoever comes after a crash goes on by themselves; and within the 30 s after which
# hosting routers end a request.
WAIT_FOR_LEASE = timedelta(seconds=26)
POLL_S = 0.05

log = structlog.get_logger()


class PlacementProblem(StrEnum):
    """Why the placement is not complete."""

    NOT_ADMIN = "not_admin"
    NEEDS_REAUTH = "needs_reauth"
    GORGIAS_BUSY = "gorgias_busy"
    GORGIAS_UNREACHABLE = "gorgias_unreachable"
    GORGIAS_REFUSED = "gorgias_refused"
    IN_PROGRESS = "in_progress"
    DISCONNECTED = "disconnected"


class PlacementFailed(Exception):
    """Gorgias is not as it should be. What was done is kept; `ensure` goes on from there."""

    def __init__(self, problem: PlacementProblem, sentence: str) -> None:
        super().__init__(sentence)
        self.problem = problem


class Part(StrEnum):
    """What of a placement is looked at; the words are the ids of the findings."""

    INTEGRATION = "integration"
    INTEGRATION_ENABLED = "integration.enabled"
    TICKET_WIDGET = "widget.ticket"
    CUSTOMER_WIDGET = "widget.customer"
    MACRO = "macro"


REPAIR = "Press Repair on the connection's page."
SWITCH_ON = (
    "Press “Switch on again” on the connection's page. Gorgias switches it off after 100 failures in a row: see before "
    "that this service can be reached."
)


class Placement:
    """Placements of every connection."""

    def __init__(
        self,
        database: Database,
        *,
        connections: Connections,
        api_for: Callable[[int, str], GorgiasApi],
        public_url: str,
        now: Callable[[], datetime],
        sleep: Callable[[float], None],
        random_bytes: RandomBytes,
    ) -> None:
        self._database = database
        self._connections = connections
        self._api_for = api_for
        self._public_url = public_url
        self._now = now
        self._sleep = sleep
        self._random_bytes = random_bytes

    def ensure(self, connection_id: int, *, restore: bool = False) -> Connection:
        """Bring Gorgias to where it should be; returns the connection as it is then. Raises PlacementFailed.

        Merchants may edit our widgets: they are left as they are unless our side has changed or `restore` is asked.
        When all is in place, keys older than the newest pair end.
        """
        with self._leased(connection_id) as api:
            connection = self._get(connection_id)
            if connection.state is not ConnectionState.ACTIVE:
                raise PlacementFailed(
                    PlacementProblem.DISCONNECTED, "This helpdesk was disconnected in the meantime. Connect it again."
                )
            keys = self._connections.newest_keys(connection_id)
            try:
                integration_id = self._ensure_integration(api, connection, keys=keys)
                self._ensure_widgets(api, connection, integration_id=integration_id, keys=keys, restore=restore)
                self._ensure_macro(api, connection, integration_id=integration_id)
            except (GorgiasError, Unreadable) as error:
                failed = _failed(error)
                self._connections.save_placed(connection_id, placement_problem=failed.problem)
                log.warning("placement", outcome=failed.problem.value, connection=connection_id)
                raise failed from error
            self._connections.save_placed(connection_id, placement_problem=None)
            self._connections.retire_keys(connection_id, keep=keys)
            log.info("placement", outcome="in_place", connection=connection_id)
        return self._get(connection_id)

    def rotate_keys(self, connection_id: int) -> Connection:
        """New keys: in place in Gorgias first, and only then the old ones end. Raises PlacementFailed."""
        with self._database.write() as tx:
            self._connections.add_keys(tx, connection_id)
        return self.ensure(connection_id)

    def remove(self, connection_id: int, *, through: GorgiasApi | None = None) -> list[str]:
        """Take everything out of Gorgias, tolerating what is gone; returns what is left to be deleted by hand.

        The account keeps that list too. Whoever is setting the connection up at the same time is waited for, and then
        stopped. `through` takes the place of the account's own access, and means that nobody waits: what fails for want
        of an answer ends the attempt with PlacementFailed, to be repeated later.
        """
        with self._leased(connection_id, insist=True, through=through) as api:
            connection = self._get(connection_id)
            if connection.state is not ConnectionState.ACTIVE:
                return []  # by someone who pressed the same button a moment earlier
            left = self._take_out(api, connection, patient=through is not None)
            self._connections.remove(connection_id, left_over=[without_addresses(sentence) for sentence in left])
        log.info("placement", outcome="removed" if not left else "left_over", connection=connection_id)
        return left

    def _take_out(self, api: _LeasedApi, connection: Connection, *, patient: bool) -> list[str]:
        placed = connection.placed
        widget_ids = {placed.ticket_widget_id, placed.customer_widget_id}
        integration_ids = {placed.integration_id}
        macro_ids = {placed.macro_id}
        left: list[str] = []
        gone: GorgiasError | None = None
        try:
            integration_ids |= {integration.id for integration in self._find_integrations(api, connection)}
            for integration_id in integration_ids - {None}:
                widget_ids |= {widget.id for widget in _widgets_of(api, integration_id)}
            macro_ids |= {macro.id for macro in _macros_of(api, connection, integration_ids)}
        except (GorgiasError, Unreadable) as error:
            if patient and _passes(error):
                raise _failed(error) from error
            log.warning("placement", outcome="search_failed", connection=connection.id, told=_failed(error).problem)
            left.append(f"whatever else is named “{signature(connection)}” ({_told(error)})")
            gone = _no_answer(error)
        for kind, path, ids in (
            ("widget", "widgets", widget_ids),
            ("HTTP integration", "integrations", integration_ids),
            ("macro", "macros", macro_ids),
        ):
            for object_id in sorted(ids - {None}, key=str):
                try:
                    # Once Gorgias does not answer at all, the person is not kept waiting for every single call.
                    if gone is not None:
                        raise gone
                    api.delete(f"/api/{path}/{object_id}")
                except GorgiasError as error:
                    if patient and _passes(error):
                        raise _failed(error) from error
                    left.append(f"{kind} {object_id} ({_told(error)})")
                    gone = _no_answer(error)
        return left

    def inspect(self, connection: Connection) -> list[Finding]:
        """Look whether everything is where it should be, without changing anything. Raises PlacementFailed."""
        api = self._api_for(connection.account_id, connection.account_name)
        placed = connection.placed
        keys = self._connections.newest_keys(connection.id)
        try:
            findings = self._inspect_integration(api, connection, keys=keys)
            outdated = placed.integration_id is not None and placed.digest != digest(
                *self._widget_bodies(connection, integration_id=placed.integration_id, keys=keys).values()
            )
            for context, name, widget_id in (
                ("ticket", Part.TICKET_WIDGET, placed.ticket_widget_id),
                ("customer", Part.CUSTOMER_WIDGET, placed.customer_widget_id),
            ):
                sent = None if widget_id is None else api.find(f"/api/widgets/{widget_id}")
                findings.append(
                    _judged_widget(
                        None if sent is None else read_widget(sent),
                        name=name,
                        context=context,
                        integration_id=placed.integration_id,
                        outdated=outdated,
                    )
                )
            found = None if placed.macro_id is None else api.find(f"/api/macros/{placed.macro_id}")
            if found is not None:
                findings.append(_well(Part.MACRO, "The ready-made macro is there."))
            else:
                findings.append(_wrong(Part.MACRO, "The ready-made macro is missing in Gorgias.", Severity.WARNING))
        except (GorgiasError, Unreadable) as error:
            raise _failed(error) from error
        return findings

    def _inspect_integration(self, api: GorgiasApi, connection: Connection, *, keys: Keys) -> list[Finding]:
        integration_id = connection.placed.integration_id
        found = None if integration_id is None else api.find(f"/api/integrations/{integration_id}")
        if found is None:
            return [_wrong(Part.INTEGRATION, "The HTTP integration is missing in Gorgias.")]
        integration = read_integration(found)
        if self._is_right(integration, keys=keys):
            findings = [_well(Part.INTEGRATION, "The HTTP integration calls this service when tickets change.")]
        else:
            findings = [_wrong(Part.INTEGRATION, "The HTTP integration was changed in Gorgias.")]
        if integration.disabled:
            sentence = "The HTTP integration is switched off in Gorgias."
            findings.append(_wrong(Part.INTEGRATION_ENABLED, sentence, remedy=SWITCH_ON))
        else:
            findings.append(_well(Part.INTEGRATION_ENABLED, "The HTTP integration is switched on."))
        return findings

    def _ensure_integration(self, api: _LeasedApi, connection: Connection, *, keys: Keys) -> int:
        body = integration_body(connection, keys=keys, public_url=self._public_url)
        ours = self._find_integrations(api, connection)
        kept = _keep_one(ours, connection.placed.integration_id)
        for double in ours:
            if kept is not None and double.id != kept.id:
                for widget in _widgets_of(api, double.id):
                    api.delete(f"/api/widgets/{widget.id}")
                api.delete(f"/api/integrations/{double.id}")
        if kept is None:
            kept = read_integration(api.post("/api/integrations", body))
        elif not self._is_right(kept, keys=keys) or kept.disabled:
            api.put(f"/api/integrations/{kept.id}", body)
        integration_id: int = kept.id
        self._connections.save_placed(connection.id, integration_id=integration_id)
        return integration_id

    def _ensure_widgets(
        self, api: _LeasedApi, connection: Connection, *, integration_id: int, keys: Keys, restore: bool
    ) -> None:
        bodies = self._widget_bodies(connection, integration_id=integration_id, keys=keys)
        wanted = digest(*bodies.values())
        stored = {
            "ticket": connection.placed.ticket_widget_id,
            "customer": connection.placed.customer_widget_id,
        }
        found = _widgets_of(api, integration_id)
        for context, body in bodies.items():
            ours = [widget for widget in found if widget.context == context]
            kept = _keep_one(ours, stored[context])
            for double in ours:
                if kept is not None and double.id != kept.id:
                    api.delete(f"/api/widgets/{double.id}")
            if stored[context] not in (None, *(widget.id for widget in found)):
                # It hangs on an integration that is gone: it shows nothing and would stay behind.
                api.delete(f"/api/widgets/{stored[context]}")
            if kept is None:
                kept = read_widget(api.post("/api/widgets", body))
            elif wanted != connection.placed.digest or kept.disabled or (restore and kept.template != body["template"]):
                api.put(f"/api/widgets/{kept.id}", {**body, "deactivated_datetime": None})
            self._connections.save_placed(connection.id, **{f"{context}_widget_id": kept.id})
        self._connections.save_placed(connection.id, placed_digest=wanted)

    def _widget_bodies(self, connection: Connection, *, integration_id: int, keys: Keys) -> dict[str, dict[str, Any]]:
        return {
            context: widget_body(
                connection, context=context, integration_id=integration_id, keys=keys, public_url=self._public_url
            )
            for context in CONTEXTS
        }

    def _ensure_macro(self, api: _LeasedApi, connection: Connection, *, integration_id: int) -> None:
        body = macro_body(connection, integration_id=integration_id)
        stored = connection.placed.macro_id
        ours = _macros_of(api, connection, {integration_id, connection.placed.integration_id})
        if stored is not None and stored not in {macro.id for macro in ours}:
            # Perhaps renamed or rewritten by the merchant: it is still ours.
            edited = api.find(f"/api/macros/{stored}")
            if edited is not None:
                ours.append(read_macro(edited))
        kept = _keep_one(ours, stored)
        for double in ours:
            if kept is not None and double.id != kept.id:
                api.delete(f"/api/macros/{double.id}")
        if kept is None:
            kept = read_macro(api.post("/api/macros", body))
        elif kept.integration_ids and integration_id not in kept.integration_ids:
            # Its variables name an integration that is gone. What else a merchant made of the macro is theirs.
            api.put(f"/api/macros/{kept.id}", body)
        self._connections.save_placed(connection.id, macro_id=kept.id)

    def _find_integrations(self, api: _LeasedApi, connection: Connection) -> list[Integration]:
        """Ours, by id or by marker, oldest first. Another Tallydesk in the same helpdesk has another address."""
        found = map(read_integration, api.list("/api/integrations", type="http"))
        begins = f"{self._public_url}/widget/customer"
        return sorted(
            (
                integration
                for integration in found
                if integration.id == connection.placed.integration_id
                or (integration.url.startswith(begins) and f"{marker(connection)}." in integration.description)
            ),
            key=lambda integration: integration.id,
        )

    def _is_right(self, integration: Integration, *, keys: Keys) -> bool:
        return (
            integration.url == lookup_url(self._public_url)
            and integration.method.upper() == "GET"
            and integration.triggers.issuperset(TRIGGERS)
            # Gorgias may come to hide headers; then there is nothing to compare.
            and (integration.headers is None or integration.headers.get(KEY_HEADER) == keys.lookup)
        )

    @contextmanager
    def _leased(
        self, connection_id: int, *, insist: bool = False, through: GorgiasApi | None = None
    ) -> Iterator[_LeasedApi]:
        """The helpdesk's API for whoever may change the placement now; one at a time, over threads and hosts.

        `insist` takes the lease in the end from whoever still holds it. `through` is the API to use instead of the
        account's own. Raises PlacementFailed.
        """
        owner = self._random_bytes(12).hex()
        give_up_at = self._now() + WAIT_FOR_LEASE
        while not self._hold_lease(connection_id, owner=owner, condition=_is_free(self._now())):
            if self._now() >= give_up_at:
                if insist and self._hold_lease(connection_id, owner=owner, condition=true()):
                    break
                raise _in_progress()
            self._sleep(POLL_S)

        def renew() -> None:
            if not self._hold_lease(connection_id, owner=owner, condition=connections.c.lease_owner == owner):
                raise _in_progress()

        connection = self._get(connection_id)
        try:
            api = through or self._api_for(connection.account_id, connection.account_name)
            yield _LeasedApi(api, renew=renew)
        finally:
            with self._database.write() as tx:
                tx.execute(
                    update(connections)
                    .where(connections.c.id == connection_id, connections.c.lease_owner == owner)
                    .values(lease_owner=None, lease_until=None)
                )

    def _hold_lease(self, connection_id: int, *, owner: str, condition: ColumnElement[bool]) -> bool:
        with self._database.write() as tx:
            held = tx.execute(
                update(connections)
                .where(connections.c.id == connection_id, condition)
                .values(lease_owner=owner, lease_until=self._now() + LEASE)
            )
        return held.rowcount == 1

    def _get(self, connection_id: int) -> Connection:
        connection = self._connections.by_id(connection_id)
        if connection is None:
            raise LookupError(f"no connection {connection_id}, and none is ever deleted")
        return connection


class _LeasedApi:
    """A helpdesk's API for the holder of a lease: every call first renews it, or raises PlacementFailed."""

    def __init__(self, api: GorgiasApi, *, renew: Callable[[], None]) -> None:
        self._api = api
        self._renew = renew

    def list(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        self._renew()
        return self._api.list(path, **params)

    def find(self, path: str) -> dict[str, Any] | None:
        self._renew()
        return self._api.find(path)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        self._renew()
        return self._api.post(path, body)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        self._renew()
        return self._api.put(path, body)

    def delete(self, path: str) -> None:
        self._renew()
        self._api.delete(path)


def _well(name: Part, sentence: str) -> Finding:
    return Finding(id=name, severity=Severity.OK, sentence=sentence)


def _wrong(name: Part, sentence: str, severity: Severity = Severity.ERROR, *, remedy: str = REPAIR) -> Finding:
    return Finding(id=name, severity=severity, sentence=sentence, remedy=remedy)


def _judged_widget(
    widget: Widget | None, *, name: Part, context: str, integration_id: int | None, outdated: bool
) -> Finding:
    """What a card in Gorgias is like. A merchant may edit it, but not hang it on another integration."""
    if widget is None or widget.disabled or widget.integration_id not in (None, integration_id):
        return _wrong(name, f"The card for {context}s is missing in Gorgias.")
    if outdated:
        return _wrong(name, f"The card for {context}s is not as this service would place it now.", Severity.WARNING)
    return _well(name, f"The card for {context}s is in the sidebar.")


def _widgets_of(api: _LeasedApi, integration_id: int | None) -> list[Widget]:
    found = map(read_widget, api.list("/api/widgets", integration_id=integration_id))
    # Should Gorgias ever ignore the filter, nobody else's widget may be touched.
    return sorted((w for w in found if w.integration_id == integration_id), key=lambda widget: widget.id)


def _macros_of(api: _LeasedApi, connection: Connection, integration_ids: set[int | None]) -> list[Macro]:
    """Ours by name and by the integration they read: another Tallydesk in this helpdesk may use the same name."""
    found = map(read_macro, api.list("/api/macros"))
    return [m for m in found if m.name == macro_name(connection) and not m.integration_ids.isdisjoint(integration_ids)]


def _keep_one(found: list[Any], stored_id: int | None) -> Any:
    """The object whose id we know, else the oldest."""
    for candidate in found:
        if candidate.id == stored_id:
            return candidate
    return min(found, key=lambda candidate: candidate.id, default=None)


def _told(error: GorgiasError | Unreadable) -> str:
    return str(error).rstrip(".")


def _no_answer(error: GorgiasError | Unreadable) -> GorgiasError | None:
    """`error` when it is no answer of Gorgias': the next call would end the same way."""
    return error if isinstance(error, GorgiasError) and error.status is None else None


def _passes(error: GorgiasError | Unreadable) -> bool:
    """Whether the same call may well succeed later."""
    return isinstance(error, GorgiasError) and error.reason in (
        GorgiasReason.UNREACHABLE,
        GorgiasReason.BUSY,
        GorgiasReason.BROKEN,
    )


def _is_free(now: datetime) -> ColumnElement[bool]:
    return or_(connections.c.lease_until.is_(None), connections.c.lease_until < now)


def _in_progress() -> PlacementFailed:
    return PlacementFailed(
        PlacementProblem.IN_PROGRESS, "Someone else is setting up this connection. Try again in half a minute."
    )


def _failed(error: GorgiasError | Unreadable) -> PlacementFailed:
    if isinstance(error, GorgiasError):
        problem, sentence = _PROBLEMS.get(
            error.reason,
            (PlacementProblem.GORGIAS_REFUSED, f"{error} Press Repair to go on from where it stopped."),
        )
        return PlacementFailed(problem, sentence)
    return PlacementFailed(PlacementProblem.GORGIAS_REFUSED, f"{error} Press Repair to try again.")


_REAUTH = (
    PlacementProblem.NEEDS_REAUTH,
    "Gorgias no longer accepts our access. A helpdesk admin has to connect again.",
)
_UNREACHABLE = (
    PlacementProblem.GORGIAS_UNREACHABLE,
    "Gorgias did not answer. Press Repair in a minute: it goes on from where it stopped.",
)
_PROBLEMS = {
    GorgiasReason.FORBIDDEN: (
        PlacementProblem.NOT_ADMIN,
        "Gorgias does not let the person who connected change integrations: only helpdesk admins may. "
        "Ask an admin to connect again.",
    ),
    GorgiasReason.NEEDS_REAUTH: _REAUTH,
    GorgiasReason.UNAUTHORIZED: _REAUTH,
    GorgiasReason.NOT_CONNECTED: _REAUTH,
    GorgiasReason.BUSY: (
        PlacementProblem.GORGIAS_BUSY,
        "Gorgias is limiting our calls right now. Press Repair in half a minute: it goes on from where it stopped.",
    ),
    GorgiasReason.UNREACHABLE: _UNREACHABLE,
    GorgiasReason.BROKEN: _UNREACHABLE,
}
