"""`vmm start`: the short way from a command to a running guest."""

from __future__ import annotations

import contextlib
import time
from enum import StrEnum

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, EngineError, NetworkError, StateError, VmmError
from vmm.model.clock import now
from vmm.model.command_line import command_line
from vmm.model.engine import BootPlan, Disk
from vmm.model.event import EventKind, Happening
from vmm.model.facts import Standing
from vmm.model.lifecycle import LIVE, Verb, check_legal, is_needed, is_waiting
from vmm.model.machine import (
    NO_LIMITS,
    Machine,
    MachineState,
    Owner,
    ProcessIdentity,
    Supervision,
    UnreadableRecord,
)
from vmm.model.value import Value
from vmm.operations.clear import adopt, clear_away, refuse_anothers
from vmm.operations.observe import find_engine, observed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.model.facts import Answer
    from vmm.model.site import Engine, Site

# The engine's own start takes tens of milliseconds (lab notes: 46 ms), and 20 s on a host that is itself emulated;
# this bounds one that hangs. One that ends is noticed at once.
ENGINE_TIMEOUT_S = 60.0
# A guest with systemd under TCG on a busy host needs tens of seconds.
SSH_TIMEOUT_S = 120.0
_LOOKS = 4


class Wait(StrEnum):
    """What `start` waits for: the guest's ssh server, the engine's word that it runs, or nothing but the exec."""

    SSH = "ssh"
    RUNNING = "running"
    NONE = "none"


class Mode(Value):
    """How a machine is to be started. `owner`: who looks after its process; None lets the host decide.

    `overcommit`: whether it may have memory that the host does not have. `again`: it is a restart that no one asked
    for, and comes to nothing when the machine no longer waits for one.
    """

    wait: Wait = Wait.RUNNING
    timeout_s: float | None = None
    owner: Owner | None = None
    overcommit: bool = False
    again: bool = False


class Started(Value):
    """A started machine. `already` when it ran before; `seconds` from the call until what was waited for.

    `warnings` are what its user should know of how it runs.
    """

    machine: Machine
    already: bool
    seconds: float
    warnings: tuple[str, ...] = ()


DEFAULT = Mode()


def start(site: Site, name: str, mode: Mode = DEFAULT) -> Started:
    """Start a machine and wait as asked. Starting one that runs is no error.

    Raises:
        ConflictError: it may not be started now, or the host has not the memory.
        EngineError: the engine did not come up; the machine is then failed, and nothing of the attempt is left.
        GuestError: the engine runs, but the guest's ssh did not answer within `timeout_s`; it goes on running.
    """
    began = time.monotonic()
    # Of what is asked within a unit nobody reads the answers, and for a restart by itself nobody waits.
    asks = mode.owner is not Owner.UNIT and not mode.again
    with site.facts.beside_start() if asks else contextlib.nullcontext(_nothing) as answers:
        machine, already = _boot_or_find(site, name, mode)
        unwatched = _watch(site)
        host = _host_warnings(answers())
    if mode.wait is Wait.SSH:
        from vmm.operations.until_ssh import await_ssh

        await_ssh(site, machine, timeout_s=mode.timeout_s or SSH_TIMEOUT_S)
    warnings = (*(() if already else _warnings(site, machine)), *host, *unwatched)
    return Started(machine=machine, already=already, seconds=time.monotonic() - began, warnings=warnings)


def _boot_or_find(site: Site, name: str, mode: Mode) -> tuple[Machine, bool]:
    """Return the machine that runs, and whether it ran already."""
    units = site.units if mode.owner is None else None
    if units is None:
        return _begin(site, name, mode, boot=True)
    # Its own lock: the start within the unit takes the machine's, and of two that ask for it one must wait.
    with site.store.lock(f".unit-{name}"):
        machine, already = _begin(site, name, mode, boot=False)
        if not already:
            units.start(machine, overcommit=mode.overcommit)
            machine = observed(site, site.store.machine(name))
    return machine, already


def _watch(site: Site) -> tuple[str, ...]:
    """See to it that a supervisor is there; a machine that runs without one is to be told of, and goes on running."""
    try:
        site.ensure_supervisor()
    except VmmError as error:
        return (f"Nobody looks after the machine: {error.brief} {error.details} To mend it: {error.resolution}",)
    return ()


def _begin(site: Site, name: str, mode: Mode, *, boot: bool) -> tuple[Machine, bool]:
    """Look whether the machine may be started and runs already; if it does not, and with `boot`, boot it."""
    with site.store.lock(name):
        machine = observed(site, site.store.machine(name))
        check_legal(Verb.START, machine)
        if mode.again and not is_waiting(machine):
            raise ConflictError(
                f"The machine {name!r} does not wait for a restart.",
                details=f"It is {machine.state}.",
                resolution=f"vmm start {name}",
            )
        refuse_anothers(site, machine)
        already = not is_needed(Verb.START, machine.state) or _adopt(machine)
        if already and machine.process is not None:
            site.store.record(name, MachineState.RUNNING, process=machine.process, wanted=True)
            adopt(site, machine)
        elif not already and boot:
            machine = _boot(site, machine, mode)
    return machine, already


