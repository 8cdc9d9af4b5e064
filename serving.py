"""gunicorn's worker with threads, of which a few run while many may wait (threads.py)."""

from __future__ import annotations

from gunicorn.workers.gthread import ThreadWorker

from threads import Threads

# While nothing is slow no other number answers more, and with eight cards that come together are later
# (docs/benchmarks.md).
RUNNING = 4


class Worker(ThreadWorker):  # type: ignore[misc]
    """`threads` of gunicorn's settings is how many requests may be under way, those that wait included."""

    def get_thread_pool(self) -> Threads:
        """Where gunicorn submits each request."""
        return Threads(running=RUNNING, most=self.cfg.threads, name="request")
