"""The front door: `create_app` hands each room what it needs and puts them behind one address."""

from __future__ import annotations

import os
from typing import Any

import click
import structlog
from flask import Flask, Request, Response, make_response, render_template, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask_wtf import CSRFProtect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

import cli
import console.room
import console.views
import oauth.views
import settings as configuration
import webhooks.views
import widget.views
from oauth.gorgias_api import origin_of
from oauth.sign_in import SESSION_LIFE
from services import Services, build_services
from settings import Settings, SettingsError
from storage.database import Database, DatabaseUnavailable, unavailable_sentence
from storage.sealing import CannotOpen, Sealer, load_hasher
from telemetry import REQUESTS, configure_logging, exposition

MAX_BODY = 16 * 1024

log = structlog.get_logger()


def create_app(services: Services | None = None) -> Flask:
    """The Flask application. Without `services`, settings are read from the environment.

    Raises click.ClickException with every fault of the settings, so that commands end in a sentence.
    """
    if services is None:
        configure_logging()
        try:
            services = build_services(configuration.from_environment())
        except (SettingsError, DatabaseUnavailable) as error:
            raise click.ClickException(str(error)) from error
    settings = services.settings
    app = Flask(__name__, static_folder=None)
    secure = settings.public_url.startswith("https://")
    app.config.update(
        SECRET_KEY=settings.secret_key,
        SESSION_COOKIE_NAME="tallydesk_session",
        SESSION_COOKIE_SECURE=secure,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=SESSION_LIFE,
        MAX_CONTENT_LENGTH=MAX_BODY,
        # Flask-WTF's own switch would protect every view at once; the console protects its own.
        WTF_CSRF_CHECK_DEFAULT=False,
        WTF_CSRF_TIME_LIMIT=None,
        # It compares the Referer with Host, which a proxy on the same machine may have changed; the token stays.
        WTF_CSRF_SSL_STRICT=False,
    )
    app.session_interface = _SessionsOutsideWidget()
    app.jinja_env.filters["thousands"] = lambda number: f"{number:,}"
    app.extensions["tallydesk"] = services
    csrf = CSRFProtect(app)

    app.register_blueprint(
        oauth.views.create_blueprint(
            oauth.views.OAuthRoom(
                settings=settings,
                accounts=services.accounts,
                endpoint=services.endpoint,
                api_for=services.api_for,
                now=services.now,
                random_bytes=services.random_bytes,
            )
        )
    )
    app.register_blueprint(
        widget.views.create_blueprint(
            widget.views.WidgetRoom(
                settings=settings,
                connections=services.connections,
                accounts=services.accounts,
                members=services.members,
                awards=services.awards,
                hasher=services.hasher,
                now=services.now,
                random_bytes=services.random_bytes,
            )
        )
    )
    app.register_blueprint(
        console.views.create_blueprint(
            console.room.ConsoleRoom(
                settings=settings,
                database=services.database,
                accounts=services.accounts,
                connections=services.connections,
                placement=services.placement,
                http=services.http,
                awards=services.awards,
                rivo=services.rivo,
                stores=services.stores,
                snapshots=services.snapshots,
                sealer=services.sealer,
                csrf=csrf,
                api_for=lambda account_id, name: services.api_for(name, services.accounts.token_source(account_id)),
                now=services.now,
            )
        )
    )
    app.register_blueprint(
        webhooks.views.create_blueprint(
            webhooks.views.WebhookRoom(
                database=services.database,
                connections=services.connections,
                stores=services.stores,
                members=services.members,
                delivery=services.delivery,
                hasher=services.hasher,
                now=services.now,
            )
        )
    )
    _add_operations(app, services)
    _add_answers_for_trouble(app)
    _add_security_headers(app, settings)
    cli.register(app)
    return app


