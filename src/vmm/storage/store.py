"""The one door to SQL: SQLite in `state/vmm.db`, one short transaction a call."""

from __future__ import annotations

import _thread
import contextlib
import sqlite3

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, HostError, NotFoundError, StateError
from vmm.model.machine import Machine, MachineSpec, MachineState, ProcessIdentity, Supervision, UnreadableRecord
from vmm.model.network import PortForward, Subnet, free_address, lease_for
from vmm.model.text import MOST_LETTERS, harmless
from vmm.model.value import Value
from vmm.storage import readable, rows, schema, trouble
from vmm.storage.opening import BUSY_S, Opening

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Sequence
    from pathlib import Path

    from vmm.model.event import Event, Happening

_LIVE = "('starting', 'running', 'paused', 'stopping')"  # model.lifecycle.LIVE, as SQL
_ANY = "0.0.0.0"  # noqa: S104  # "every address of the host", as forwards write it
# The threads of one process wait for each other here: in SQLite they would sleep up to a tenth of a second a try.
_turn = _thread.RLock()


# Machines that this process has removed, or found missing, while it held their locks.
_removed: set[str] = set()


class SqliteStore(Value):
    """What vmm remembers. `read_only` opens without any right to write, as a user without root does.

    `disks` is where machines lie: an empty database is refused where some do. `tell` is told where what a user reads
    may be of before.

    A connection is opened for each call: that takes 0.1 ms, and leaves nothing to share between threads or to close.
    """

    path: Path
    locks: Path
    read_only: bool = False
    disks: Path | None = None
    tell: Callable[[str], None] | None = None

    def machines(self, *, live: bool = False) -> Sequence[Machine | UnreadableRecord]:
        """Return every machine by name; with `live` those alone that are recorded as having an engine."""
        with self._reading() as connection:
            query = f"{rows.SELECT} WHERE state IN {_LIVE} ORDER BY name" if live else f"{rows.SELECT} ORDER BY name"
            try:
                return [rows.read(row) for row in connection.execute(query)]
            except sqlite3.OperationalError:
                # A text that is none: read once more, so that one damaged record hides no other.
                connection.text_factory = _text
                return [rows.read(row) for row in connection.execute(query)]

    def names(self) -> set[str]:
        with self._reading() as connection:
            connection.text_factory = _text
            return {row[0] for row in connection.execute("SELECT name FROM machines")}

    def machine(self, name: str) -> Machine:
        """Return one machine. Raises NotFoundError, or StateError when its record cannot be read."""
        with self._reading() as connection:
            row = connection.execute(f"{rows.SELECT} WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NotFoundError(
                f"There is no machine {name!r}.",
                details=self._similar(name),
                resolution="See what there is: vmm list",
            )
        record = rows.read(row)
        if isinstance(record, UnreadableRecord):
            raise StateError(
                f"The record of the machine {name!r} cannot be read.",
                details=record.problem,
                resolution="Put a copy of the database back (sudo vmm db restore); the machine's files are untouched.",
            )
        return record

    def any_live(self) -> bool:
        """Whether any machine is recorded as one that has, or may have, an engine."""
        with self._reading() as connection:
            query = f"SELECT 1 FROM machines WHERE state IN {_LIVE} LIMIT 1"  # noqa: S608  # a constant
            return connection.execute(query).fetchone() is not None

    def add(
        self,
        spec: MachineSpec,
        *,
        subnet: Subnet,
        id: str,  # noqa: A002
        created_at: str,
        reserved: Collection[str] = (),
    ) -> Machine:
        """Record a new machine with a lease of its own. ConflictError when the name or every address is taken."""
        with self._writing() as connection:
            taken = {row[0] for row in connection.execute("SELECT address FROM machines")}
            taken |= {int.from_bytes(bytes(map(int, address.split(".")))) for address in reserved}
            machine = Machine(
                id=id,
                spec=spec,
                lease=lease_for(free_address(subnet, taken)),
                state=MachineState.CREATED,
                wanted=False,
                created_at=created_at,
            )
            try:
                connection.execute(rows.INSERT, rows.values_of(machine))
                _removed.discard(spec.name)
                _remember(connection, spec.name, _created(machine))
            except sqlite3.IntegrityError as error:
                raise ConflictError(
                    f"There is a machine {spec.name!r} already.",
                    details=str(error),
                    resolution=f"Choose another name, or delete it: vmm delete {spec.name}",
                ) from error
        return machine

    def replace_spec(self, name: str, spec: MachineSpec, *, event: Happening | None = None) -> None:
        with self._writing() as connection:
            assignments = rows.spec_assignments()
            connection.execute(
                f"UPDATE machines SET {assignments} WHERE name = ?",  # noqa: S608  # the columns' own names
                (*rows.spec_values(spec), name),
            )
            _remember(connection, name, event)

    def record(
        self,
        name: str,
        state: MachineState,
        *,
        process: ProcessIdentity | None,
        wanted: bool | None = None,
        started_at: str | None = None,
        reason: str | None = None,
        supervision: Supervision | None = None,
        event: Happening | None = None,
    ) -> None:
        """Record a machine's state, and what happened; None leaves things as they are, but clears `reason`."""
        self._make_room()
        with self._writing() as connection:
            connection.execute(
                "UPDATE machines SET state = ?, boot_id = ?, pid = ?, start_ticks = ?, marker = ?, reason = ?,"
                " wanted = coalesce(?, wanted), started_at = coalesce(?, started_at),"
                " owner = coalesce(?, owner), restarts = coalesce(?, restarts), due_at = coalesce(?, due_at)"
                " WHERE name = ?",
                (
                    state.value,
                    *rows.process_values(process),
                    # A guest's own words may be in it.
                    None if reason is None else harmless(reason, most=MOST_LETTERS),
                    None if wanted is None else int(wanted),
                    started_at,
                    None if supervision is None else supervision.owner.value,
                    None if supervision is None else supervision.restarts,
                    None if supervision is None else supervision.due_at,
                    name,
                ),
            )
            _remember(connection, name, event)

    def admit(self, name: str, *, process: ProcessIdentity, supervision: Supervision, host_mib: int | None) -> int:
        """Record that a machine is being started by `process`, if its memory fits beside that of the others.

        Return the MiB by which the machines would have more than `host_mib`, which is 0 for an admitted one; with None
        for the host's memory every machine is. One transaction, so that two starts cannot both take what is left.
        """
        with self._writing() as connection:
            if host_mib is not None:
                (wished,) = connection.execute(
                    f"SELECT coalesce(sum(memory_mib), 0) FROM machines WHERE name = ? OR state IN {_LIVE}",  # noqa: S608  # a constant
                    (name,),
                ).fetchone()
                if wished > host_mib:
                    return int(wished - host_mib)
            connection.execute(
                "UPDATE machines SET state = 'starting', boot_id = ?, pid = ?, start_ticks = ?, marker = ?,"
                " reason = NULL, wanted = 1, owner = ?, restarts = ?, due_at = 0 WHERE name = ?",
                (*rows.process_values(process), supervision.owner.value, supervision.restarts, name),
            )
        return 0

    def remove(self, name: str, *, event: Happening | None = None) -> None:
        """Forget a machine and its forwards."""
        self._make_room()
        with self._writing() as connection:
            connection.execute("DELETE FROM machines WHERE name = ?", (name,))
            _remember(connection, name, event)
        _removed.add(name)

    def happened(self, event: Happening) -> None:
        """Remember what happened to this host, and to no single machine."""
        from vmm.model.event import THE_HOST

        with self._writing() as connection:
            _remember(connection, THE_HOST, event)

    def events(self, machine: str | None = None, *, after: int = 0, most: int = 1000) -> Sequence[Event]:
        """Return the newest `most` events after the one with the id `after`, the oldest first."""
        from vmm.storage import events

        with self._reading() as connection:
            try:
                return events.recall(connection, machine=machine, after=after, most=most)
            except ValueError as error:
                raise trouble.damaged(self.path, f"an event in it cannot be read: {error}") from error

    def note_once(self, key: str) -> bool:
        """Whether this is the first time that `key` is noted on this host."""
        with self._reading() as connection:
            if connection.execute("SELECT 1 FROM notes WHERE key = ?", (key,)).fetchone():
                return False
        with self._writing() as connection:
            cursor = connection.execute("INSERT OR IGNORE INTO notes VALUES (?, '')", (key,))
            return cursor.rowcount == 1

    def forwards(self, name: str | None = None) -> Sequence[PortForward]:
        """Return the forwards of one machine, or of all."""
        query = "SELECT machine, protocol, host_address, host_port, guest_port FROM forwards"
        order = " ORDER BY machine, host_port, protocol"
        with self._reading() as connection:
            if name is None:
                found = connection.execute(query + order)
            else:
                found = connection.execute(f"{query} WHERE machine = ?{order}", (name,))
            try:
                return [rows.forward_of(row) for row in found]
            except (ValueError, TypeError) as error:
                raise trouble.damaged(self.path, f"a forward in it cannot be read: {error}") from error

    def add_forward(self, forward: PortForward) -> None:
        """Record a forward. Raises ConflictError when a machine has the port, at this address or at every one."""
        with self._writing() as connection:
            # 0.0.0.0 takes the port at every address, which no UNIQUE constraint can say.
            row = connection.execute(
                "SELECT machine, host_address FROM forwards WHERE protocol = ? AND host_port = ?"
                " AND (host_address = ? OR host_address = ? OR ? = ?)",
                (forward.protocol.value, forward.host_port, forward.host_address, _ANY, forward.host_address, _ANY),
            ).fetchone()
            if row is not None:
                raise ConflictError(
                    f"Port {forward.host_port}/{forward.protocol} of the host is forwarded already.",
                    details=f"It leads to the machine {row[0]!r} ({row[1]}:{forward.host_port}).",
                    resolution=f"Choose another host port, or see: vmm port-forward list {row[0]}",
                )
            connection.execute(
                "INSERT INTO forwards (machine, protocol, host_address, host_port, guest_port) VALUES (?, ?, ?, ?, ?)",
                (
                    forward.machine,
                    forward.protocol.value,
                    forward.host_address,
                    forward.host_port,
                    forward.guest_port,
                ),
            )

    def remove_forward(self, forward: PortForward) -> None:
        self._make_room()
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM forwards WHERE machine = ? AND protocol = ? AND host_address = ? AND host_port = ?",
                (forward.machine, forward.protocol.value, forward.host_address, forward.host_port),
            )

    def users_of(self, *, image: str | None = None, kernel: str | None = None) -> Sequence[str]:
        """Return the names of the machines that use the image or the kernel."""
        with self._reading() as connection:
            found = connection.execute(
                "SELECT name FROM machines WHERE image = ? OR kernel = ? ORDER BY name", (image, kernel)
            )
            return [row[0] for row in found]

    def _knows(self, name: str) -> bool:
        with self._reading() as connection:
            return connection.execute("SELECT 1 FROM machines WHERE name = ?", (name,)).fetchone() is not None

    @contextlib.contextmanager
    def lock(self, name: str, *, timeout_s: float = 60.0) -> Generator[None]:
        """Serialise the verbs on one machine, between processes and threads."""
        from vmm.host import files

        path = files.confined(self.locks, name)
        with files.locked(path, what=f"the machine {name!r}", timeout_s=timeout_s):
            try:
                yield
            except NotFoundError:
                # Of the machine itself, or only of its image or a forward?
                if name.startswith(".") or not self._knows(name):
                    _removed.add(name)
                raise
            finally:
                # Of a machine that is not there, a lock is not kept either; but to the end, for it may be made anew.
                if name in _removed:
                    _removed.discard(name)
                    with contextlib.suppress(OSError, HostError):
                        path.unlink(missing_ok=True)
                        files.remove_lock(files.confined(self.locks, f".unit-{name}"))

    @property
    def _opening(self) -> Opening:
        return Opening(path=self.path, looks_only=self.read_only, disks=self.disks, tell=self.tell)

    @contextlib.contextmanager
    def _reading(self) -> Generator[sqlite3.Connection]:
        told = trouble.told(self.path, busy_s=BUSY_S)
        with told, _in_turn(), contextlib.closing(self._opening.for_reading()) as connection:
            if not self.read_only:
                # A command that was killed between its commit and this.
                readable.renew(connection, self.path)
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Generator[sqlite3.Connection]:
        """One write transaction: committed when the block ends well, rolled back otherwise."""
        told = trouble.told(self.path, busy_s=BUSY_S)
        with told, _in_turn(), contextlib.closing(self._opening.for_writing()) as connection:
            schema.begin(connection, str(self.path))
            try:
                yield connection
                readable.announce(self.path)
                connection.execute("COMMIT")
            except BaseException:
                # A full disk makes SQLite roll back by itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                readable.renew(connection, self.path)
        from vmm.storage import reserve

        reserve.renew(self.path.parent)

    def _make_room(self) -> None:
        """Give what is kept for it to a write that must succeed on a full disk too."""
        from vmm.storage import reserve

        reserve.make_room(self.path.parent)

    def _similar(self, name: str) -> str:
        import difflib

        known = sorted(self.names())
        close = difflib.get_close_matches(name, known, n=3)
        if close:
            return f"Did you mean {' or '.join(repr(match) for match in close)}?"
        return f"{len(known)} machine(s) are known." if known else "There are no machines."


@contextlib.contextmanager
def _in_turn() -> Generator[None]:
    """Wait for the other threads of this process; no longer than SQLite waits, which then tells."""
    has_it = _turn.acquire(timeout=BUSY_S)
    try:
        yield
    finally:
        if has_it:
            _turn.release()


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _remember(connection: sqlite3.Connection, machine: str, event: Happening | None) -> None:
    if event is not None:
        from vmm.storage import events

        events.remember(connection, machine, event)


def _created(machine: Machine) -> Happening:
    from vmm.model.event import EventKind, Happening

    return Happening(kind=EventKind.CREATED, detail=f"{machine.spec.engine.value}, from {machine.spec.image}")
