"""Times as they are recorded: UTC, ISO 8601, whole seconds."""

import time


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
