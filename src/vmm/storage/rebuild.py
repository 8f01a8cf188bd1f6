"""A machine described beside its disk, in `vms/NAME/machine.json`: what a lost database is made again from."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time

from vmm import TYPE_CHECKING
from vmm.errors import StateError, VmmError, without_numbers
from vmm.host.reading import parse_object, read_text
from vmm.model import names, sizes
from vmm.model.limits import checked_limits
from vmm.model.machine import EngineName, Limits, Machine, MachineSpec, MachineState, RestartPolicy
from vmm.model.network import Lease, PortForward, Protocol, checked_resolver, lease_for
from vmm.model.value import Value
from vmm.storage import rows, schema
from vmm.storage.description import FILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmm.model.network import Subnet

_ID = r"[0-9a-f]{32}"
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
_LINE_LETTERS = 16384


class Left(Value):
    """Something on disk that is not in the new database, and why."""

    name: str
    why: str


class Found(Value):
    """What lies on disk: machines with their forwards, and what is left alone."""

    machines: tuple[Machine, ...]
    forwards: tuple[PortForward, ...]
    left: tuple[Left, ...]


def read_description(text: str) -> tuple[Machine, tuple[PortForward, ...]]:
    """Return the machine of a description, standing still, and its forwards.

    Raises:
        StateError: it was cut, tampered with, or written by a newer vmm. Nothing in it is taken that `create` would
            have refused.
    """
    try:
        facts = _Facts(parse_object(text))
        if facts.number("schema") > schema.VERSION:
            raise ValueError(f"a newer vmm wrote it (schema {facts.number('schema')})")
        machine = _machine(facts)
        return machine, tuple(_forward(machine.name, _Facts(item)) for item in facts.items("forwards"))
    except VmmError as error:
        raise _unusable(f"{error.brief} {error.details}") from error
    except (ValueError, TypeError) as error:
        raise _unusable(str(error)) from error


def identity_on_disk(directory: Path) -> str | None:
    """Return the id of the machine that a directory is described as; None where that cannot be said."""
    try:
        machine, _ = read_description(text_of(directory))
    except (OSError, StateError):
        return None
    return machine.id


def look(machines: Path, subnet: Subnet) -> Found:
    """Return every machine that is described below `machines`; whatever cannot be taken is said and left alone.

    Of two that hold the same address, id or port, the one that was created first has it.
    """
    described: list[tuple[Machine, tuple[PortForward, ...]]] = []
    left: list[Left] = []
    for directory in directories(machines):
        try:
            machine, forwards = read_description(text_of(directory))
            if machine.name != directory.name:
                raise _unusable(f"it describes a machine {machine.name!r}")
            check_address(machine, subnet)
            described.append((machine, forwards))
        except FileNotFoundError:
            left.append(Left(name=directory.name, why=f"it has no {FILE}"))
        except (OSError, StateError) as error:
            why = error.details if isinstance(error, StateError) else without_numbers(str(error))
            left.append(Left(name=directory.name, why=f"its {FILE} cannot be used: {why}"))
    described.sort(key=lambda pair: (pair[0].created_at, pair[0].name))
    found = without_clashes(described)
    return Found(machines=found.machines, forwards=found.forwards, left=(*left, *found.left))


def directories(machines: Path) -> list[Path]:
    """Return the directories of machines on disk, by name; those of work in progress begin with a dot."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        entries = sorted(machines.iterdir())
        return [
            entry for entry in entries if not entry.name.startswith(".") and entry.is_dir() and not entry.is_symlink()
        ]
    return []


def fill(path: Path, found: Found) -> None:
    """Make the (empty) file `path` a database of these machines."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        schema.migrate(connection, str(path))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(rows.INSERT, [rows.values_of(machine) for machine in found.machines])
        connection.executemany(
            "INSERT INTO forwards (machine, protocol, host_address, host_port, guest_port) VALUES (?, ?, ?, ?, ?)",
            [(f.machine, f.protocol.value, f.host_address, f.host_port, f.guest_port) for f in found.forwards],
        )
        connection.execute("COMMIT")


def text_of(directory: Path) -> str:
    """Return the text of a directory's description; a link or a device in its place is refused, not followed."""
    return read_text(directory / FILE, follow=False)


