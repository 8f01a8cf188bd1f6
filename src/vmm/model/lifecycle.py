"""Which verb is legal in which state: the one place that says so."""

from __future__ import annotations

from enum import StrEnum

from vmm.errors import ConflictError
from vmm.model.machine import Machine, MachineState


class Verb(StrEnum):
    START = "start"
    STOP = "stop"
    DELETE = "delete"
    SET = "set"
    SSH = "ssh"


# A machine in one of these has, or may have, an engine's process.
LIVE = frozenset({MachineState.STARTING, MachineState.RUNNING, MachineState.PAUSED, MachineState.STOPPING})


def is_waiting(machine: Machine) -> bool:
    """Whether the machine has no engine and waits for its restart: it is starting, and no process is at it."""
    return machine.state is MachineState.STARTING and machine.process is None


def is_needed(verb: Verb, state: MachineState) -> bool:
    """Whether the verb has anything to do: starting what runs and stopping what stands are done already."""
    match verb:
        case Verb.START:
            return state is not MachineState.RUNNING
        case Verb.STOP:
            return state in LIVE
        case Verb.DELETE | Verb.SET | Verb.SSH:
            return True


def check_legal(verb: Verb, machine: Machine, *, force: bool = False) -> None:
    """Raise ConflictError when the machine's state forbids the verb; `force` lets delete end a running machine."""
    state, name = machine.state, machine.name
    live = state in LIVE and not is_waiting(machine)
    match verb:
        case Verb.START if state is MachineState.PAUSED:
            _refuse(machine, "cannot be started", f"vmm stop {name}, then vmm start {name}")
        case Verb.DELETE if live and not force:
            _refuse(machine, "is not deleted", f"vmm stop {name} first, or: vmm delete --force {name}")
        case Verb.SET if live:
            _refuse(machine, "cannot be changed", f"vmm stop {name}, change it, then vmm start {name}")
        case Verb.SSH if state is not MachineState.RUNNING:
            _refuse(machine, "cannot be reached", f"vmm start {name}, or give --start")
        case Verb.START | Verb.STOP | Verb.DELETE | Verb.SET | Verb.SSH:
            return


def _refuse(machine: Machine, what: str, resolution: str) -> None:
    why = f": {machine.reason.rstrip('.')}" if machine.reason else ""
    details = f"It is {machine.state}{why}."
    raise ConflictError(f"The machine {machine.name!r} {what}.", details=details, resolution=resolution)
