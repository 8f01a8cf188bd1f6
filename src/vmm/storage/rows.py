"""Machines and forwards as rows, and back."""

from __future__ import annotations

import functools
import json

from vmm import TYPE_CHECKING
from vmm.model.machine import (
    NO_LIMITS,
    UNATTENDED,
    EngineName,
    Limits,
    Machine,
    MachineSpec,
    MachineState,
    Owner,
    ProcessIdentity,
    RestartPolicy,
    Supervision,
    UnreadableRecord,
)
from vmm.model.network import Lease, PortForward, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

Row = tuple[object, ...]
# A row of the columns below, as the STRICT table's types have it; the process's four are there together or not at all.
Columns = tuple[
    str, int, int, int, str, str, str, int, str, str, str, int, str, str,
    str, int, str, str, str, int, str, str | None, str, int, int,
    str, int | None, int, str, str | None,
]  # fmt: skip
_ENGINES = {engine.value: engine for engine in EngineName}
_STATES = {state.value: state for state in MachineState}
_RESTARTS = {policy.value: policy for policy in RestartPolicy}
_OWNERS = {owner.value: owner for owner in Owner}
Value = str | int | None

_SPEC = (
    "name",
    "cpus",
    "memory_mib",
    "disk_mib",
    "image",
    "kernel",
    "engine",
    "auto_start",
    "labels",
    "ssh_keys",
    "dns",
    "jail",
    "limits",
    "restart",
)
_REST = ("id", "address", "mac", "tap", "state", "wanted", "created_at", "started_at", "owner", "restarts", "due_at")
_PROCESS = ("boot_id", "pid", "start_ticks", "marker")
COLUMNS = (*_SPEC, *_REST, *_PROCESS, "reason")
SELECT = f"SELECT {', '.join(COLUMNS)} FROM machines"  # noqa: S608  # the columns' own names
INSERT = f"INSERT INTO machines ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608


def machine_of(row: Columns) -> Machine:
    """Return the machine of a row in COLUMNS' order; ValueError or KeyError when it is not one.

    The tables are STRICT: SQLite has seen to it that texts are texts and numbers numbers. A listing does this for every
    row, so that what a function call costs counts here.
    """
    # fmt: off
    (
        name, cpus, memory_mib, disk_mib, image, kernel, engine, auto_start, labels, ssh_keys, dns,
        jail, limits, restart,
        identity, address, mac, tap, state, wanted, created_at, started_at, owner, restarts, due_at,
        boot_id, pid, start_ticks, marker, reason,
    ) = row
    # fmt: on
    spec = MachineSpec(
        name=name,
        cpus=cpus,
        memory_mib=memory_mib,
        disk_mib=disk_mib,
        image=image,
        kernel=kernel,
        engine=_ENGINES[engine],
        auto_start=auto_start == 1,
        labels=_labels(labels),
        ssh_keys=_strings(ssh_keys),
        dns=_strings(dns),
        user_data=None,
        jail=jail == 1,
        limits=_limits(limits),
        restart=_RESTARTS[restart],
    )
    return Machine(
        id=identity,
        spec=spec,
        lease=Lease(address=_dotted(address), mac=mac, tap=tap),
        state=_STATES[state],
        wanted=wanted == 1,
        created_at=created_at,
        started_at=started_at,
        process=None
        if pid is None
        else ProcessIdentity(boot_id=boot_id, pid=pid, start_ticks=start_ticks, marker=marker),
        reason=reason,
        supervision=_supervision(owner, restarts, due_at),
    )


def read(row: Row) -> Machine | UnreadableRecord:
    """Return the machine of a row, or what is known of one that cannot be read."""
    try:
        return machine_of(row)  # pyright: ignore[reportArgumentType]  # what the STRICT table holds
    except KeyError as error:
        return UnreadableRecord(name=str(row[0]), problem=f"{error} is no state, engine or policy that this vmm knows")
    except (ValueError, TypeError, AttributeError) as error:
        return UnreadableRecord(name=str(row[0]), problem=str(error))


def values_of(machine: Machine) -> tuple[Value, ...]:
    """Return a machine's values in COLUMNS' order."""
    return (
        *spec_values(machine.spec),
        machine.id,
        int.from_bytes(bytes(map(int, machine.lease.address.split(".")))),
        machine.lease.mac,
        machine.lease.tap,
        machine.state.value,
        int(machine.wanted),
        machine.created_at,
        machine.started_at,
        machine.supervision.owner.value,
        machine.supervision.restarts,
        machine.supervision.due_at,
        *process_values(machine.process),
        machine.reason,
    )


def spec_values(spec: MachineSpec) -> tuple[Value, ...]:
    """Return a spec's values in the order of its columns. User data is no part of it: it may hold secrets."""
    return (
        spec.name,
        spec.cpus,
        spec.memory_mib,
        spec.disk_mib,
        spec.image,
        spec.kernel,
        spec.engine.value,
        int(spec.auto_start),
        json.dumps(dict(spec.labels), sort_keys=True),
        json.dumps(spec.ssh_keys),
        json.dumps(spec.dns),
        int(spec.jail),
        json.dumps({name: value for name, value in spec.limits.__dict__.items() if value is not None}),
        spec.restart.value,
    )


def spec_assignments() -> str:
    return ", ".join(f"{column} = ?" for column in _SPEC)


def process_values(process: ProcessIdentity | None) -> tuple[Value, ...]:
    if process is None:
        return (None, None, None, None)
    return (process.boot_id, process.pid, process.start_ticks, process.marker)


def forward_of(row: Row) -> PortForward:
    machine, protocol, host_address, host_port, guest_port = row
    return PortForward(
        machine=_text(machine),
        protocol=Protocol(_text(protocol)),
        host_address=_text(host_address),
        host_port=_number(host_port),
        guest_port=_number(guest_port),
    )


def _dotted(address: int) -> str:
    # ipaddress would do, at ten times the cost.
    return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


@functools.cache
def _labels(text: str) -> Mapping[str, str]:
    loaded = json.loads(text)
    return {str(key): str(value) for key, value in loaded.items()}


@functools.cache
def _strings(text: str) -> tuple[str, ...]:
    return tuple(str(item) for item in json.loads(text))


@functools.cache
def _limits(text: str) -> Limits:
    return NO_LIMITS if text == "{}" else Limits(**json.loads(text))


def _supervision(owner: str, restarts: int, due_at: int) -> Supervision:
    if restarts == due_at == 0 and owner == "supervisor":
        return UNATTENDED
    return Supervision(owner=_OWNERS[owner], restarts=restarts, due_at=due_at)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where a text should")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} stands where a number should")
    return value
