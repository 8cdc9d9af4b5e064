"""The front door: `create_app` hands each room what it needs and puts them behind one address."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import click
import orjson
import structlog
from flask import Flask, Response, g, make_response, render_template, request
from flask_wtf import CSRFProtect
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import cli
import console.room
import console.views
import health
import oauth.views
import settings as configuration
import webhooks.views
import widget.lookup
import widget.room
import widget.views
from api_description import describe
from console.changes import Change, record
from findings import Severity
from limiting import Limit
from oauth.gorgias_api import origin_of
from oauth.sessions import Sessions
from oauth.sign_in import SESSION_LIFE, Visitor
from redaction import hide
from services import Services, build_services
from settings import Settings, SettingsError
from storage.database import Database, DatabaseUnavailable, unavailable_sentence
from storage.sealing import CannotOpen, Sealer, Stock, load_hasher
from telemetry import configure_logging
from watching.gauges import Gauges
from watching.metrics_page import MetricsPage
from watching.request_log import add_request_log

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MAX_BODY = 16 * 1024
OPERATIONS = ("/healthz", "/readyz", "/metrics", "/openapi.json")

log = structlog.get_logger()


def create_app(services: Services | None = None) -> Flask:
    """The Flask application. Without `services`, settings are read from the environment.

    Raises click.ClickException with every fault of the settings, so that commands end in a sentence. Only for
    `flask doctor` there is an application all the same, which can do nothing but tell them.
    """
    of_a_process = services is None
    if services is None:
        try:
            services = _services_of_this_process(configuration.from_environment())
        except (SettingsError, DatabaseUnavailable) as error:
            if cli.is_looking_for_a_command():
                return cli.doctor_alone(error)
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
    app.session_interface = Sessions(services.session_keys, outside=("/widget/", "/rivo/webhooks/", *OPERATIONS))
    app.jinja_env.filters["thousands"] = lambda number: f"{number:,}"
    app.extensions["tallydesk"] = services
    csrf = CSRFProtect(app)

    console_room = console.room.ConsoleRoom(
        settings=settings,
        database=services.database,
        accounts=services.accounts,
        connections=services.connections,
        placement=services.placement,
        leaving=services.leaving,
        probe=services.probe,
        troubles=services.troubles,
        notices=services.notices,
        http=services.http,
        members=services.members,
        awards=services.awards,
        rivo=services.rivo,
        stores=services.stores,
        snapshots=services.snapshots,
        sealer=services.sealer,
        hasher=services.hasher,
        csrf=csrf,
        api_for=lambda account_id, name: services.api_for(name, services.accounts.token_source(account_id)),
        now=services.now,
        random_bytes=services.random_bytes,
    )

    def connected(visitor: Visitor) -> None:
        record(console_room, visitor, Change.ACCOUNT_CONNECTED)
        services.probe.see_connected(visitor.account_id)

    app.register_blueprint(
        oauth.views.create_blueprint(
            oauth.views.OAuthRoom(
                settings=settings,
                accounts=services.accounts,
                sealer=services.sealer,
                endpoint=services.endpoint,
                api_for=services.api_for,
                now=services.now,
                random_bytes=services.random_bytes,
                starts=oauth.views.Starts(services.now),
                on_connected=connected,
            )
        )
    )
    widget_room = widget.room.WidgetRoom(
        settings=settings,
        connections=services.connections,
        inspector=services.inspector,
        accounts=services.accounts,
        members=services.members,
        awards=services.awards,
        hasher=services.hasher,
        wrong_keys=Limit(most=widget.room.WRONG_KEYS, within=widget.room.WRONG_KEYS_WITHIN, now=services.now),
        now=services.now,
        random_bytes=Stock(services.random_bytes),
    )
    lookup = widget.lookup.create_lookup(widget_room)
    app.register_blueprint(widget.views.create_blueprint(widget_room, lookup=lookup))
    app.register_blueprint(console.views.create_blueprint(console_room))
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
    _add_description(app, settings)
    _add_answers_for_trouble(app)
    _lead_straight(app, widget.room.CUSTOMER, lookup)
    add_request_log(app, random_bytes=services.random_bytes)
    _add_security_headers(app, settings)
    cli.register(app)
    if of_a_process:
        # All that there is by now stays. Otherwise the collector looks through it again and again, and every request of
        # the process waits for 80 ms meanwhile.
        gc.freeze()
    return app


def _services_of_this_process(settings: Settings) -> Services:
    """Everything, once what this process says is looked through for its secrets. Raises DatabaseUnavailable."""
    hide(settings.secret_key, *settings.encryption_keys, settings.gorgias_client_secret, settings.metrics_token)
    hide(settings.sentry_dsn, make_url(settings.database_url).password or "")
    reports = None
    if settings.sentry_dsn:
        environment = "development" if settings.development else "production"
        # Only here: it costs a tenth of a second to load.
        from watching.crash_reports import CrashReports

        reports = CrashReports(settings.sentry_dsn, environment=environment)
    configure_logging(on_crash=reports)
    return build_services(settings)


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


def _add_operations(app: Flask, services: Services) -> None:
    gauges = Gauges(services.database, job_names=services.jobs.names, now=services.now)
    page = MetricsPage(token=services.settings.metrics_token, extra=gauges)
    instance = {health.INSTANCE_HEADER: health.instance_of(services.settings)}

    @app.get("/healthz")
    def alive() -> Response:
        """Whether this process answers; asks nothing. The header tells `flask doctor` whose process it is."""
        return Response("ok\n", mimetype="text/plain", headers=instance)

    # What was wrong at the last look: told once when it comes, and once when it is over.
    last_seen: dict[str, str] = {}

    @app.get("/readyz")
    def ready() -> Response:
        """Whether requests can be served: those of `flask doctor`'s checks that this process needs."""
        wrong = {f.id: f"{f.sentence} {f.remedy}" for f in services.health.ready() if f.severity is Severity.ERROR}
        for finding in wrong.keys() - last_seen.keys():
            log.error("health", outcome=Severity.ERROR.value, finding=finding, trouble=wrong[finding])
        for finding in last_seen.keys() - wrong.keys():
            log.info("health", outcome="well_again", finding=finding)
        last_seen.clear()
        last_seen.update(wrong)
        if wrong:
            return Response("".join(f"{told}\n" for told in wrong.values()), status=503, mimetype="text/plain")
        return Response("ready\n", mimetype="text/plain")

    @app.get("/metrics")
    def metrics() -> Response:
        """The counters of all processes of this server, and how things stand."""
        return page.answer(request.headers.get("Authorization", ""))


