"""`vmm db`: what the database is worth, checked against the disk; a copy of it; and one put back or made again."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import ConflictError, StateError, VmmError, without_numbers
from vmm.host import files, systemd
from vmm.model import names
from vmm.model.clock import now
from vmm.model.event import EventKind, Happening
from vmm.model.lifecycle import LIVE
from vmm.model.machine import Machine, MachineState, Owner, Supervision, UnreadableRecord
from vmm.model.readiness import Check, CheckStatus
from vmm.model.value import Value, replace
from vmm.storage import backup, rebuild, schema, vetting

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from vmm.app import HostSite
    from vmm.model.machine import ProcessIdentity

_LOCK_S = 10.0
_SHOWN = 5
_RESTORE = "sudo vmm db restore"


class Wish(Value):
    """What `restore` is to do. `source` is the copy to put back, None the newest good one; `again`: made from disk."""

    source: Path | None = None
    again: bool = False
    force: bool = False


class Restored(Value):
    """What was done: `kept` is where the database that was there is now, `running` who was found running."""

    source: str
    kept: Path | None
    machines: int
    running: tuple[str, ...]
    left: tuple[rebuild.Left, ...]
    network: VmmError | None


def check(site: HostSite) -> tuple[Check, ...]:
    """Compare the database with itself and with the disk. Writes nothing, so that any user may look."""
    path = site.config.paths.database
    found = backup.examine(path)
    checks = [_database(site, found)]
    if 0 < found.version <= schema.VERSION:
        checks.append(_integrity(found))
        checks.append(_forwards(found))
        checks += _contents(site)
    checks.append(_backups(path, needed=not found.is_good and checks[0].status is not CheckStatus.OK))
    return tuple(checks)


def save(site: HostSite) -> Path:
    """Keep a copy of the database; return its path."""
    return backup.save(site.config.paths.database)


def is_good(site: HostSite) -> bool:
    """Whether the database that is in place needs no mending; that of a newer vmm is not ours to judge."""
    path = site.config.paths.database
    return backup.examine(path).version > schema.VERSION or _is_whole(site, path)


def restore(site: HostSite, wish: Wish) -> Restored:
    """Put a copy of the database back, or make one from what lies on disk. Machines that run go on, and are found.

    Raises:
        ConflictError: the database in place is good and `force` was not given, or another command is at work.
        StateError: there is no good copy, or the new database cannot be written. Nothing was changed then.
    """
    paths = site.config.paths
    with _all_held(site):
        if not wish.force and is_good(site):
            raise _good_as_it_is(paths.database, wish)
        left: tuple[rebuild.Left, ...] = ()
        if wish.again:
            on_disk = rebuild.look(paths.machines, site.subnet)
            source, left = str(paths.machines), on_disk.left
            drafted = backup.draft_by(lambda draft: rebuild.fill(draft, on_disk), paths.database)
        else:
            copy = wish.source or _newest_good(site, wish)
            source, drafted = str(copy), backup.draft_of(copy, paths.database)
        with drafted as draft:
            if not wish.again:
                _refuse_unfit(site, draft, wish, Path(source))
            kept = backup.put_in_place(draft, paths.database)
        machines, running = _find_running(site)
    return Restored(
        source=source,
        kept=kept,
        machines=machines,
        running=running,
        left=left,
        network=_network(site) if running else None,
    )


def _good_as_it_is(database: Path, wish: Wish) -> ConflictError:
    instead = "A copy put back in its place would forget what came after that copy."
    how = "sudo vmm db restore -f"
    if wish.again:
        instead = "One that is made from what lies on disk has no events, and no machine whose disk is gone."
        how = "sudo vmm db restore --rebuild -f"
    elif wish.source is not None:
        how = f"sudo vmm db restore -f --from {shlex.quote(str(wish.source))}"
    return ConflictError(
        f"The database {database} is good, and was left in place.",
        details=instead,
        resolution=f"See what is wrong (vmm db check); to replace it all the same: {how}",
    )


def _refuse_unfit(site: HostSite, draft: Path, wish: Wish, source: Path) -> None:
    """Refuse a copy with rows that vmm would not have written; one that was named, also where it is another host's."""

    def markers(machine: Machine) -> Sequence[str]:
        socket = site.files.socket(machine.name)
        return site.engine(machine.spec.engine).markers(machine_id=machine.id, socket=socket)

    machines = vetting.vet(draft, source, subnet=site.subnet, markers=markers)
    if wish.source is not None:
        vetting.refuse_anothers(machines, site.config.paths.machines, source)


def _newest_good(site: HostSite, wish: Wish) -> Path:
    database = site.config.paths.database
    known = backup.copies(database)
    for copy in known:
        if _is_whole(site, copy.path):
            return copy.path
    where = database.parent / "backups"
    raise StateError(
        "There is no good copy of the database to put back.",
        details=f"Of {len(known)} in {where} none is whole." if known else f"There is none in {where}.",
        resolution="Make a database from what lies on disk: sudo vmm db restore --rebuild -f"
        if wish.force
        else "Make a database from what lies on disk: sudo vmm db restore --rebuild",
    )


