"""Machines and forwards as rows, and back."""

import json
from collections.abc import Mapping
from ipaddress import IPv4Address

from vmm.model.machine import (
    EngineName,
    Machine,
    MachineSpec,
    MachineState,
    ProcessIdentity,
    UnreadableRecord,
)
from vmm.model.network import Lease, PortForward, Protocol

Row = tuple[object, ...]
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
)
_REST = ("id", "address", "mac", "tap", "state", "wanted", "created_at", "started_at")
_PROCESS = ("boot_id", "pid", "start_ticks", "marker")
COLUMNS = (*_SPEC, *_REST, *_PROCESS, "reason")
SELECT = f"SELECT {', '.join(COLUMNS)} FROM machines"  # noqa: S608  # the columns' own names
INSERT = f"INSERT INTO machines ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608


def machine_of(row: Row) -> Machine:
    """Return the machine of a row in COLUMNS' order; ValueError, KeyError or TypeError when it is not one."""
    identity, address, mac, tap, state, wanted, created_at, started_at = row[len(_SPEC) : len(_SPEC) + len(_REST)]
    reason = row[-1]
    return Machine(
        id=_text(identity),
        spec=_spec_of(row[: len(_SPEC)]),
        lease=Lease(address=_dotted(_number(address)), mac=_text(mac), tap=_text(tap)),
        state=MachineState(_text(state)),
        wanted=bool(wanted),
        created_at=_text(created_at),
        started_at=None if started_at is None else _text(started_at),
        process=_process_of(row[-1 - len(_PROCESS) : -1]),
        reason=None if reason is None else _text(reason),
    )


def _spec_of(row: Row) -> MachineSpec:
    name, cpus, memory, disk, image, kernel, engine, auto_start, labels, keys, dns = row
    return MachineSpec(
        name=_text(name),
        cpus=_number(cpus),
        memory_mib=_number(memory),
        disk_mib=_number(disk),
        image=_text(image),
        kernel=_text(kernel),
        engine=EngineName(_text(engine)),
        auto_start=bool(auto_start),
        labels=_labels(_text(labels)),
        ssh_keys=_strings(_text(keys)),
        dns=_strings(_text(dns)),
    )


def _process_of(row: Row) -> ProcessIdentity | None:
    boot_id, pid, ticks, marker = row
    if pid is None:
        return None
    return ProcessIdentity(boot_id=_text(boot_id), pid=_number(pid), start_ticks=_number(ticks), marker=_text(marker))


def read(row: Row) -> Machine | UnreadableRecord:
    """Return the machine of a row, or what is known of one that cannot be read."""
    try:
        return machine_of(row)
    except (ValueError, KeyError, TypeError) as error:
        return UnreadableRecord(name=str(row[0]), problem=str(error))


def values_of(machine: Machine) -> tuple[Value, ...]:
    """Return a machine's values in COLUMNS' order."""
    return (
        *spec_values(machine.spec),
        machine.id,
        int(IPv4Address(machine.lease.address)),
        machine.lease.mac,
        machine.lease.tap,
        machine.state.value,
        int(machine.wanted),
        machine.created_at,
        machine.started_at,
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


def _labels(text: str) -> Mapping[str, str]:
    if text == "{}":
        return {}
    loaded = json.loads(text)
    return {str(key): str(value) for key, value in loaded.items()}


def _strings(text: str) -> tuple[str, ...]:
    return () if text == "[]" else tuple(str(item) for item in json.loads(text))


def _dotted(address: int) -> str:
    # ipaddress would do, at ten times the cost; a listing does this for every row.
    return f"{address >> 24 & 255}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where a text should")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} stands where a number should")
    return value
