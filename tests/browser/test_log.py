"""What an admin looks back on: the log with its filter, one award, charts, changes, and what is wrong in Gorgias."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.steps import Visit, assert_usable, connect_rivo, keep_picture, reload_until, settings_page, sign_in
from tests.house import House

MAYA, LIAM = "maya.okafor@example.com", "liam.novak@example.com"
POINTS_EVENTS = r"/merchant_api/v1/points_events"
DAY_S = 24 * 3600


def test_an_admin_looks_back_on_awards_changes_and_troubles(house: House, visit: Visit) -> None:
    page = visit(device_scale_factor=1.5, reduced_motion="reduce")
    connect_rivo(page, house)
    address = page.url.partition("#")[0]
    (connection,) = house.services.connections.all()
    page.get_by_label("Points per award").fill("500")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="Saved.")).to_be_visible()

    # Awards of three days, the last of which Rivo does not answer at once.
    for day, awards in enumerate([(50, 20), (120,), (30, 40, 25)]):
        for points in awards:
            agent = f"{'ben' if day else 'ada'}@acme.example"
            fields = {
                "email": MAYA if points > 30 else LIAM,
                "points": points,
                "agent_email": agent,
                "reason": "Late parcel",
            }
            assert house.award(connection, fields).status_code == 200
        house.clock.advance(DAY_S)
    late = house.sandbox.faults.add(POINTS_EVENTS, method="POST", account="rivo", kind="commit_late")
    lost = {"email": MAYA, "points": 60, "agent_email": "ben@acme.example", "reason": "Goodwill"}
    operation_id = house.award(connection, lost).json()["operation_id"]
    late.commit()
    house.clock.advance(60)
    sign_in(page, house, user="")
    page.goto(f"{address}/activity")
    reload_until(page, page.get_by_role("row").filter(has_text=operation_id).filter(has_text="applied"))

    # The log by member and state; the address of the page names nobody.
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("State").select_option(label="applied")
    page.get_by_label("Member’s e-mail").fill(MAYA)
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("row")).to_have_count(5)
    expect(page.get_by_role("row").filter(has_text=LIAM)).to_have_count(0)
    assert "maya" not in page.url.lower()
    assert_usable(page)
    keep_picture("activity-filter", page)

    # One award: what was tried, and what came of it.
    page.get_by_role("row").filter(has_text=operation_id).get_by_role("link").first.click()
    course = page.get_by_role("region", name="What happened")
    expect(course).to_contain_text("no whole answer came")
    expect(course).to_contain_text("it is there")
    assert_usable(page)
    keep_picture("award-record", page)

    page.goto(f"{address}/charts")
    expect(page.get_by_role("img", name=re.compile("^Awards per day"))).to_be_visible()
    assert_usable(page)
    keep_picture("charts", page)

    page.goto(f"{house.url}/connections/changes")
    expect(page.get_by_role("main")).to_contain_text("Points per award")
    assert_usable(page)
    keep_picture("changes", page, height=520)

    # The daily look notices what somebody switched off in Gorgias.
    settings_page(page, house)
    page.get_by_role("button", name="Disable").click()
    house.clock.advance(DAY_S)
    house.services.jobs.sweep()
    sign_in(page, house, user="")
    page.goto(f"{house.url}/connections/")
    trouble = page.get_by_text("Not in order")
    reload_until(page, trouble)
    assert_usable(page)
    keep_picture("troubles", page)
