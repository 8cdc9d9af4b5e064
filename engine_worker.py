"""The runner on PostgreSQL: Procrastinate takes the jobs, on any number of hosts, and calls the same functions.

What is the engine's: queue, order, one at a time for each lock, retries, periodic jobs, heartbeats, and which jobs a
lost worker held. What is ours: the functions, and that this process outlives the absence of its database.
Source: https://procrastinate.readthedocs.io/en/stable/howto/basics/worker.html
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import psycopg
import structlog
from procrastinate import App, BaseRetryStrategy, JobContext, PsycopgConnector, RetryDecision
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job as EngineJob
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

import settings
from jobs import Jobs
from storage.database import Database
from storage.engine import QUEUE
from storage.queue import Job
from worker import THREADS, TROUBLE_PAUSE_S

# A new job wakes a worker at once; one that was asked for later is found by looking.
LOOK_EVERY_S = 1.0
HEARTBEAT_S = 10.0
# A worker that has shown nothing for so long is lost, and its jobs are taken up by others.
LOST_AFTER_S = 30.0
AFTER_TROUBLE = timedelta(minutes=1)

log = structlog.get_logger()


class _RunAgain(Exception):
    """The job is not done; it wants to run again at `at`."""

    def __init__(self, at: datetime) -> None:
        super().__init__("again")
        self.at = at


class _AgainWhenAsked(BaseRetryStrategy):
    """The job itself says when. `now` serves for what could not even say that."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now

    def get_retry_decision(self, *, exception: BaseException, job: EngineJob) -> RetryDecision:
        at = exception.at if isinstance(exception, _RunAgain) else self._now() + AFTER_TROUBLE
        return RetryDecision(retry_at=at)


class EngineWorker:
    """Runs the jobs of a PostgreSQL database until it is stopped."""

    def __init__(self, database: Database, *, jobs: Jobs, now: Callable[[], datetime]) -> None:
        self._database_url = database.url
        self._jobs = jobs
        self._now = now

    def run_forever(self) -> None:
        """Run until SIGTERM or SIGINT; returns when what was running is finished."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="worker"))
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        log.info("worker", outcome="started")
        while not stopping.is_set():
            try:
                kind = await self._work(stopping)
            except (psycopg.Error, ConnectorException) as error:
                kind = type(error).__name__
            if not stopping.is_set():
                log.error("worker", outcome="database_trouble", kind=kind)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), TROUBLE_PAUSE_S)
        log.info("worker", outcome="stopped")

    async def _work(self, stopping: asyncio.Event) -> str:
        """Work until `stopping` or trouble; returns a word for the trouble. May raise what the driver raises."""
        trouble = asyncio.Event()
        # The outcome of a job could not be written: only a worker that has left has its jobs taken up again.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: trouble.set())
        async with self._app().open_async() as app:
            working = asyncio.create_task(
                app.run_worker_async(
                    queues=[QUEUE],
                    concurrency=THREADS,
                    fetch_job_polling_interval=LOOK_EVERY_S,
                    update_heartbeat_interval=HEARTBEAT_S,
                    stalled_worker_timeout=LOST_AFTER_S,
                    # A job is a hint, and what became of it stands in the state it served.
                    delete_jobs="always",
                    install_signal_handlers=False,
                )
            )
            signs = [asyncio.create_task(event.wait()) for event in (stopping, trouble)]
            await asyncio.wait([working, *signs], return_when=asyncio.FIRST_COMPLETED)
            for sign in signs:
                sign.cancel()
            # Stops claiming and waits for the jobs under way.
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working
        return "JobNotWritten" if trouble.is_set() else "WorkerStopped"

    def _app(self) -> App:
        app = _app_of(self._database_url)
        for name in self._jobs.names:
            app.task(name=name, queue=QUEUE, pass_context=True, retry=_AgainWhenAsked(self._now))(self._attend)

        async def recover(context: JobContext, timestamp: int) -> None:  # noqa: ARG001 (the engine passes it)
            """Take up the jobs of workers that are lost."""
            manager = context.app.job_manager
            for job in await manager.get_stalled_jobs(seconds_since_heartbeat=LOST_AFTER_S):
                await manager.retry_job(job)
                log.warning("worker", outcome="job_recovered", job=job.task_name)

        def guarded(step: Callable[[], object]) -> None:
            try:
                step()
            except SQLAlchemyError as error:
                log.error("worker", outcome="database_trouble", kind=type(error).__name__)

        def ask_again(_context: JobContext, timestamp: int) -> None:  # noqa: ARG001
            guarded(self._jobs.ask_again)

        def sweep(_context: JobContext, timestamp: int) -> None:  # noqa: ARG001
            guarded(self._jobs.sweep)

        # The sixth field counts seconds.
        often = "* * * * * */15"
        for cron, function in ((often, recover), (often, ask_again), ("* * * * *", sweep)):
            name = function.__name__
            # No lock: a worker that is lost in the middle would hold it, and nobody would look for lost workers.
            task: Any = app.task(name=name, queue=QUEUE, queueing_lock=name, pass_context=True)(function)
            app.periodic(cron=cron)(task)
        return app

    def _attend(self, context: JobContext, ref: str) -> None:
        job = context.job
        result = self._jobs.attend(Job(id=job.id or 0, name=job.task_name, ref=ref, attempts=job.attempts + 1))
        if result.again_at is not None:
            raise _RunAgain(result.again_at)


def __getattr__(name: str) -> App:
    """`app`, for the engine's own tools: `python -m procrastinate --app=engine_worker.app shell list_jobs`."""
    if name != "app":
        raise AttributeError(name)
    return _app_of(settings.from_environment().database_url)


def _app_of(database_url: str) -> App:
    # libpq's own form of the address.
    conninfo = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connector = PsycopgConnector(
        conninfo=conninfo,
        # For listening, heartbeats, taking jobs and writing down how they ended.
        min_size=1,
        max_size=6,
        timeout=5.0,
        kwargs={"connect_timeout": 5},
    )
    return App(connector=connector)