def _add_description(app: Flask, settings: Settings) -> None:
    described = describe(settings.public_url)
    as_json = orjson.dumps(described)

    @app.get("/openapi.json")
    def openapi() -> Response:
        """What programs may call, for machines; it is the same for everybody and holds nothing of anybody."""
        return Response(as_json, mimetype="application/json")

    @app.get("/api")
    def api() -> str:
        """The same, to be read."""
        return render_template("api.html", spec=described)


def _add_answers_for_trouble(app: Flask) -> None:
    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        status = error.code or 500
        g.setdefault("outcome", f"http_{status}")
        answer = answer_for(status)
        if isinstance(error, MethodNotAllowed):
            answer.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return answer

    def answer_for(status: int) -> Response:
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
        if request.path.startswith(webhooks.views.PATH):
            return make_response({"status": "refused", "message": "No webhook is taken in this way."}, status)
        return make_response(render_template("error.html", status=status), status)

    @app.errorhandler(DBAPIError)
    @app.errorhandler(PoolTimeout)
    def database_trouble(error: DBAPIError | PoolTimeout) -> Response:
        """An expected failure: one line for the operator that says what to do, a page for the person."""
        trouble = unavailable_sentence(error) if isinstance(error, DBAPIError) else "No database connection was free."
        g.outcome, g.trouble = "database_trouble", trouble
        return make_response(render_template("error.html", status=503), 503)

    @app.errorhandler(Exception)
    def crashed(error: Exception) -> Response:
        g.outcome, g.crash = "crashed", error
        if request.path.startswith("/widget/"):
            sentence = "Something went wrong in Tallydesk. Look at the balance before you try again."
            return make_response({"status": "rejected", "reason": "crashed", "message": sentence}, 500)
        return make_response(render_template("error.html", status=500), 500)


def _lead_straight(app: Flask, path: str, answer: WSGIApplication) -> None:
    """GET and HEAD of `path` go to `answer` past Flask, which would lead them to the same function."""
    inner = app.wsgi_app

    def lead(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == path and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return answer(environ, start_response)
        return inner(environ, start_response)

    app.wsgi_app = lead  # type: ignore[method-assign]


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
        # For browsers that do not know frame-ancestors.
        "X-Frame-Options": "DENY",
        "Cross-Origin-Opener-Policy": "same-origin",
        # Not for what a helpdesk's page may fetch: there Access-Control-Allow-Origin decides.
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    }
    if settings.public_url.startswith("https://"):
        headers["Strict-Transport-Security"] = "max-age=31536000"

    # Every page may hold a name and a form's token, error pages included; files of the console say themselves how long
    # they may be kept.
    headers["Cache-Control"] = "no-store"
    inner = app.wsgi_app

    @lru_cache(maxsize=100)
    def missing(given: tuple[str, ...]) -> list[tuple[str, str]]:
        own = {name.lower() for name in given}
        return [(name, value) for name, value in headers.items() if name.lower() not in own]

    # Around Flask: set one by one in a hook, they took longer than the lookup of a member.
    def with_headers(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, given: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            # A page may have a stricter one of its own.
            return start_response(status, given + missing(tuple([name for name, _ in given])), *error)

        return inner(environ, start)

    app.wsgi_app = with_headers  # type: ignore[method-assign]
