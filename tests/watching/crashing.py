"""Tallydesk with a bug in its programs, for real processes: reading `crash.…` fails, and looking for an award of
`doubt.…`.

The error quotes what a careless one would: the address, and a key.
"""

from __future__ import annotations

from typing import Any

from flask import Flask

import app
from loyalty.program import Store
from services import Services


class Crashing:
    """A program that works, but not for everybody."""

    def __init__(self, program: Any, services: Services) -> None:
        self._program = program
        self._services = services

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def member(self, store: Store, *, email: str, **how: Any) -> Any:
        self._crash_if(email.startswith("crash."), store, email)
        return self._program.member(store, email=email, **how)

    def find_points(self, store: Store, *, event: Any, **how: Any) -> Any:
        self._crash_if(event.email.startswith("doubt."), store, event.email)
        return self._program.find_points(store, event=event, **how)

    def _crash_if(self, met: bool, store: Store, email: str) -> None:
        if met:
            key = self._services.settings.gorgias_client_secret
            if self._program.remote:
                key = self._services.stores.key_of(store).key
            told = {"email": email, "headers": {"Authorization": key}}
            raise RuntimeError(f"no answer for {email} with {key}", told)


def create_app() -> Flask:
    """The front door of a real process, in front of programs that crash."""
    made = app.create_app()
    services: Services = made.extensions["tallydesk"]
    for kind, program in list(services.programs.items()):
        services.programs[kind] = Crashing(program, services)
    return made
