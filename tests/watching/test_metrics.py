"""What Prometheus is told: how things stand in the database, to whoever has the token, in words of ours alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert, text, update

from script.bootstrap import ROOT
from storage import queue
from storage.database import Database
from storage.tables import accounts, awards, troubles
from telemetry import (
    AWARDS,
    GORGIAS_CALLS,
    JOBS,
    MEMBER_READS,
    PROGRAM_CALLS,
    SNAPSHOT_AGE_SECONDS,
    TOKEN_REFRESHES,
    WEBHOOKS,
)
from tests.databases import Clock
from tests.house import House, running_house
from watching.gauges import Gauges
from watching.metrics_page import MetricsPage

TOKEN = "a token of the tests"


def scraped(house: House) -> dict[tuple[str, str], float]:
    """Every sample: its name and labels as text, and its value."""
    answer = requests.get(f"{house.url}/metrics", timeout=20)
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, json.dumps(sample.labels)): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def gauge(found: dict[tuple[str, str], float], metric: str, /, **labels: str) -> float:
    return found[f"tallydesk_{metric}", json.dumps(labels)]


def test_how_things_stand_is_read_from_the_database_at_each_scrape(database: Database, clock: Clock) -> None:
    with running_house(database.url, clock=clock) as house:
        _, connection = house.connect()
        house.add_member(connection.store, "ana@example.com", points=10)
        before = scraped(house)
        assert gauge(before, "database_up") == 1
        assert {gauge(before, "open_awards", state=s) for s in ("pending", "sending", "unknown", "needs_review")} == {0}
        assert gauge(before, "worker_seen_seconds") == float("inf")
        assert gauge(before, "accounts", state="connected") == 1
        assert gauge(before, "accounts", state="needs_reauth") == 0

        for ticket, state in enumerate(("applied", "unknown", "unknown", "needs_review")):
            asked = {"email": "ana@example.com", "points": 5, "ticket_id": str(ticket + 1)}
            operation_id = house.award(connection, asked).json()["operation_id"]
            with database.write() as tx:
                tx.execute(update(awards).where(awards.c.operation_id == operation_id).values(state=state))
            clock.advance(60)
        _show_worker(database, clock)
        clock.advance(7)
        with database.write() as tx:
            queue.defer(tx, "of_a_newer_version", "1", run_at=clock())
            tx.execute(update(accounts).values(state="needs_reauth"))
            tx.execute(
                insert(troubles).values(
                    account_id=connection.account_id,
                    subject="",
                    finding="gorgias.token",
                    severity="error",
                    sentence="It is gone.",
                    remedy="Connect again.",
                    since=clock(),
                    changed_at=clock(),
                    told="error",
                )
            )
        clock.advance(3)
        found = scraped(house)
    assert gauge(found, "open_awards", state="unknown") == 2
    assert gauge(found, "open_awards", state="needs_review") == 1
    assert gauge(found, "oldest_open_award_seconds", state="unknown") == 190
    assert gauge(found, "oldest_open_award_seconds", state="pending") == 0
    assert gauge(found, "due_notes") == 4
    assert gauge(found, "oldest_due_note_seconds") == 250
    assert gauge(found, "waiting_jobs", name="award_settled") == 4
    assert gauge(found, "waiting_jobs", name="other") == 1, "a name that is none of ours is no label"
    assert gauge(found, "oldest_waiting_job_seconds") == 250
    assert gauge(found, "worker_seen_seconds") == 10
    assert (gauge(found, "accounts", state="connected"), gauge(found, "accounts", state="needs_reauth")) == (0, 1)
    assert (gauge(found, "troubles", severity="error"), gauge(found, "troubles", severity="warning")) == (1, 0)


def _show_worker(database: Database, clock: Clock) -> None:
    with database.write() as tx:
        if database.sqlite:
            queue.show_running(tx, owner="a worker", now=clock())
        else:
            tx.execute(text("INSERT INTO procrastinate_workers (last_heartbeat) VALUES (:at)"), {"at": clock()})


def test_every_query_of_a_scrape_finds_what_is_open_through_an_index(sqlite_database: Database, clock: Clock) -> None:
    """Not by reading every award there ever was."""
    asked: list[str] = []
    with sqlite_database.read() as tx:
        tx.connection.set_trace_callback(asked.append)
        list(Gauges(sqlite_database, job_names=(), now=clock)._found(tx, clock()))
        tx.connection.set_trace_callback(None)
        plans = [str(tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}").all()) for sql in asked if "awards" in sql]
    for plan, index in zip(plans, ("ix_awards_open", "ix_awards_note_due"), strict=True):
        assert f"INDEX {index}'" in plan


@pytest.fixture
def sqlite_house(sqlite_database: Database, clock: Clock) -> Iterator[House]:
    with running_house(sqlite_database.url, clock=clock, metrics_token=TOKEN) as running:
        yield running


def test_with_a_token_the_page_is_for_whoever_has_it_and_tells_of_trouble_with_the_database(
    sqlite_house: House,
) -> None:
    def ask(authorization: str | None) -> requests.Response:
        headers = {} if authorization is None else {"Authorization": authorization}
        return requests.get(f"{sqlite_house.url}/metrics", headers=headers, timeout=20)

    for wrong in (None, "", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer \xe4"):
        answer = ask(wrong)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="metrics"')
        assert "tallydesk_" not in answer.text
    assert "tallydesk_database_up 1.0" in ask(f"Bearer {TOKEN}").text

    with sqlite_house.services.database.write() as tx:
        tx.execute(text("ALTER TABLE awards RENAME TO awards_away"))
    told = ask(f"Bearer {TOKEN}")
    assert told.status_code == 200
    assert "tallydesk_database_up 0.0" in told.text
    assert "tallydesk_requests_total" in told.text, "the counters are told all the same"


def test_no_label_holds_anything_but_words_of_ours(house: House) -> None:
    """No account, no connection, no address, nothing of a path."""
    browser, connection = house.connect("globex")
    for path in ("/globex/x", "/connections/99", f"/connections/{connection.id}", "/oauth/install?account=ana@b.co"):
        browser.get(path)
    house.lookup(connection, "ana@example.com")
    requests.get(f"{house.url}/widget/ana@example.com", timeout=20)
    values = {
        (name, label, str(value))
        for (name, labels) in scraped(house)
        if name.startswith("tallydesk_")
        for label, value in json.loads(labels).items()
    }
    routes = {value for _, label, value in values if label == "route"}
    known = {rule.rule for rule in _rules(house)} | {"/widget", "/rivo/webhooks", "unmatched"}
    assert routes <= known, routes - known
    assert {"unmatched", "/connections/<int:connection_id>"} <= routes
    assert {label for _, label, _ in values} <= {
        "route", "outcome", "state", "severity", "name", "program", "call", "le",
    }  # fmt: skip
    words = {value for _, label, value in values if label not in ("route", "le")}
    assert {word for word in words if not re.fullmatch(r"[a-z0-9_]+", word)} == set()
    assert not any("globex" in value for _, _, value in values)


def _rules(house: House) -> list[Any]:
    from app import create_app

    return list(create_app(house.services).url_map.iter_rules())


class Told:
    """Every metric of the page and the labels it has, and the queries somebody wrote about them."""

    def __init__(self, house: House) -> None:
        # A series is there as soon as it was counted once.
        AWARDS.labels("applied")
        GORGIAS_CALLS.labels("ok")
        JOBS.labels("award_settled", "posted")
        MEMBER_READS.labels("rivo", "fresh")
        PROGRAM_CALLS.labels("rivo", "customer", "ok")
        SNAPSHOT_AGE_SECONDS.labels("rivo").observe(1)
        TOKEN_REFRESHES.labels("ok")
        WEBHOOKS.labels("rivo", "accepted")
        house.lookup(house.connect()[1], "ana@example.com")
        self.labels: dict[str, set[str]] = {}
        for name, labels in scraped(house):
            if name.startswith("tallydesk_") and not name.endswith("_created"):
                self.labels.setdefault(name, set()).update(json.loads(labels))

    def faults(self, query: str) -> list[str]:
        """What in `query` does not exist."""
        found = []
        for name, matchers in re.findall(r"(tallydesk_\w+)(?:\{([^}]*)\})?", query):
            known = self.labels.get(name)
            if known is None:
                found.append(f"{name} in {query}")
                continue
            asked = set(re.findall(r"(\w+)\s*[=!]~?\s*\"", matchers))
            grouped = {label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")}
            found += [f"{name}{{{label}}} in {query}" for label in (asked | grouped) - known]
        return found


def test_dashboard_and_alerts_ask_for_what_there_is(house: House) -> None:
    told = Told(house)
    rules = [
        rule
        for group in yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries = [rule["expr"] for rule in rules] + shown
    assert [fault for query in queries for fault in told.faults(query)] == []
    assert all("tallydesk_" in query for query in queries)
    for query in queries:
        for opening, closing in ("()", "{}", "[]"):
            assert query.count(opening) == query.count(closing), query
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule
        assert rule["annotations"]["summary"].endswith("."), rule
        assert rule["annotations"]["remedy"].endswith("."), rule
    base = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in told.labels}
    missing = {name for name in base if not any(name in query for query in shown)}
    # What has an alert and no panel is told there, as a number of seconds.
    alerted = {name for name in missing if any(name in rule["expr"] for rule in rules)}
    assert missing - alerted == set(), "the dashboard shows everything that is measured"
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)


def test_the_check_of_queries_finds_what_is_wrong(house: House) -> None:
    told = Told(house)
    assert told.faults('sum(rate(tallydesk_requests_total{route="x"}[5m]))') == []
    assert told.faults("max(tallydesk_request)") != []
    assert told.faults('tallydesk_requests_total{account="acme"}') != []
    assert told.faults("sum by (connection) (tallydesk_accounts)") != []


def test_without_several_processes_nothing_is_told_twice(house: House) -> None:
    page = MetricsPage(token="", extra=Gauges(house.services.database, job_names=(), now=house.clock))
    told = page.answer("").get_data(as_text=True)
    for name in ("tallydesk_database_up", "tallydesk_requests_total", "tallydesk_open_awards"):
        assert told.count(f"# TYPE {name} ") == 1, name