def _adopt(machine: Machine) -> bool:
    """Whether a machine seen as stopping still has its engine: the lock is ours, so whoever was at it is gone."""
    return machine.state is MachineState.STOPPING and machine.process is not None


def _boot(site: Site, machine: Machine, mode: Mode) -> Machine:
    name = machine.name
    _refuse_other_subnet(site, machine)
    restarts = machine.supervision.restarts if mode.again else 0
    supervision = Supervision(owner=mode.owner or Owner.SUPERVISOR, restarts=restarts)
    # What will outlive this process is recorded before it is made: from here on the row says that we are at it.
    _admit(site, machine, supervision, overcommit=mode.overcommit or mode.again)
    process: ProcessIdentity | None = None
    spawning = False
    try:
        resolvers = machine.spec.dns or site.resolvers()
        forwards = site.store.forwards(name)
        with site.network.attaching(machine.lease, forwards, uid=site.uid_of(machine), resolvers=resolvers):
            engine = site.engine(machine.spec.engine)
            plan = _plan(site, machine, supervision)
            started_at = now()
            site.files.mark_boot(name, at=started_at)
        spawning = True
        process = engine.spawn(plan)
        site.store.record(name, MachineState.STARTING, process=process, started_at=started_at)
        if mode.wait is not Wait.NONE:
            limit = min(mode.timeout_s or ENGINE_TIMEOUT_S, ENGINE_TIMEOUT_S)
            _await_running(site, engine, plan, process, timeout_s=limit, again=mode.again)
        _record_running(site, machine, process, started_at, restarts=restarts)
    except BaseException as error:
        if spawning or not _runs_all_along(site, machine):
            _undo(site, machine, process, error)
        raise
    started = site.store.machine(name)
    # Its disk is one that a guest has used now, and is never made anew.
    site.files.describe(started, site.store.forwards(name))
    return started


def _await_running(
    site: Site, engine: Engine, plan: BootPlan, process: ProcessIdentity, *, timeout_s: float, again: bool
) -> None:
    """Wait until the engine runs its guest; how one ended that was started again, its last words tell its policy."""
    try:
        engine.await_running(plan, process, timeout_s=timeout_s)
    except EngineError:
        from vmm.model.last_words import last_word

        if not again or last_word(site.files.last_words(plan.name)) is None:
            raise


def _refuse_other_subnet(site: Site, machine: Machine) -> None:
    """Refuse a machine whose address the subnet has not: its frames would meet no rule, and no answer would come."""
    address, subnet = machine.lease.address, site.subnet
    if not subnet.holds(address):
        raise ConflictError(
            f"The machine {machine.name!r} has an address of another subnet.",
            details=f"It holds {address}; the configuration says {subnet.cidr}, with the gateway {subnet.gateway}.",
            resolution=f"Put the subnet back that it was created in (sudo vmm config set subnet ... gateway ...), or"
            f" create it anew, without what is on its disk: sudo vmm delete {machine.name}",
        )


def _admit(site: Site, machine: Machine, supervision: Supervision, *, overcommit: bool) -> None:
    """Record that the machine is being started; ConflictError when the host has not the memory for it."""
    me = site.processes.this_process()
    total = None if overcommit else site.memory_mib()
    name, wish = machine.name, machine.spec.memory_mib
    if site.store.admit(name, process=me, supervision=supervision, host_mib=total) == 0 or total is None:
        return
    # Records of machines whose engines are gone, with nobody having noticed yet, do not count.
    stale = sum(
        record.spec.memory_mib
        for record in site.store.machines()
        if not isinstance(record, UnreadableRecord)
        and record.name != name
        and record.state in LIVE
        and observed(site, record).state not in LIVE
    )
    lacking = site.store.admit(name, process=me, supervision=supervision, host_mib=total + stale)
    if lacking:
        used = lacking + total - wish
        raise ConflictError(
            f"The host has not the memory for the machine {name!r}.",
            details=f"It wants {wish} MiB; those that run have {used} of the host's {total} MiB.",
            resolution=f"Stop another, give it less (vmm set {name} --memory SIZE), or start it all the same:"
            f" vmm start {name} --overcommit",
        )


def _record_running(site: Site, machine: Machine, process: ProcessIdentity, started_at: str, *, restarts: int) -> None:
    """Record the running machine. A write that fails never kills it: the next command finds engine and row again."""
    how = f"{machine.spec.engine.value}, pid {process.pid}" + (f", restart {restarts}" if restarts else "")
    with contextlib.suppress(StateError):
        site.store.record(
            machine.name,
            MachineState.RUNNING,
            process=process,
            started_at=started_at,
            event=Happening(kind=EventKind.STARTED, detail=how),
        )


