"""What an agent or admin reads about an award: the words of awards turned into sentences for a helpdesk.

Every sentence says what happened and, where something is to be done, what to do.
"""

from __future__ import annotations

from loyalty.awards import AwardRefused, AwardResult, Refusal, Status


def counted(number: int, noun: str) -> str:
    """`1 point`, `1,200 points`."""
    return f"{number:,} {noun}" if abs(number) == 1 else f"{number:,} {noun}s"


def points(number: int) -> str:
    """`1 point`, `1,200 points`."""
    return counted(number, "point")


def result_sentence(result: AwardResult) -> str:
    """What became of an award or an undo."""
    if result.status is Status.BEING_CONFIRMED:
        return (
            f"The award of {points(result.points)} is being confirmed; do not add it again. "
            f"Last known balance: {points(result.points_balance)}."
        )
    if result.status is Status.ALREADY_APPLIED:
        return (
            f"Already added a moment ago: {points(result.points)}, the balance is {points(result.points_balance)}. "
            f"To add them once more on purpose, press the button again in {counted(result.wait_s, 'second')}."
        )
    did = f"Added {points(result.points)}" if result.points > 0 else f"Took back {points(-result.points)}"
    return f"{did}. New balance: {points(result.points_balance)}."


def refusal_sentence(error: AwardRefused) -> str:
    """Why an award or an undo was not accepted."""
    outcome = "changed" if error.reason in _OF_UNDO else "added"
    sentence = _REFUSALS[error.reason].format(
        points=points(error.points),
        limit=points(error.limit),
        wait=counted(error.wait_s, "second"),
        reasons=", ".join(error.allowed_reasons),
        who="You have" if error.agent_known else "Agents whose name is not known have",
    )
    return f"{sentence} Nothing was {outcome}."


_OF_UNDO = {Refusal.NOT_APPLIED, Refusal.ALREADY_UNDONE, Refusal.AWARD_NOT_FOUND}
_RAISE_IT = "Ask an admin to raise it on the connection's page, or go on tomorrow."
_REFUSALS = {
    Refusal.MEMBER_MISSING: "This ticket's customer has no e-mail address, so there is nobody to give points to. "
    "Set the customer's e-mail in the ticket and try again.",
    Refusal.MEMBER_NOT_FOUND: "This customer is not in the loyalty program, so there is nobody to give points to.",
    Refusal.MEMBER_MISMATCH: "The card still belongs to another customer than this ticket. "
    "A new message or an internal note on the ticket refreshes it; then press the button again.",
    Refusal.MEMBER_EXCLUDED: "This customer is excluded from the loyalty program and cannot receive points.",
    Refusal.MEMBER_GUEST: "This customer is a guest, not yet a member, and guests cannot receive points. "
    "An admin can allow it on the connection's page.",
    Refusal.POINTS_ABOVE_AWARD_CAP: "{points} are too many for one award; the limit is {limit}.",
    Refusal.POINTS_ABOVE_AGENT_CAP: "{who} added {points} today; the limit for one agent is {limit} a day (UTC). "
    + _RAISE_IT,
    Refusal.POINTS_ABOVE_CONNECTION_CAP: "This helpdesk has added {points} today; its limit is {limit} a day (UTC). "
    + _RAISE_IT,
    Refusal.REASON_NOT_ALLOWED: "This reason is not on the list. Choose one of: {reasons}.",
    Refusal.KEY_REUSED: "This card has just been used for another award ({points}). "
    "Press the button again in {wait}, or as soon as the card shows the new balance.",
    Refusal.NOT_APPLIED: "Only an award that was applied can be undone.",
    Refusal.ALREADY_UNDONE: "This award has been undone already.",
    Refusal.AWARD_NOT_FOUND: "This connection has no such award.",
}
