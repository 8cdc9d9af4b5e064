"""Troubles that need a certain order of things, told one by one."""

from __future__ import annotations

import pytest

from loyalty.journal import AwardState
from tests.reliability.world import POINTS, Deed, Process, World


def press(world: World, process: int = 0, *, ticket: int = 1) -> str:
    """Press the button for 50 points; the operation id."""
    request = world.request(member=0, ticket=ticket, points=50)
    (done,) = world.do(Deed(process=process, action=lambda alive: world.press(alive, request)))
    assert isinstance(done, str)
    return done


def work(world: World, *, seconds: float, every_s: float = 1.0) -> None:
    """Let time pass with a worker at work."""
    for _ in range(int(seconds / every_s)):
        world.pass_time(every_s)
        world.do(Deed(process=0, action=world.work))
        world.check()


def state_of(world: World, operation_id: str) -> str:
    (row,) = [row for row in world.rows() if row.operation_id == operation_id]
    return str(row.state)


@pytest.mark.parametrize("jump_at_s", [0, 1, 3, 8, 14, 20, 26, 32, 38, 44])
@pytest.mark.parametrize("jump_s", [600, 3 * 3600, -1800])
def test_one_jump_of_the_clock_does_not_make_the_time_pass_in_which_rivo_may_still_commit(
    world: World, jump_at_s: int, jump_s: int
) -> None:
    world.order(kind="commit_late", path=POINTS, method="POST")
    press(world)
    work(world, seconds=jump_at_s)
    assert world.jump(jump_s)
    world.do(Deed(process=0, action=world.work))
    work(world, seconds=50 - jump_at_s)
    assert len(world.ours()) == 1


@pytest.mark.parametrize("jump_s", [-3600, 3600, 6 * 3600])
def test_an_award_is_found_although_our_clock_is_wrong_and_others_write_to_the_book(world: World, jump_s: int) -> None:
    world.jump(jump_s)
    world.order(kind="reset_after", path=POINTS, method="POST")
    done = press(world)
    for _ in range(5):
        world.shop.add_event(world.emails[0], points=5)
    work(world, seconds=100)
    assert state_of(world, done) == AwardState.APPLIED
    assert len(world.ours()) == 1


def test_an_award_is_found_after_the_clock_that_dated_it_was_put_right(world: World) -> None:
    world.jump(2 * 3600)
    world.order(kind="reset_after", path=POINTS, method="POST")
    done = press(world)
    world.jump(-2 * 3600)
    for _ in range(5):
        world.pass_time(1)
        world.shop.add_event(world.emails[0], points=5)
    work(world, seconds=3 * 3600, every_s=60)
    assert state_of(world, done) == AwardState.APPLIED
    assert len(world.ours()) == 1


def test_without_a_jump_an_award_is_not_sent_again_before_rivo_must_have_committed(world: World) -> None:
    world.order(kind="commit_late", path=POINTS, method="POST")
    press(world)
    work(world, seconds=44)
    assert len(world.sandbox.requests.filter(account="rivo", path=POINTS, method="POST")) >= 1
    world.commit_late(0)
    work(world, seconds=60)
    assert len(world.ours()) == 1


def test_an_attempt_that_its_process_did_not_survive_is_taken_over(world: World) -> None:
    request = world.request(member=0, ticket=1, points=50)

    def action(alive: Process) -> str | None:
        return world.press(alive, request)

    for step in range(40):
        world.do(Deed(process=0, action=action, die_at=step))
        world.check()
        work(world, seconds=4, every_s=2)
        world.pass_time(60)
        world.processes[0].services.jobs.sweep()
    work(world, seconds=200, every_s=5)
    assert {row.state for row in world.rows()} == {AwardState.APPLIED}
