"""Charts of what was awarded: drawn on the server, and told in a table as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from flask import Blueprint, render_template
from flask.typing import ResponseReturnValue

from console import who
from console.naming import named
from console.room import ConsoleRoom
from loyalty.totals import DAYS, DayTotal, totals

# Units of the drawing, which is stretched to the width of the page; a day is this wide, its bar included.
DAY_WIDTH, BAR_WIDTH, HEIGHT = 10, 7, 100


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One day's bar: where it begins, how high it is, and what it says."""

    day: date
    value: int
    x: int
    height: int


def add_charts(console: Blueprint, room: ConsoleRoom) -> None:
    """`/connections/<id>/charts`."""

    @console.get("/connections/<int:connection_id>/charts")
    def charts(connection_id: int) -> ResponseReturnValue:
        _, account = who.signed_in(room)
        found = who.own(room, account, connection_id)
        drawn = totals(room.database, sealer=room.sealer, connection_id=found.id, now=room.now())
        return render_template(
            "charts.html",
            connection=found,
            shown=named(room, found),
            totals=drawn,
            days=DAYS,
            number_bars=_bars(drawn.days, [day.total.awards for day in drawn.days]),
            point_bars=_bars(drawn.days, [day.total.points for day in drawn.days]),
            most_points=max((agent.total.points for agent in drawn.agents), default=0),
            width=DAY_WIDTH * DAYS,
            bar_width=BAR_WIDTH,
            height=HEIGHT,
        )


def _bars(days: Sequence[DayTotal], values: Sequence[int]) -> list[Bar]:
    most = max(values, default=0)
    return [
        # Whatever was there is to be seen.
        Bar(day=day.day, value=value, x=DAY_WIDTH * place, height=max(round(HEIGHT * value / most), 2) if value else 0)
        for place, (day, value) in enumerate(zip(days, values, strict=True))
    ]
