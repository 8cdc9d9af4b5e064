"""No store's key, webhooks, awards or members open to another account, to an agent, or to a forged form."""

from __future__ import annotations

from typing import Protocol

import pytest
import requests

from tests.console.steps import ANA, everything, put_in_review
from tests.house import Browser, House

# Below a connection's page: what posts there, and a body that would change something.
NEW = {
    "program-key": {"api_key": "{key}"},
    "webhook-secret": {"webhook_secret": "of a stranger"},
    "awards/{operation_id}/look": {},
    "awards/{operation_id}/mark": {"applied": "yes"},
    "awards/{operation_id}/undo": {},
    "settings": {"max_points_per_award": "1"},
}


class Posts(Protocol):
    def __call__(self, browser: Browser, path: str, *, on: str = "/connections/") -> requests.Response: ...


@pytest.fixture
def posts(house: House) -> Posts:
    """Posts to a path below acme's Rivo connection, which has an award in review and a second store beside it."""
    _, connection = house.connect_rivo("acme", store="northwind")
    house.sandbox.rivo("northwind").add_customer(ANA, points=120)
    waiting = put_in_review(house, connection)
    waiting.fault.commit()
    key = house.sandbox.rivo("fernhill").key

    def post(browser: Browser, path: str, *, on: str = "/connections/") -> requests.Response:
        fields = {name: value.replace("{key}", key) for name, value in NEW[path].items()}
        address = f"/connections/{connection.id}/{path.replace('{operation_id}', waiting.operation_id)}"
        return browser.submit(address, fields, on=on, follow=False)

    return post


@pytest.mark.parametrize("path", NEW)
def test_the_admin_of_another_account_finds_nothing(house: House, posts: Posts, path: str) -> None:
    stranger, _ = house.connect_rivo("globex", store="fernhill")
    before = everything(house)
    assert posts(stranger, path).status_code == 404
    assert everything(house) == before


@pytest.mark.parametrize("path", NEW)
def test_an_agent_may_not_and_a_form_of_another_site_neither(house: House, posts: Posts, path: str) -> None:
    agent, admin = house.browser(), house.browser()
    ben = next(u["id"] for u in house.sandbox.helpdesk("acme").users() if u["role"]["name"] == "agent")
    agent.sign_in("acme", user_id=ben)
    admin.sign_in("acme")
    before = everything(house)
    answer = posts(agent, path)
    assert answer.status_code == 403
    assert "admin_needed" in answer.text
    # /healthz has no form, so that nothing is sent with the post that proves where it comes from.
    forged = posts(admin, path, on="/healthz")
    assert forged.status_code == 400
    assert "form_too_old" in forged.text
    stranger = posts(house.browser(), path)
    assert (stranger.status_code, stranger.headers["Location"]) == (303, "/")
    assert everything(house) == before


def test_an_award_of_one_connection_is_not_decided_under_another_of_the_same_account(house: House) -> None:
    _, first = house.connect_rivo("acme", store="northwind")
    house.sandbox.rivo("northwind").add_customer(ANA, points=120)
    waiting = put_in_review(house, first)
    browser, second = house.connect_rivo("acme", store="fernhill")
    before = everything(house)
    for path, fields in (("look", {}), ("mark", {"applied": "yes"}), ("undo", {})):
        page = browser.submit(
            f"/connections/{second.id}/awards/{waiting.operation_id}/{path}", fields, on="/connections/"
        )
        assert "This connection has no such award." in page.text
    assert everything(house) == before
    for page in (browser.get(f"/connections/{second.id}"), browser.get(f"/connections/{second.id}/activity")):
        assert waiting.operation_id not in page.text
        assert "award needs a decision" not in page.text


def test_an_agent_sees_how_it_stands_with_the_key_and_has_no_form_for_it(house: House) -> None:
    _, connection = house.connect_rivo()
    agent = house.browser()
    ben = next(u["id"] for u in house.sandbox.helpdesk("acme").users() if u["role"]["name"] == "agent")
    agent.sign_in("acme", user_id=ben)
    page = agent.get(f"/connections/{connection.id}").text
    assert "Rivo takes the key ending in" in page
    assert "no secret is saved, so webhooks are refused" in page
    for field in ("api_key", "webhook_secret", "rivo/webhooks"):
        assert field not in page
