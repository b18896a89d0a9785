"""Times on the command line: how they are written and read. Without a zone they are UTC."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime

import typer

AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
HELP = "An age such as 90s, 15m, 2h or 7d, a date or time in ISO 8601 (UTC unless it says otherwise), or Unix seconds"


def parse_moment(text: str) -> float:
    """Unix seconds of what people write; see :data:`HELP`."""
    if age := AGE.fullmatch(text):
        return time.time() - float(age[1]) * SECONDS[age[2]]
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if math.isfinite(seconds):
            return seconds
        raise typer.BadParameter(f"{text} is not a time. {HELP}.")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text} is not a time. {HELP}.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def shown(seconds: float) -> str:
    """Unix seconds as people read them, in UTC; a time that no calendar has stays a number."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g}"


__all__ = ["HELP", "parse_moment", "shown"]
