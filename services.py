"""What a process works with, wired together: the one place that knows every room's parts and how they hang together.

The web server, the worker and the commands each build one. Time, pauses and randomness come in here and nowhere else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import requests

from engine_worker import EngineWorker
from health import Health
from jobs import Jobs
from loyalty.awards import Awards
from loyalty.delivery import Delivery
from loyalty.gate import Gate
from loyalty.journal import Journal
from loyalty.ledger import Ledger
from loyalty.members import Members, ReadLimits
from loyalty.program import LoyaltyProgram, ProgramKind
from loyalty.rivo import RivoClient
from loyalty.rivo_program import Rivo
from loyalty.snapshots import Snapshots
from loyalty.stores import Stores
from notices import Notices
from oauth.accounts import Accounts
from oauth.gorgias_api import GorgiasApi, TokenEndpoint, TokenSource, new_session
from oauth.sessions import SessionKeys
from outbound import Client
from privacy.retention import Retention
from privacy.rows import Eraser
from settings import Settings
from storage.database import Database
from storage.sealing import Hasher, RandomBytes, Sealer, load_hasher
from troubles import Troubles
from widget.connections import Connections
from widget.inspector import Inspector
from widget.leaving import Leaving
from widget.notes import Notes
from widget.placement import Placement
from widget.probe import Probe
from worker import EmbeddedWorker, Worker


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a process works with. Building it opens no connection and reads no table."""

    settings: Settings
    database: Database
    sealer: Sealer
    hasher: Hasher
    programs: dict[ProgramKind, LoyaltyProgram]
    rivo: Rivo
    stores: Stores
    snapshots: Snapshots
    members: Members
    delivery: Delivery
    awards: Awards
    endpoint: TokenEndpoint
    accounts: Accounts
    session_keys: SessionKeys
    http: requests.Session
    client: Client
    api_for: Callable[[str, TokenSource], GorgiasApi]
    connections: Connections
    inspector: Inspector
    placement: Placement
    leaving: Leaving
    troubles: Troubles
    probe: Probe
    notices: Notices
    health: Health
    eraser: Eraser
    jobs: Jobs
    worker: Worker
    now: Callable[[], datetime]
    random_bytes: RandomBytes


