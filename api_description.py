"""What programs may call, as an OpenAPI document: generated from the schemas, served at /openapi.json and as a page."""

from __future__ import annotations

from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema

from schemas.answers import AwardedSchema, AwardRequestSchema, CardSchema, DeliveredSchema, RejectedSchema
from widget.room import CUSTOMER, EARNINGS
from widget.template import KEY_HEADER

# The document's own version, for those who compare documents; it is raised when what is promised changes.
VERSION = "1"
OPENAPI = "3.1.0"

_WRONG_KEY = "The key is missing, wrong, or of the other purpose."
_TOO_MANY = "Too many wrong keys from one address within a minute; a right key is never refused for its rate."
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}


def describe(public_url: str) -> dict[str, Any]:
    """The document of the Tallydesk at `public_url`, as plain data."""
    marshmallow = MarshmallowPlugin(schema_name_resolver=_name_of)
    spec = APISpec(
        title="Tallydesk",
        version=VERSION,
        openapi_version=OPENAPI,
        plugins=[marshmallow],
        info={
            "description": "What a helpdesk, a loyalty program and an operator's tools call. Each key opens one route; "
            "people use the pages of the console instead."
        },
        servers=[{"url": public_url}],
        tags=[
            {"name": "helpdesk", "description": "What Gorgias calls for the card and its buttons."},
            {"name": "program", "description": "What a loyalty program calls when something has changed there."},
            {"name": "operation", "description": "What those who run Tallydesk watch."},
        ],
    )
    for name, purpose in (("lookupKey", "The integration's key."), ("awardKey", "The buttons' key.")):
        scheme = {"type": "apiKey", "in": "header", "name": KEY_HEADER, "description": purpose}
        spec.components.security_scheme(name, scheme)
    spec.components.security_scheme(
        "metricsToken", {"type": "http", "scheme": "bearer", "description": "METRICS_TOKEN, where one is set."}
    )
    spec.path(CUSTOMER, operations={"get": _look_up(), "options": _preflight("lookUpPreflight")})
    spec.path(EARNINGS, operations={"post": _award(), "options": _preflight("awardPreflight")})
    spec.path("/rivo/webhooks/{connection_id}", operations={"post": _webhook()})
    spec.path("/healthz", operations={"get": _health("alive", "Whether a process answers.", {"200": "It does."})})
    ready = {"200": "Requests can be served.", "503": "They cannot; the text says why."}
    spec.path("/readyz", operations={"get": _health("ready", "Whether requests can be served.", ready)})
    metrics = {"200": "Prometheus' text format.", "401": "A token is set, and another one came."}
    spec.path(
        "/metrics",
        operations={
            "get": {
                **_health("metrics", "Counters and gauges for Prometheus.", metrics),
                "security": [{"metricsToken": []}, {}],
            }
        },
    )
    spec.path(
        "/openapi.json",
        operations={
            "get": {
                "operationId": "describe",
                "tags": ["operation"],
                "summary": "This document.",
                "responses": {
                    "200": {
                        "description": "OpenAPI " + OPENAPI,
                        "content": {"application/json": {"schema": {"type": "object"}}},
                    }
                },
            }
        },
    )
    described: dict[str, Any] = spec.to_dict()
    return described


def _name_of(schema: Any) -> str:
    kind = schema if isinstance(schema, type) else type(schema)
    return kind.__name__.removesuffix("Schema")


def _look_up() -> dict[str, Any]:
    return {
        "operationId": "lookUp",
        "tags": ["helpdesk"],
        "summary": "The loyalty card of a customer.",
        "description": "Always 200 with the same keys, whatever arrives and whatever is broken, for a helpdesk that "
        "switches an integration off after failures. `loyalty_status` says whether there is such a member.",
        "security": [{"lookupKey": []}],
        "parameters": [
            {
                "name": "email",
                "in": "query",
                "description": "The customer's address. Several may come, separated by commas or in several "
                "parameters; the first that is known counts.",
                "schema": {"type": "string"},
            }
        ],
        "responses": {
            "200": _answer("The card.", CardSchema),
            "401": _answer(_WRONG_KEY, RejectedSchema),
            "429": {**_answer(_TOO_MANY, RejectedSchema), "headers": _RETRY_AFTER},
        },
    }


def _award() -> dict[str, Any]:
    return {
        "operationId": "award",
        "tags": ["helpdesk"],
        "summary": "Add points to a member, once.",
        "description": "As JSON, as a form or in the query. Sent twice it happens once: by `award_key`, else by a "
        "window of a minute. `message` is what an agent should read, whatever the status.",
        "security": [{"awardKey": []}],
        "requestBody": {
            "content": {
                kind: {"schema": AwardRequestSchema}
                for kind in ("application/json", "application/x-www-form-urlencoded")
            }
        },
        "responses": {
            "200": _answer("Applied, now or when it was sent before.", AwardedSchema),
            "202": _answer("Being confirmed: the program has not said yet; it is found out.", AwardedSchema),
            "400": _answer("The request cannot be read.", RejectedSchema),
            "401": _answer(_WRONG_KEY, RejectedSchema),
            "404": _answer("No such member.", RejectedSchema),
            "409": _answer("The key was used for another award, or is of another member.", RejectedSchema),
            "413": _answer("The request is too large.", RejectedSchema),
            "422": _answer("Not allowed or not understood; `reason` has the word.", RejectedSchema),
            "429": {**_answer(_TOO_MANY, RejectedSchema), "headers": _RETRY_AFTER},
            "503": _answer("Nothing was recorded and nothing added; try again later.", RejectedSchema),
        },
    }


def _preflight(operation_id: str) -> dict[str, Any]:
    return {
        "operationId": operation_id,
        "tags": ["helpdesk"],
        "summary": "Whether a page of the helpdesk may call this.",
        "responses": {"204": {"description": "It may where Access-Control-Allow-Origin names it."}},
    }


def _webhook() -> dict[str, Any]:
    return {
        "operationId": "rivoWebhook",
        "tags": ["program"],
        "summary": "Something has changed in Rivo.",
        "description": "Believed when it is signed with the connection's secret: `rivo-webhook-signature` over id, "
        "time and body, or `rivo-signature` over the body. What it tells is looked up, never taken over.",
        "parameters": [
            {
                "name": "connection_id",
                "in": "path",
                "required": True,
                "schema": {"type": "integer", "minimum": 1},
            },
            *(
                {"name": name, "in": "header", "schema": {"type": "string"}}
                for name in ("rivo-webhook-id", "rivo-webhook-timestamp", "rivo-webhook-signature", "rivo-signature")
            ),
        ],
        "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {
            "200": _answer("Taken.", DeliveredSchema),
            "400": _answer("Not the whole body arrived.", DeliveredSchema),
            "401": _answer("Not signed as it should be.", DeliveredSchema),
            "404": _answer("Nobody takes webhooks at this address.", DeliveredSchema),
            "413": _answer("Larger than 256 KiB.", DeliveredSchema),
            "503": _answer("Cannot be taken just now; send it again.", DeliveredSchema),
        },
    }


def _health(operation_id: str, summary: str, answers: dict[str, str]) -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": operation_id,
        "tags": ["operation"],
        "summary": summary,
        "responses": {status: {"description": told, "content": text} for status, told in answers.items()},
    }


def _answer(description: str, schema: type[Schema]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
