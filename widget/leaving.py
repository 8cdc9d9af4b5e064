"""A helpdesk leaves: an admin disconnects it here, or the app is uninstalled in Gorgias, of which nobody tells us.

Either way what is ours is taken out of Gorgias, then the secrets are wiped; members, points and the history of awards
stay and are found again by whoever connects again. Each step may be repeated: whoever is stopped in between, or stops
half-way for want of an answer, goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from loyalty.program import ProgramKind
from loyalty.snapshots import Snapshots
from loyalty.stores import Stores
from oauth.accounts import Accounts
from oauth.gorgias_api import AccessToken, GorgiasApi, GorgiasError, TokenSource, only
from widget.connections import Connections
from widget.placement import Placement


@dataclass(frozen=True, kw_only=True)
class Farewell:
    """What became of a disconnected account's traces.

    `by_hand` names what has to be deleted in Gorgias, `stores_erased` counts the programs elsewhere of which everything
    was erased here, `not_revoked` says why Gorgias could not be told, if so.
    """

    by_hand: tuple[str, ...]
    stores_erased: int
    not_revoked: GorgiasError | None


class Leaving:
    """Every way out."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        connections: Connections,
        placement: Placement,
        stores: Stores,
        snapshots: Snapshots,
        api_for: Callable[[str, TokenSource], GorgiasApi],
    ) -> None:
        self._accounts = accounts
        self._connections = connections
        self._placement = placement
        self._stores = stores
        self._snapshots = snapshots
        self._api_for = api_for

    def disconnect(self, account_id: int) -> Farewell:
        """Take everything out, revoke and wipe, whether Gorgias answers or not; somebody is waiting for the end.

        Raises PlacementFailed while someone else is setting up a connection; the account is still connected then.
        """
        try:
            for found in self._connections.of_account(account_id):
                self._placement.remove(found.id)
        finally:
            erased = self._forget_stores(account_id)
        problem = self._accounts.disconnect(account_id)
        left = self._accounts.take_left_over(account_id)
        return Farewell(by_hand=tuple(left), stores_erased=erased, not_revoked=problem)

    def after_uninstall(self, account_id: int, *, living: AccessToken) -> None:
        """Take everything out with the access token that outlives an uninstall, then wipe. What cannot be deleted is
        kept with the account, for whoever connects it again.

        Stops where somebody has connected it again already. Raises PlacementFailed when it has to be tried again later,
        while the token still lives.
        """
        for found in self._connections.of_account(account_id):
            if not self._accounts.still_uninstalled(account_id, living=living):
                return
            self._placement.remove(found.id, through=self._api_for(found.account_name, only(living)))
        if self._accounts.still_uninstalled(account_id, living=living):
            self._forget_stores(account_id)
            self._accounts.end(account_id, living=living)

    def give_up(self, account_id: int, *, since: datetime) -> bool:
        """End an account whose access was lost before `since` and that nobody has connected again; False when somebody
        has. What stays in Gorgias is kept with the account, for whoever connects it one day."""
        for found in self._connections.of_account(account_id):
            if not self._accounts.is_abandoned(account_id, since=since):
                return False
            self._placement.remove(found.id)
        if not self._accounts.is_abandoned(account_id, since=since):
            return False
        self._forget_stores(account_id)
        return self._accounts.give_up(account_id, since=since)

    def _forget_stores(self, account_id: int) -> int:
        """Wipe secrets and snapshots of the stores that the account no longer shows; how many live elsewhere.

        Also of those that an earlier attempt took out before it was broken off.
        """
        elsewhere = [
            store for store in self._connections.stores_left(account_id) if store.program is not ProgramKind.LEDGER
        ]
        for store in elsewhere:
            self._stores.forget_secrets(store)
            self._snapshots.forget(store)
        return len(elsewhere)