def build_services(
    settings: Settings,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
    random_bytes: RandomBytes = os.urandom,
) -> Services:
    """Wire everything for one process."""
    database = Database(settings.database_url)
    sealer = Sealer(settings.encryption_keys)
    hasher = load_hasher(database, sealer=sealer, random_bytes=random_bytes)
    http = new_session()
    client = Client()
    stores = Stores(database, sealer=sealer, hasher=hasher, now=now)
    snapshots = Snapshots(database, sealer=sealer, now=now)
    gate = Gate(database, now=now, sleep=sleep)
    rivo = Rivo(
        RivoClient(settings.rivo_url, client=client, gate=gate, now=now),
        gate=gate,
        stores=stores,
        snapshots=snapshots,
        now=now,
    )
    programs: dict[ProgramKind, LoyaltyProgram] = {
        ProgramKind.LEDGER: Ledger(database, sealer=sealer, hasher=hasher, public_url=settings.public_url, now=now),
        ProgramKind.RIVO: rivo,
    }
    members = Members(
        snapshots=snapshots,
        programs=programs,
        hasher=hasher,
        limits=ReadLimits(
            fresh_s=settings.snapshot_fresh_s,
            not_found_s=settings.snapshot_not_found_s,
            deadline_s=settings.card_deadline_s,
            retention=timedelta(days=settings.snapshot_retention_days),
        ),
        now=now,
        sleep=sleep,
        random_bytes=random_bytes,
    )
    journal = Journal(database, sealer=sealer, now=now)
    delivery = Delivery(
        journal=journal,
        programs=programs,
        members=members,
        now=now,
        random_bytes=random_bytes,
        resend_after_s=settings.unknown_award_resend_after_s,
    )
    awards = Awards(
        database,
        programs=programs,
        members=members,
        journal=journal,
        delivery=delivery,
        sealer=sealer,
        hasher=hasher,
        now=now,
        random_bytes=random_bytes,
        double_click_window_s=settings.double_click_window_s,
    )
    endpoint = TokenEndpoint(
        base_of=settings.gorgias_base,
        client_id=settings.gorgias_client_id,
        client_secret=settings.gorgias_client_secret,
        redirect_uri=f"{settings.public_url}/oauth/callback",
    )
    accounts = Accounts(database, sealer=sealer, endpoint=endpoint, now=now, sleep=sleep, random_bytes=random_bytes)

    def api_for(account: str, token: TokenSource) -> GorgiasApi:
        return GorgiasApi(settings.gorgias_base(account), token=token, session=http, sleep=sleep)

    def api_of(account_id: int, account: str) -> GorgiasApi:
        return api_for(account, accounts.token_source(account_id))

    connections = Connections(database, sealer=sealer, now=now, random_bytes=random_bytes)
    placement = Placement(
        database,
        connections=connections,
        api_for=api_of,
        public_url=settings.public_url,
        now=now,
        sleep=sleep,
        random_bytes=random_bytes,
    )
    troubles = Troubles(database, now=now)
    probe = Probe(
        database,
        accounts=accounts,
        connections=connections,
        placement=placement,
        stores=stores,
        troubles=troubles,
        api_for=api_of,
        public_url=settings.public_url,
        now=now,
    )
    notices = Notices(
        database,
        sealer=sealer,
        troubles=troubles,
        public_url=settings.public_url,
        development=settings.development,
        client=client,
        now=now,
    )
    notes = Notes(database, connections=connections, accounts=accounts, api_for=api_of, sealer=sealer, now=now)
    eraser = Eraser(sealer=sealer, random_bytes=random_bytes, now=now)
    retention = Retention(
        database,
        eraser=eraser,
        awards_kept=timedelta(days=settings.award_retention_days),
        after_disconnect=timedelta(days=settings.forget_after_disconnect_days),
    )
    leaving = Leaving(
        accounts=accounts,
        connections=connections,
        placement=placement,
        stores=stores,
        snapshots=snapshots,
        api_for=api_for,
    )
    jobs = Jobs(
        database,
        accounts=accounts,
        leaving=leaving,
        notes=notes,
        journal=journal,
        delivery=delivery,
        members=members,
        retention=retention,
        probe=probe,
        troubles=troubles,
        notices=notices,
        give_up_after=timedelta(days=settings.forget_after_disconnect_days),
        now=now,
    )
    worker: Worker
    if database.sqlite:
        worker = EmbeddedWorker(database, jobs=jobs, now=now, random_bytes=random_bytes)
    else:
        worker = EngineWorker(database, jobs=jobs, now=now)
    return Services(
        settings=settings,
        database=database,
        sealer=sealer,
        hasher=hasher,
        programs=programs,
        rivo=rivo,
        stores=stores,
        snapshots=snapshots,
        members=members,
        delivery=delivery,
        awards=awards,
        endpoint=endpoint,
        accounts=accounts,
        session_keys=SessionKeys(
            database, sealer=sealer, secret_key=settings.secret_key, now=now, random_bytes=random_bytes
        ),
        http=http,
        client=client,
        api_for=api_for,
        connections=connections,
        inspector=Inspector(database),
        placement=placement,
        leaving=leaving,
        troubles=troubles,
        probe=probe,
        notices=notices,
        health=Health(
            settings=settings,
            database=database,
            hasher=hasher,
            accounts=accounts,
            connections=connections,
            placement=placement,
            probe=probe,
            troubles=troubles,
            now=now,
        ),
        eraser=eraser,
        jobs=jobs,
        worker=worker,
        now=now,
        random_bytes=random_bytes,
    )