def why_not_ready() -> str | None:
    """Why the web server must not start, in one sentence or a list of faults; None when it may.

    gunicorn.conf.py asks once before it forks, so that a fault ends in a sentence and not in workers that crash.
    """
    try:
        settings = configuration.from_environment()
        database = Database(settings.database_url)
    except (SettingsError, DatabaseUnavailable, OSError) as error:
        return str(error)
    try:
        database.require_current()
        hasher = load_hasher(database, sealer=Sealer(settings.encryption_keys), random_bytes=os.urandom)
        hasher.email("")
    except (DatabaseUnavailable, CannotOpen) as error:
        return str(error)
    finally:
        database.close()
    return None


class _SessionsOutsideWidget(SecureCookieSessionInterface):
    """Flask's sessions, but none on what programs call: opening one costs as much as a whole lookup."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        if request.path.startswith(("/widget/", "/rivo/webhooks/", "/healthz", "/metrics")):
            # None makes Flask use a null session, which nobody can write to.
            return None
        return super().open_session(app, request)


def _add_operations(app: Flask, services: Services) -> None:
    @app.get("/healthz")
    def alive() -> Response:
        """Whether this process answers; asks nothing."""
        return Response("ok\n", mimetype="text/plain")

    @app.get("/readyz")
    def ready() -> Response:
        """Whether requests can be served: the database answers and has this version's schema."""
        try:
            services.database.require_current()
        except DatabaseUnavailable as error:
            return Response(f"{error}\n", status=503, mimetype="text/plain")
        return Response("ready\n", mimetype="text/plain")

    @app.get("/metrics")
    def metrics() -> Response:
        body, content_type = exposition()
        return Response(body, content_type=content_type)


def _add_answers_for_trouble(app: Flask) -> None:
    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        status = error.code or 500
        REQUESTS.labels(str(request.url_rule), f"http_{status}").inc()
        if request.path.startswith("/widget/"):
            sentence = {
                404: "There is nothing at this address.",
                405: "This address is called with another method.",
                413: "The request is too large.",
            }.get(status, "The request cannot be read.")
            body = {
                "status": "rejected",
                "reason": f"http_{status}",
                "message": f"{sentence} Nothing was added.",
            }
            return make_response(body, status)
        return make_response(render_template("error.html", status=status), status)

    @app.errorhandler(DBAPIError)
    @app.errorhandler(PoolTimeout)
    def database_trouble(error: DBAPIError | PoolTimeout) -> Response:
        """An expected failure: one line for the operator that says what to do, a page for the person."""
        trouble = unavailable_sentence(error) if isinstance(error, DBAPIError) else "No database connection was free."
        log.error("request", outcome="database_trouble", route=str(request.url_rule), trouble=trouble)
        return make_response(render_template("error.html", status=503), 503)

    @app.errorhandler(Exception)
    def crashed(_: Exception) -> Response:
        log.exception("request", outcome="crashed", route=str(request.url_rule))
        if request.path.startswith("/widget/"):
            sentence = "Something went wrong in Tallydesk. Look at the balance before you try again."
            return make_response({"status": "rejected", "reason": "crashed", "message": sentence}, 500)
        return make_response(render_template("error.html", status=500), 500)


def _add_security_headers(app: Flask, settings: Settings) -> None:
    # Connecting is a form that ends at Gorgias after redirects, and Chromium applies form-action to those too.
    helpdesks = origin_of(settings.gorgias_url).replace("{account}", "*")
    policy = (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action 'self' {helpdesks}"
    )
    headers: dict[str, str] = {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Content-Security-Policy": policy,
    }
    if settings.public_url.startswith("https://"):
        headers["Strict-Transport-Security"] = "max-age=31536000"

    @app.after_request
    def add(response: Any) -> Any:
        for name, value in headers.items():
            response.headers[name] = value
        # Every page may hold a name and a form's token, error pages included; only the style sheet and icons do not.
        if request.endpoint != "console.static" or response.status_code >= 400:
            response.headers["Cache-Control"] = "no-store"
        return response
