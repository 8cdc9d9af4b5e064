"""What an agent or admin reads about an award: the words of awards turned into sentences for a helpdesk.

Every sentence says what happened and, where something is to be done, what to do.
"""

from __future__ import annotations

from loyalty.awards import AwardRefused, AwardResult, Refusal, Status
from loyalty.program import ProgramReason, ProgramUnavailable


def counted(number: int, noun: str) -> str:
    """`1 point`, `1,200 points`."""
    return f"{number:,} {noun}" if abs(number) == 1 else f"{number:,} {noun}s"


def points(number: int) -> str:
    """`1 point`, `1,200 points`."""
    return counted(number, "point")


def credit(cents: int) -> str:
    """`5.00 store credit`. No currency: the program does not say which one."""
    return f"{cents // 100:,}.{cents % 100:02d} store credit"


def amount(*, points_: int, cents: int) -> str:
    """What an award is about, without its sign: points, or store credit."""
    return credit(abs(cents)) if cents else points(abs(points_))


def result_sentence(result: AwardResult) -> str:
    """What became of an award or an undo."""
    what = amount(points_=result.points, cents=result.credit_cents)
    taken = result.points < 0 or result.credit_cents < 0
    balance = "" if result.points_balance is None else f"{points(result.points_balance)}."
    if result.status is Status.BEING_CONFIRMED:
        kind, again = ("undo", "repeat it") if taken else ("award", "add it again")
        last = f" Last known balance: {balance}" if balance else ""
        if result.in_review:
            return f"The {kind} of {what} waits for an admin, who looks it up; do not {again}.{last}"
        return f"The {kind} of {what} is being confirmed; do not {again}.{last}"
    if result.status is Status.ALREADY_APPLIED:
        now = f", the balance is {balance}" if result.balance_is_new else ". The card has the new balance in a minute."
        return (
            f"Already added a moment ago: {what}{now} "
            f"To add {'it' if result.credit_cents else 'them'} once more on purpose, press the button again in "
            f"{counted(result.wait_s, 'second')}."
        )
    did = f"Took back {what}" if taken else f"Added {what}"
    if not result.balance_is_new:
        return f"{did}. The new balance could not be read yet; the card has it in a minute."
    return f"{did}. {'Points balance' if result.credit_cents else 'New balance'}: {balance}"


def program_trouble_sentence(error: ProgramUnavailable) -> str:
    """Why an award could not even be tried."""
    if error.reason is ProgramReason.KEY_REFUSED:
        return (
            "The loyalty program refuses the key of this connection. Ask an admin to replace it on the connection's "
            "page in Tallydesk. Nothing was added."
        )
    return "The loyalty program cannot be reached right now. Try again in a minute. Nothing was added."


def refusal_sentence(error: AwardRefused) -> str:
    """Why an award or an undo was not accepted."""
    outcome = "changed" if error.undo or error.reason in _OF_UNDO else "added"
    sentence = _REFUSALS[error.reason].format(
        points=points(error.points),
        limit=points(error.limit),
        credit=credit(error.points),
        credit_limit=credit(error.limit),
        told=f": {error.told.rstrip('.')}." if error.told else ".",
        wait=counted(error.wait_s, "second"),
        reasons=", ".join(error.allowed_reasons),
        who="You have" if error.agent_known else "Agents whose name is not known have",
    )
    return f"{sentence} Nothing was {outcome}."


_OF_UNDO = {
    Refusal.NOT_APPLIED,
    Refusal.ALREADY_UNDONE,
    Refusal.AWARD_NOT_FOUND,
    Refusal.NOT_IN_REVIEW,
    Refusal.NOT_UNDER_THIS_KEY,
    Refusal.ERASED,
}
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
    Refusal.CREDIT_NOT_ALLOWED: "Store credit cannot be given from this helpdesk. "
    "An admin can allow it on the connection's page.",
    Refusal.CREDIT_ABOVE_AWARD_CAP: "{credit} is too much for one award; the limit is {credit_limit}.",
    Refusal.CREDIT_ABOVE_CONNECTION_CAP: "This helpdesk has given {credit} today; its limit is {credit_limit} a day "
    "(UTC). " + _RAISE_IT,
    Refusal.PROGRAM_REFUSED: "The loyalty program did not accept this{told}",
    Refusal.NOT_UNDER_THIS_KEY: "The key was replaced since this award, and the loyalty program does not show it under "
    "the present key: that may be another store's. Take the points back in the loyalty program itself.",
    Refusal.NOT_IN_REVIEW: "This award no longer waits for a decision.",
    Refusal.ERASED: "The customer of this award was erased here, so it can be neither looked for nor taken back. "
    "If it must be, do it in the loyalty program itself.",
}
