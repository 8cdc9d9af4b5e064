"""A store's key: sent raw, kept sealed, left alone once it was refused, replaced without losing history."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loyalty.delivery import KEY_WAS_REFUSED
from loyalty.program import ProgramKind, ProgramUnavailable
from loyalty.stores import KeyInUse, KeyState
from storage.tables import awards
from tests.awards_elsewhere.shop import CUSTOMERS, EVENTS, Shop, wait_until
from tests.members.test_snapshots import columns_of

UNAVAILABLE = "Temporarily unavailable"
KEY_SENTENCE = (
    "The loyalty program refuses the key of this connection. Ask an admin to replace it on the connection's "
    "page in Tallydesk. Nothing was added."
)


def test_the_key_is_sent_raw_without_a_word_before_it(shop: Shop) -> None:
    shop.card()
    shop.applied(5)
    sent = {request.headers["Authorization"] for request in shop.house.sandbox.requests.filter(account="rivo")}
    assert sent == {shop.rivo.key}


def _regenerated(shop: Shop) -> None:
    shop.rivo.regenerate_key()


def _lapsed(shop: Shop) -> None:
    shop.rivo.lapse()


@pytest.mark.parametrize("refuse", [_regenerated, _lapsed])
def test_once_the_key_was_refused_nothing_is_called_any_more(shop: Shop, refuse: Callable[[Shop], None]) -> None:
    first = shop.card()
    refuse(shop)
    shop.clock.advance(60)
    shop.refreshed()
    assert _standing(shop) is KeyState.REFUSED
    assert shop.house.services.stores.standing(shop.connection.store).since == shop.clock()
    calls = shop.all_calls()
    for hours in (0, 1, 24):
        shop.clock.advance(hours * 3600)
        card = shop.refreshed()
        assert (card["points_balance"], card["as_of"]) == (100, first["as_of"]), "cards go on from the snapshot"
        assert shop.card("new@example.com")["loyalty_status"] == UNAVAILABLE
        answer = shop.press(50)
        assert answer.status_code == 503
        assert answer.json() == {"status": "rejected", "reason": "key_refused", "message": KEY_SENTENCE}
        shop.house.work()
        shop.house.services.jobs.sweep()
    assert shop.all_calls() == calls
    assert shop.awards() == 0, "nothing was recorded"


def test_a_refusal_to_a_card_that_waits_is_remembered_too(shop: Shop) -> None:
    shop.rivo.regenerate_key()
    assert shop.card()["loyalty_status"] == UNAVAILABLE
    assert shop.card()["loyalty_status"] == UNAVAILABLE
    assert shop.all_calls() == 1
    assert shop.snapshot().state is None, "nothing is known"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_that_an_award_meets_is_recorded_as_rejected(shop: Shop, status: int) -> None:
    shop.card()
    shop.fault("status", status=status)
    answer = shop.press(50)
    assert answer.status_code == 503
    assert answer.json()["reason"] == "key_refused"
    assert answer.json()["message"] == KEY_SENTENCE
    assert shop.awards() == 1
    with shop.house.services.database.read() as tx:
        row = tx.execute(awards.select()).one()
    assert (row.state, row.told, row.settled_by) == ("rejected", KEY_WAS_REFUSED, "answer")
    assert _standing(shop) is KeyState.REFUSED
    assert shop.book() == []
    calls = shop.all_calls()
    shop.work(300, step_s=30)
    assert shop.all_calls() == calls


def test_an_award_that_waits_is_delivered_once_the_key_is_replaced(shop: Shop) -> None:
    shop.card()
    shop.fault("rate_limited", retry_after=30)
    done = shop.queued(50)
    shop.fault("status", path=".*", method=None, status=401)
    shop.work(120)
    assert _standing(shop) is KeyState.REFUSED
    assert shop.state(done) == "pending"
    shop.house.services.stores.replace_key(shop.connection.store, account="acme", key=shop.rivo.regenerate_key())
    shop.work(120)
    assert shop.state(done) == "applied"
    assert [operation_id for operation_id, _, _ in shop.book()] == [done]


def test_an_unknown_award_is_settled_once_the_key_is_replaced(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_after")
    done = shop.queued(50)
    new = shop.rivo.regenerate_key()
    shop.work(600, step_s=30)
    assert shop.state(done) == "unknown"
    shop.house.services.stores.replace_key(shop.connection.store, account="acme", key=new)
    shop.work(180)
    assert shop.state(done) == "applied"
    assert len(shop.book()) == 1


def test_a_late_refusal_of_the_old_key_does_not_refuse_the_new_one(shop: Shop) -> None:
    stores, store = shop.house.services.stores, shop.connection.store
    old = stores.key_of(store)
    stores.replace_key(store, account="acme", key=shop.rivo.regenerate_key())
    assert not stores.refused(store, version=old.version)
    assert _standing(shop) is KeyState.OK
    assert shop.card()["points_balance"] == 100
    new = stores.key_of(store)
    assert stores.refused(store, version=new.version)
    assert not stores.refused(store, version=new.version), "it is news once"


def test_a_refusal_that_was_under_way_while_the_key_was_replaced_is_of_the_old_one(shop: Shop) -> None:
    fault = shop.fault("slow", path=CUSTOMERS, method="GET", seconds=1.0)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(shop.card)
        wait_until(lambda: fault.hits == 1)
        new = shop.rivo.regenerate_key()
        shop.house.services.stores.replace_key(shop.connection.store, account="acme", key=new)
        assert asked.result(timeout=20)["loyalty_status"] == UNAVAILABLE
    assert _standing(shop) is KeyState.OK
    assert shop.card()["points_balance"] == 100


def test_replacing_the_key_keeps_store_connection_awards_and_snapshots(shop: Shop) -> None:
    done = shop.applied(50)
    services = shop.house.services
    keys = services.connections.newest_keys(shop.connection.id)
    services.stores.replace_key(shop.connection.store, account="acme", key=shop.rivo.regenerate_key())
    assert services.connections.newest_keys(shop.connection.id) == keys
    assert shop.row(done).state == "applied"
    assert shop.card()["points_balance"] == 150
    undone = shop.undo(done)
    assert not isinstance(undone, str)
    assert shop.card()["points_balance"] == 100
    again = shop.house.open_rivo()
    assert again.id == shop.connection.id, "pasting the new key finds the same connection"


def test_a_key_that_another_store_of_the_account_has_is_not_taken(shop: Shop) -> None:
    other = shop.house.open_rivo(store="fernhill")
    stores = shop.house.services.stores
    with pytest.raises(KeyInUse):
        stores.replace_key(other.store, account="acme", key=shop.rivo.key)
    assert stores.key_of(other.store).key == shop.house.sandbox.rivo("fernhill").key
    assert _standing(shop) is KeyState.OK


def test_replacing_a_key_with_itself_takes_it_up_again(shop: Shop) -> None:
    """After a lapsed plan was paid the same key works again."""
    shop.rivo.lapse()
    assert shop.card()["loyalty_status"] == UNAVAILABLE
    shop.rivo.lapse(False)
    shop.house.services.stores.replace_key(shop.connection.store, account="acme", key=shop.rivo.key)
    assert shop.card()["points_balance"] == 100


def test_forgotten_secrets_are_wiped_and_the_store_is_found_again_by_its_key(shop: Shop) -> None:
    done = shop.applied(50)
    stores, store = shop.house.services.stores, shop.connection.store
    stores.save_webhook_secret(store, secret="s3cret of webhooks")
    stores.forget_secrets(store)
    assert _standing(shop) is KeyState.MISSING
    assert stores.webhook_secrets(store) == ()
    with pytest.raises(ProgramUnavailable):
        stores.key_of(store)
    assert shop.press(50, ticket_id=8).status_code == 503
    again = shop.house.open_rivo()
    assert again.store == store
    assert shop.row(done).store_id == store.id
    assert shop.applied(50, ticket_id=9)


def test_webhook_secrets_are_two_at_most_newest_first_and_sealed(shop: Shop) -> None:
    stores, store = shop.house.services.stores, shop.connection.store
    assert stores.webhook_secrets(store) == ()
    assert not stores.standing(store).has_webhook_secret
    for secret in ("first-hook", "second-hook", "second-hook", "third-hook"):
        stores.save_webhook_secret(store, secret=secret)
    assert stores.webhook_secrets(store) == ("third-hook", "second-hook")
    assert stores.standing(store).has_webhook_secret
    assert "-hook" not in columns_of(shop.house.services.database)
    stores.save_webhook_secret(store, secret="")
    assert stores.webhook_secrets(store) == ()


def test_the_key_is_in_no_column_no_log_line_and_no_exception(
    shop: Shop, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    key = shop.rivo.key
    services = shop.house.services
    with caplog.at_level(logging.DEBUG):
        shop.card()
        shop.applied(5)
        for kind in ("status", "html", "truncated", "reset_before", "rate_limited", "redirect", "empty"):
            shop.fault(kind, path=".*", method=None, times=1)
            shop.clock.advance(61)
            shop.press(5, ticket_id=1)
            shop.card(f"{kind}@example.com")
            shop.settle()
            shop.work(20)
            shop.mend()
        shop.rivo.regenerate_key()
        with pytest.raises(ProgramUnavailable) as refused:
            services.rivo.try_key(key, gate=services.stores.gate_of(ProgramKind.RIVO, key))
    texts = [
        columns_of(services.database),
        "".join(capfd.readouterr()),
        caplog.text,
        "".join(traceback.format_exception(refused.value)),
        repr(shop.connection),
        repr(services.stores.key_of(shop.connection.store)),
        repr(services.stores.standing(shop.connection.store)),
        *(path.read_bytes().decode("latin-1") for path in tmp_path.glob("tallydesk.db*")),
    ]
    for text in texts:
        assert key not in text
        assert key[8:32] not in text, "nor a part of it"
    for error in _chain(refused.value):
        assert key not in f"{error!r} {error.args} {vars(error)}"


def test_a_card_or_an_award_under_a_key_that_the_program_refuses_tells_the_operator_once(
    shop: Shop, capfd: pytest.CaptureFixture[str]
) -> None:
    shop.card()
    shop.rivo.regenerate_key()
    shop.clock.advance(60)
    capfd.readouterr()
    for _ in range(3):
        shop.refreshed()
        shop.clock.advance(60)
    said = "".join(capfd.readouterr())
    assert said.count("outcome=key_refused") == 1


def test_no_call_is_made_for_a_look_at_an_award_while_the_key_is_refused(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_before", times=None)
    done = shop.queued(50)
    shop.fault("status", path=CUSTOMERS, method="GET", status=401)
    shop.clock.advance(61)
    shop.refreshed()
    calls = shop.calls(EVENTS)
    shop.work(300, step_s=20)
    assert shop.calls(EVENTS) == calls
    assert shop.state(done) == "unknown"


def _standing(shop: Shop) -> KeyState:
    return shop.house.services.stores.standing(shop.connection.store).state


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and len(found) < 20:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