def _plan(site: Site, machine: Machine, supervision: Supervision) -> BootPlan:
    owner = supervision.owner
    spec, files, name = machine.spec, site.files, machine.name
    kernel = site.kernels.get(spec.kernel)
    if not files.is_made(name):
        _remake(site, machine)
    resolvers = () if kernel.stage1 is None else spec.dns or site.resolvers()
    initrd = files.prepare_boot(machine, kernel, resolvers)
    seed = files.seed_disk(machine)
    disks = (Disk(path=files.disk(name)), *((Disk(path=seed, read_only=True),) if seed else ()))
    return BootPlan(
        name=name,
        id=machine.id,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        kernel=kernel.path,
        initrd=initrd,
        command_line=command_line(
            machine.lease, site.subnet, stage1=initrd is not None, speaks=supervision.restarts > 0
        ),
        disks=disks,
        tap=machine.lease.tap,
        mac=machine.lease.mac,
        socket=files.socket(name),
        console=files.console(name),
        log=files.log(name),
        config=files.config(name),
        uid=site.uid_of(machine),
        jails=site.jails if spec.jail else None,
        # A supervisor that is not vmm's ends what it owns by its own cgroup: the engine stays in it, unless a limit
        # was asked for. A unit of systemd's has its limits already.
        cgroup=owner is Owner.SUPERVISOR or (owner is Owner.FOREGROUND and spec.limits != NO_LIMITS),
        limits=spec.limits,
        socket_group=site.socket_group,
    )


def _remake(site: Site, machine: Machine) -> None:
    """Finish a `create` that was killed before its disk was there; a disk that a guest used is never made anew."""
    if machine.started_at is not None:
        raise EngineError(
            f"The machine {machine.name!r} has lost its disk.",
            details=f"{site.files.disk(machine.name)} is not there, though the machine was started before.",
            resolution=f"Put the disk back from a backup, or give the machine up: vmm delete {machine.name}",
        )
    site.files.make(machine, site.images.get(machine.spec.image))


def _warnings(site: Site, machine: Machine) -> tuple[str, ...]:
    """Return what the machine's user should know; what is published against the engine is said once a host."""
    said: list[str] = []
    if not machine.spec.jail:
        said.append(
            f"{machine.name} runs WITHOUT A JAIL (--no-jail): whoever breaks out of its engine is root on this host."
            f" Confine it: vmm stop {machine.name}; vmm set {machine.name} --jail; vmm start {machine.name}"
        )
    for hole in site.engine(machine.spec.engine).holes():
        with contextlib.suppress(StateError):
            if site.store.note_once(f"warned: {hole}"):
                said.append(f"{hole} Get a newer release: sudo vmm setup --force (vmm doctor keeps naming it).")
    return tuple(said)


def _nothing() -> tuple[Answer, ...]:
    return ()


def _host_warnings(answers: Sequence[Answer]) -> list[str]:
    """Return what of this host keeps the machine from what it needs, and could not be mended."""
    wrong = [answer for answer in answers if answer.standing is Standing.NOT_OK and not answer.mended]
    return [f"{answer.name}: {answer.proof}. To mend it: {answer.fix}" for answer in wrong]


def _runs_all_along(site: Site, machine: Machine) -> bool:
    """Whether an engine runs that this start did not make: a database that was restored does not know of it."""
    engine = find_engine(site, machine)
    if engine is None:
        return False
    event = Happening(kind=EventKind.REPAIRED, detail=f"its engine runs (pid {engine.pid})")
    with contextlib.suppress(StateError):
        site.store.record(machine.name, MachineState.RUNNING, process=engine, wanted=True, event=event)
    return True


def _undo(site: Site, machine: Machine, process: ProcessIdentity | None, error: BaseException) -> None:
    """Leave nothing of a start that failed or was interrupted; its own error is the one to be seen."""
    name = machine.name
    for _ in range(_LOOKS):
        # Looked for again until there is none: the one that is found may be the jailer, which has just started another.
        process = process or find_engine(site, machine)
        if process is None:
            break
        site.processes.kill(process)
        site.processes.wait_gone(process, timeout_s=5.0)
        process = None
    with contextlib.suppress(NetworkError):
        site.network.detach(machine.lease, site.store.forwards(name))
    clear_away(site, machine)
    failed = isinstance(error, VmmError)
    state = MachineState.FAILED if failed else MachineState.STOPPED
    reason = f"{error.brief} {error.details}" if isinstance(error, VmmError) else "its start was interrupted"
    event = Happening(kind=EventKind.FAILED if failed else EventKind.STOPPED, detail=reason)
    with contextlib.suppress(StateError):
        site.store.record(name, state, process=None, wanted=machine.wanted, reason=reason[:2000], event=event)
