"""Times as they are recorded: UTC, ISO 8601, whole seconds."""

import time

_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def now() -> str:
    return time.strftime(_FORMAT, time.gmtime())


def seconds_since(recorded: str | None) -> float:
    """Return how long ago a recorded time was; 0 for one that is not known, or not over yet."""
    if recorded is None:
        return 0.0
    # Not where every start would pay for it: it brings half of the locale.
    import calendar

    return max(0.0, time.time() - calendar.timegm(time.strptime(recorded, _FORMAT)))