def _is_whole(site: HostSite, path: Path) -> bool:
    """Whether a database is good down to the last record."""
    if not path.exists() or not backup.examine(path).is_good:
        return False
    store = replace(site.store, path=path, read_only=True)
    with contextlib.suppress(VmmError):
        store.forwards()
        return not any(isinstance(record, UnreadableRecord) for record in store.machines())
    return False


@contextlib.contextmanager
def _all_held(site: HostSite) -> Generator[None]:
    """Hold every machine's lock, so that no verb is between two of its steps while the database is another one."""
    import resource

    paths = site.config.paths
    # A descriptor a machine: the usual limit of 1,024 is for programs that use select.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    known = {entry.name for entry in rebuild.directories(paths.machines)}
    with contextlib.suppress(FileNotFoundError):
        known |= {entry.name for entry in paths.locks.iterdir()}
    with contextlib.ExitStack() as stack:
        # No machine's name begins with a dot.
        guard = paths.locks / ".restore"
        stack.enter_context(files.locked(guard, what="the database", timeout_s=_LOCK_S))
        for name in sorted(filter(_can_name_a_machine, known)):
            stack.enter_context(site.store.lock(name, timeout_s=_LOCK_S))
        yield


def _can_name_a_machine(name: str) -> bool:
    with contextlib.suppress(VmmError):
        return bool(names.valid_name(name))
    return False


def _find_running(site: HostSite) -> tuple[int, tuple[str, ...]]:
    """Return how many machines are recorded, and the names of those that run; rows that say otherwise are told."""
    machines = [record for record in site.store.machines() if not isinstance(record, UnreadableRecord)]
    names_of: dict[str, str] = {}
    for machine in machines:
        engine = site.engine(machine.spec.engine)
        markers = engine.markers(machine_id=machine.id, socket=site.files.socket(machine.name))
        names_of |= dict.fromkeys(markers, machine.name)
    engines = {names_of[marker]: engine for marker, engine in site.processes.find_all(names_of).items()}
    running = [machine for machine in machines if machine.name in engines]
    running = [machine for machine in running if _is_its_own(site, machine, engines[machine.name])]
    for machine in running:
        engine = engines[machine.name]
        if machine.state not in LIVE or machine.process != engine:
            _record(site, machine, engine)
    return len(machines), tuple(machine.name for machine in running)


def _record(site: HostSite, machine: Machine, engine: ProcessIdentity) -> None:
    site.store.record(
        machine.name,
        MachineState.RUNNING,
        process=engine,
        wanted=True,
        started_at=machine.started_at or now(),
        supervision=Supervision(owner=Owner.UNIT if _has_unit(machine, engine) else Owner.SUPERVISOR),
        event=Happening(kind=EventKind.REPAIRED, detail=f"found running (pid {engine.pid}) by db restore"),
    )


def _has_unit(machine: Machine, engine: ProcessIdentity) -> bool:
    """Whether systemd runs the engine in the machine's own unit."""
    try:
        return systemd.unit_of(machine) in Path(f"/proc/{engine.pid}/cgroup").read_text(
            encoding="utf-8", errors="replace"
        )
    except OSError:
        return False


def _is_its_own(site: HostSite, machine: Machine, engine: ProcessIdentity) -> bool:
    """Whether an engine runs this machine, and not another that had its name: its id or its MAC is in its arguments."""
    return any(site.processes.is_alive(replace(engine, marker=own)) for own in (machine.id, machine.lease.mac))


def _network(site: HostSite) -> VmmError | None:
    """Bring the firewall to what the database says now; what keeps it from that does not undo the restoration."""
    try:
        site.network.reconcile(site.running_leases())
        site.ensure_supervisor()
    except VmmError as error:
        return error
    return None


def _database(site: HostSite, found: backup.Condition) -> Check:
    name, path = "database", site.config.paths.database
    if found.unreachable:
        fix = "sudo vmm db check" if os.geteuid() != 0 else f"see what lies there, and who holds it: ls -ld {path}"
        return _warn(name, f"{path} cannot be looked through: {without_numbers(found.unreachable)}", fix)
    if found.problems:
        return _bad(name, f"{path} is damaged: {found.problems[0]}", _RESTORE)
    if not found.version:
        return _empty(site)
    if found.version > schema.VERSION:
        detail = f"{path} is of a newer vmm: schema {found.version}, this vmm knows {schema.VERSION}"
        return _bad(name, detail, "install the newer vmm again")
    if found.version < schema.VERSION:
        detail = f"{path} has schema {found.version}; the next command of root brings it to {schema.VERSION}"
        return _warn(name, detail, "sudo vmm db backup")
    return _ok(name, f"{path}, schema {found.version}, {found.machines} machine(s)")


