"""What is in a copy of the database, looked at before it takes the database's place: a file may hold anything.

Nothing of a row is taken that `create` would have refused, as it is of a description beside a disk: rows become paths,
arguments, rules and processes to end.
"""

from __future__ import annotations

import contextlib
import sqlite3

from vmm import TYPE_CHECKING
from vmm.errors import StateError, VmmError
from vmm.model.machine import Machine, UnreadableRecord
from vmm.model.words import quoted
from vmm.storage import backup, description, rebuild, rows, schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vmm.model.network import PortForward, Subnet

_FORWARDS = "SELECT machine, protocol, host_address, host_port, guest_port FROM forwards"
# What SQLite and its ANALYZE add is theirs.
_SHAPE = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"


def vet(draft: Path, source: Path, *, subnet: Subnet, markers: Callable[[Machine], Sequence[str]]) -> list[Machine]:
    """Return the machines of a draft that was made of `source`; `markers` are what a machine's engine is known by.

    A process that is recorded and has none of these is forgotten: no command is at work, and an engine is looked for.

    Raises:
        StateError: a row is none that vmm would have written, or two hold the same.
    """
    try:
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            _refuse_shape(connection)
            machines = _machines(connection, subnet)
            for machine in machines:
                if machine.process is not None and machine.process.marker not in markers(machine):
                    connection.execute(
                        "UPDATE machines SET boot_id = NULL, pid = NULL, start_ticks = NULL, marker = NULL"
                        " WHERE name = ?",
                        (machine.name,),
                    )
    except StateError as error:
        raise backup.unusable(source, error.details) from error
    except (VmmError, ValueError, TypeError, sqlite3.Error) as error:
        raise backup.unusable(source, str(error)) from error
    return machines


def refuse_anothers(machines: Sequence[Machine], directory: Path, source: Path) -> None:
    """Raise StateError where none of a copy's machines lies on this host, while others do: it is another host's."""
    here = rebuild.directories(directory)
    known = {entry.name: rebuild.identity_on_disk(entry) for entry in here}
    if machines and here and not any(known.get(machine.name, "") in (machine.id, None) for machine in machines):
        first, there = machines[0].name, here[0].name
        raise backup.unusable(
            source,
            f"It is of another host, or of long ago: none of its {len(machines)} machine(s), such as {quoted(first)},"
            f" lies in {directory}, where {quoted(there)} does.",
        )


def _refuse_shape(connection: sqlite3.Connection) -> None:
    """Refuse tables that are not vmm's own: one without its constraints, or with a trigger, does what it likes."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as ours:
        schema.migrate(ours, ":memory:")
        differs = sorted(_shape(connection) ^ _shape(ours))
    if differs:
        kind, name, _ = differs[0]
        raise ValueError(f"Its {kind} {quoted(name)} is not as vmm makes it.")


def _shape(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    return {(kind, name, " ".join((sql or "").split())) for kind, name, sql in connection.execute(_SHAPE)}


def _machines(connection: sqlite3.Connection, subnet: Subnet) -> list[Machine]:
    forwards: dict[str, list[PortForward]] = {}
    for row in connection.execute(_FORWARDS).fetchall():
        forward = rows.forward_of(row)
        forwards.setdefault(forward.machine, []).append(forward)
    found: list[Machine] = []
    described: list[tuple[Machine, tuple[PortForward, ...]]] = []
    for row in connection.execute(f"{rows.SELECT} ORDER BY created_at, name").fetchall():
        record = rows.read(row)
        if isinstance(record, UnreadableRecord):
            raise ValueError(f"The record of {quoted(record.name)} cannot be read: {record.problem}")  # noqa: TRY004
        try:
            text = description.text_of(record, forwards.get(record.name, ()))
            described.append(rebuild.read_description(text))
            rebuild.check_address(record, subnet)
        except StateError as error:
            raise ValueError(f"The record of {quoted(record.name)} cannot be used: {error.details}") from error
        found.append(record)
    clashes = rebuild.without_clashes(described).left
    if clashes:
        raise ValueError(f"The record of {quoted(clashes[0].name)} cannot be used: {clashes[0].why}")
    return found
