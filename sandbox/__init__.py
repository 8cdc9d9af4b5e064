"""A stand-in Gorgias helpdesk, and a stand-in Rivo, to run, look at and test against. See sandbox/README.md.

    with Sandbox(client_id="…", client_secret="…", redirect_urls=["http://localhost:8000/oauth/callback"]) as
    sandbox: sandbox.helpdesk("acme").create_customer("Mia Rossi", "mia@example.com")

It imports nothing of the product that it stands opposite to.
"""

from sandbox.deliveries import ActionResult
from sandbox.faults import FaultKind
from sandbox.rivo import RivoStore
from sandbox.rivo_shapes import RivoShapes
from sandbox.rivo_webhooks import RivoDelivery
from sandbox.runtime import Runtime
from sandbox.server import PortTaken, Received, Sandbox
from sandbox.state import Helpdesk, UnknownRecord

__all__ = [
    "ActionResult",
    "FaultKind",
    "Helpdesk",
    "PortTaken",
    "Received",
    "RivoDelivery",
    "RivoShapes",
    "RivoStore",
    "Runtime",
    "Sandbox",
    "UnknownRecord",
]