def _empty(site: HostSite) -> Check:
    """Tell a host where no machine was made yet from one that has lost its database."""
    paths = site.config.paths
    what = f"{paths.database} {'is empty' if paths.database.exists() else 'is not there'}"
    on_disk = rebuild.directories(paths.machines)
    if on_disk:
        return _bad("database", f"{what}, though {len(on_disk)} machine(s) lie in {paths.machines}", _RESTORE)
    return _ok("database", f"{what}: no machine was created yet")


def _integrity(found: backup.Condition) -> Check:
    if found.problems:
        return _bad("integrity", _some(found.problems), _RESTORE)
    return _ok("integrity", "every page, every index and every row is whole")


def _forwards(found: backup.Condition) -> Check:
    if found.orphans:
        return _bad("forwards", f"{found.orphans} forward(s) lead to no machine", _RESTORE)
    return _ok("forwards", "each leads to a machine")


def _contents(site: HostSite) -> list[Check]:
    """Return what is wrong with the records, and between them and the disk."""
    try:
        records = site.store.machines()
        site.store.forwards()
    except VmmError as error:
        return [_bad("records", f"{error.brief} {error.details}", error.resolution)]
    unreadable = [f"{record.name} ({record.problem})" for record in records if isinstance(record, UnreadableRecord)]
    if unreadable:
        return [_bad("records", f"cannot be read: {_some(unreadable)}", _RESTORE), _directories(site, records)]
    good = [record for record in records if isinstance(record, Machine)]
    return [_ok("records", "every one can be read"), _disks(site, good), _directories(site, records)]


def _disks(site: HostSite, machines: Sequence[Machine]) -> Check:
    lost = [machine for machine in machines if not site.files.is_made(machine.name)]
    used = [machine.name for machine in lost if machine.started_at is not None]
    if used:
        fix = f"put them back from a backup of yours, or give the machine up: vmm delete {used[0]}"
        return _bad("disks", f"gone, of machines that had one: {_some(used)}", fix)
    if lost:
        unmade = [machine.name for machine in lost]
        return _warn("disks", f"not made yet: {_some(unmade)}", f"sudo vmm start {unmade[0]}")
    larger = [machine for machine in machines if _real_mib(site, machine) > machine.spec.disk_mib]
    if larger:
        first = larger[0]
        detail = _some([f"{machine.name} ({_real_mib(site, machine)} MiB)" for machine in larger])
        fix = f"sudo vmm set {first.name} --disk {_real_mib(site, first)}"
        return _warn("disks", f"larger than they are recorded: {detail}", fix)
    return _ok("disks", "every machine has its own")


def _real_mib(site: HostSite, machine: Machine) -> int:
    """Return the size of a disk's file, 0 where that cannot be seen."""
    with contextlib.suppress(OSError):
        return site.files.disk_mib(machine.name)
    return 0


def _directories(site: HostSite, records: Sequence[Machine | UnreadableRecord]) -> Check:
    """Compare `vms/` with the records: whose directory is unknown, or is that of another machine of the same name."""
    ids = {record.name: record.id if isinstance(record, Machine) else None for record in records}
    unknown: list[str] = []
    others: list[str] = []
    for directory in rebuild.directories(site.config.paths.machines):
        described = rebuild.identity_on_disk(directory)
        if directory.name not in ids:
            engine = site.processes.find(described) if described else None
            unknown.append(f"{directory.name} (it runs, pid {engine.pid})" if engine else directory.name)
        elif described and ids[directory.name] not in (described, None):
            others.append(directory.name)
    if others:
        return _bad("directories", f"of another machine of that name: {_some(others)}", f"{_RESTORE} --rebuild -f")
    if unknown:
        detail = f"of machines that the database does not know: {_some(unknown)}"
        return _warn("directories", detail, f"{_RESTORE} --rebuild -f (or remove them, if they are nobody's)")
    return _ok("directories", "each is a machine's")


def _backups(path: Path, *, needed: bool) -> Check:
    """List the copies: each is looked through where one is needed, else only counted."""
    try:
        known = backup.copies(path)
    except PermissionError:
        return _warn("backups", "only root can see them", "sudo vmm db check")
    if not known:
        if needed:
            return _bad("backups", "there is none", f"{_RESTORE} --rebuild (makes a database from what lies on disk)")
        return _ok("backups", "none yet; sudo vmm db backup makes one")
    if not needed:
        return _ok("backups", f"{len(known)}, the newest of {known[0].made_at}: {known[0].path}")
    words: list[str] = []
    for copy in known:
        found = backup.examine(copy.path)
        worth = f"{found.machines} machine(s)" if found.is_good else "not usable"
        words.append(f"{copy.path} ({copy.made_at}, {worth})")
    return _ok("backups", "; ".join(words))


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, status=CheckStatus.OK, detail=detail)


def _warn(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, status=CheckStatus.WARNING, detail=detail, fix=fix)


def _bad(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, status=CheckStatus.FAILURE, detail=detail, fix=fix)