def check_address(machine: Machine, subnet: Subnet) -> None:
    """Raise StateError for a machine whose address is none for a machine in this subnet."""
    from ipaddress import IPv4Address

    address = str(IPv4Address(machine.lease.address))
    if not subnet.holds(address):
        raise _unusable(f"{address} is no address for a machine in {subnet.cidr}")


def without_clashes(described: Sequence[tuple[Machine, tuple[PortForward, ...]]]) -> Found:
    """Return what holds nothing that one before it holds; the rest is left."""
    left: list[Left] = []
    machines: list[Machine] = []
    kept: list[PortForward] = []
    holders: dict[str, str] = {}
    for machine, forwards in described:
        claims = (machine.id, machine.lease.address)
        holder = next((holders[claim] for claim in claims if claim in holders), None)
        if holder is not None:
            left.append(Left(name=machine.name, why=f"it has the id or the address of {holder!r}: is it a copy?"))
            continue
        holders.update(dict.fromkeys(claims, machine.name))
        machines.append(machine)
        for forward in forwards:
            other = next((taken for taken in kept if _clash(taken, forward)), None)
            if other is None:
                kept.append(forward)
            else:
                port = f"{forward.host_port}/{forward.protocol}"
                left.append(Left(name=machine.name, why=f"its forward of port {port}: {other.machine!r} has it"))
    return Found(machines=tuple(machines), forwards=tuple(kept), left=tuple(left))


def _clash(one: PortForward, other: PortForward) -> bool:
    everywhere = "0.0.0.0"  # noqa: S104  # "every address of the host", as forwards write it
    addresses = {one.host_address, other.host_address}
    same = (one.protocol, one.host_port) == (other.protocol, other.host_port)
    return same and (len(addresses) == 1 or everywhere in addresses)


class _Facts:
    """The members of a JSON object, each asked for with its type; ValueError or TypeError for one that is not so."""

    def __init__(self, value: object) -> None:
        self.table = _table(value)

    def text(self, name: str, pattern: str | None = None) -> str:
        value = self._get(name)
        if not isinstance(value, str) or (pattern is not None and not re.fullmatch(pattern, value)):
            raise ValueError(f"{name} is {value!r:.80}")
        return value

    def number(self, name: str) -> int:
        value = self._get(name)
        if type(value) is not int:
            raise ValueError(f"{name} is {value!r:.80}, which is no whole number")
        return value

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r:.80}, neither true nor false")
        return value

    def items(self, name: str) -> list[object]:
        value = self._get(name)
        if not isinstance(value, list):
            raise TypeError(f"{name} is {value!r:.80}, which is no list")
        return list(value)  # pyright: ignore[reportUnknownArgumentType]  # JSON's own types

    def lines(self, name: str) -> tuple[str, ...]:
        """Return a list of texts, each of one printable line: they reach files that are read by lines."""
        found = tuple(item for item in self.items(name) if isinstance(item, str) and item.isprintable())
        if len(found) != len(self.items(name)) or any(len(line) > _LINE_LETTERS for line in found):
            raise ValueError(f"{name} holds something that is no line of text")
        return found

    def object(self, name: str) -> dict[str, object]:
        return _table(self._get(name))

    def time(self, name: str) -> str:
        value = self.text(name, _TIME)
        time.strptime(value, "%Y-%m-%dT%H:%M:%SZ")
        return value

    def has(self, name: str) -> bool:
        """Whether it is there and not null."""
        return self._get(name) is not None

    def _get(self, name: str) -> object:
        if name not in self.table:
            raise ValueError(f"{name} is missing")
        return self.table[name]


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.80} is no JSON object")
    return value  # pyright: ignore[reportUnknownVariableType]  # JSON's own types


