"""What happened to machines, as it is remembered."""

from __future__ import annotations

from enum import StrEnum

from vmm.model.value import Value

# Stands where a machine's name would, for what happened to the host that they share; no machine can have it.
THE_HOST = "-"


class EventKind(StrEnum):
    CREATED = "created"
    CHANGED = "changed"
    STARTED = "started"
    STOPPED = "stopped"
    ENDED = "ended"  # by its guest: powered off
    REBOOTED = "rebooted"  # by its guest
    RESET = "reset"  # by vmm: nothing was heard of its guest
    SILENT = "silent"  # nothing is heard of its guest, which has its engine and is left to its user
    HEARD = "heard"  # of one that was silent
    FAILED = "failed"
    RESTARTING = "restarting"
    GAVE_UP = "gave-up"
    REPAIRED = "repaired"
    DELETED = "deleted"


class Happening(Value):
    """What is to be remembered: `detail` says how or why."""

    kind: EventKind
    detail: str = ""


class Event(Value):
    """One line of `vmm events`. `id` grows; `at` is UTC in ISO 8601. `kind` is an EventKind, or one of a newer vmm."""

    id: int
    at: str
    machine: str
    kind: EventKind | str
    detail: str