def _machine(facts: _Facts) -> Machine:
    started_at = facts.time("started_at") if facts.has("started_at") else None
    return Machine(
        id=facts.text("id", _ID),
        spec=_spec(facts),
        lease=_lease(facts),
        state=MachineState.CREATED if started_at is None else MachineState.STOPPED,
        wanted=facts.flag("wanted"),
        created_at=facts.time("created_at"),
        started_at=started_at,
    )


def _spec(facts: _Facts) -> MachineSpec:
    return MachineSpec(
        name=names.valid_name(facts.text("name")),
        cpus=sizes.within(facts.number("cpus"), sizes.CPUS, what="cpus"),
        memory_mib=sizes.within(facts.number("memory_mib"), sizes.MEMORY_MIB, what="memory_mib"),
        disk_mib=sizes.within(facts.number("disk_mib"), sizes.DISK_MIB, what="disk_mib"),
        image=names.valid_name(facts.text("image"), what="image"),
        kernel=names.valid_name(facts.text("kernel"), what="kernel"),
        engine=EngineName(facts.text("engine")),
        auto_start=facts.flag("auto_start"),
        labels=_labels(facts.object("labels")),
        ssh_keys=facts.lines("ssh_keys"),
        dns=tuple(checked_resolver(server) for server in facts.lines("dns")),
        jail=facts.flag("jail"),
        limits=_limits(facts.object("limits")),
        restart=RestartPolicy(facts.text("restart")),
    )


def _labels(table: dict[str, object]) -> dict[str, str]:
    labels = {key: str(value) for key, value in table.items()}
    for key, value in table.items():
        if not isinstance(value, str) or names.parse_label(f"{key}={value}") != (key, value):
            raise ValueError(f"labels holds {key!r:.80}: {value!r:.80}")
    return labels


def _limits(table: dict[str, object]) -> Limits:
    unknown = sorted(table.keys() - Limits().__dict__.keys())
    if unknown:
        raise ValueError(f"limits holds {unknown[0]!r:.80}")

    def whole(name: str) -> int | None:
        return _Facts(table).number(name) if name in table else None

    cpus = table.get("cpus")
    if cpus is not None and (isinstance(cpus, bool) or not isinstance(cpus, int | float)):
        raise TypeError(f"limits holds cpus: {cpus!r:.80}")
    return checked_limits(
        Limits(
            cpus=cpus,
            memory_mib=whole("memory_mib"),
            pids=whole("pids"),
            io_read_bps=whole("io_read_bps"),
            io_write_bps=whole("io_write_bps"),
            io_read_iops=whole("io_read_iops"),
            io_write_iops=whole("io_write_iops"),
        ),
        recorded=True,
    )


def _lease(facts: _Facts) -> Lease:
    from ipaddress import IPv4Address

    lease = lease_for(IPv4Address(facts.text("address")))
    if (facts.text("mac"), facts.text("tap")) != (lease.mac, lease.tap):
        raise ValueError(f"mac and tap are not those of the address {lease.address}")
    return lease


def _forward(machine: str, facts: _Facts) -> PortForward:
    from ipaddress import IPv4Address

    ports = (facts.number("host_port"), facts.number("guest_port"))
    if not all(1 <= port <= 65535 for port in ports):
        raise ValueError(f"a forward has the ports {ports[0]} and {ports[1]}")
    return PortForward(
        machine=machine,
        protocol=Protocol(facts.text("protocol")),
        host_address=str(IPv4Address(facts.text("host_address"))),
        host_port=ports[0],
        guest_port=ports[1],
    )


def _unusable(details: str) -> StateError:
    return StateError(
        f"A machine's {FILE} cannot be used.",
        details=details,
        resolution="Mend it by hand where you know what it was, or leave the machine out: vmm db check",
    )
