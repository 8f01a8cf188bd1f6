"""`vmm start`: the short way from a command to a running guest."""

from __future__ import annotations

import contextlib
import time
from enum import StrEnum

from vmm import TYPE_CHECKING
from vmm.errors import EngineError, NetworkError, StateError, VmmError
from vmm.model.clock import now
from vmm.model.command_line import command_line
from vmm.model.engine import BootPlan, Disk
from vmm.model.lifecycle import Verb, check_legal, is_needed
from vmm.model.machine import Machine, MachineState, ProcessIdentity
from vmm.model.value import Value
from vmm.operations.observe import observed

if TYPE_CHECKING:
    from vmm.model.site import Site

# The engine's own start takes tens of milliseconds (lab notes: 46 ms); this bounds one that hangs.
ENGINE_TIMEOUT_S = 20.0
# A guest with systemd under TCG on a busy host needs tens of seconds.
SSH_TIMEOUT_S = 120.0


class Wait(StrEnum):
    """What `start` waits for: the guest's ssh server, the engine's word that it runs, or nothing but the exec."""

    SSH = "ssh"
    RUNNING = "running"
    NONE = "none"


class Started(Value):
    """A started machine. `already` when it ran before; `seconds` from the call until what was waited for."""

    machine: Machine
    already: bool
    seconds: float


def start(site: Site, name: str, *, wait: Wait = Wait.RUNNING, timeout_s: float | None = None) -> Started:
    """Start a machine and wait as asked. Starting one that runs is no error.

    Raises:
        EngineError: the engine did not come up; the machine is then failed, and nothing of the attempt is left.
        GuestError: the engine runs, but the guest's ssh did not answer within `timeout_s`; it goes on running.
    """
    began = time.monotonic()
    with site.store.lock(name):
        machine = observed(site, site.store.machine(name))
        check_legal(Verb.START, machine)
        already = not is_needed(Verb.START, machine.state) or _adopt(machine)
        if not already:
            machine = _boot(site, machine, wait=wait, timeout_s=timeout_s)
        elif machine.process is not None:
            site.store.record(name, MachineState.RUNNING, process=machine.process, wanted=True)
    if wait is Wait.SSH:
        await_ssh(site, machine, timeout_s=timeout_s or SSH_TIMEOUT_S)
    return Started(machine=machine, already=already, seconds=time.monotonic() - began)


def await_ssh(site: Site, machine: Machine, *, timeout_s: float) -> float:
    """Wait until the guest's ssh server greets; return the seconds it took."""

    def alive() -> bool:
        return machine.process is not None and site.processes.is_alive(machine.process)

    return site.guest.await_ssh(machine, timeout_s=timeout_s, alive=alive)


def _adopt(machine: Machine) -> bool:
    """Whether a machine seen as stopping still has its engine: the lock is ours, so whoever was at it is gone."""
    return machine.state is MachineState.STOPPING and machine.process is not None


def _boot(site: Site, machine: Machine, *, wait: Wait, timeout_s: float | None) -> Machine:
    name = machine.name
    # What will outlive this process is recorded before it is made: from here on the row says that we are at it.
    site.store.record(name, MachineState.STARTING, process=site.processes.this_process(), wanted=True)
    process: ProcessIdentity | None = None
    try:
        with site.network.attaching(machine.lease, site.store.forwards(name)):
            engine = site.engine(machine.spec.engine)
            plan = _plan(site, machine)
            started_at = now()
            site.files.mark_boot(name, at=started_at)
        process = engine.spawn(plan)
        site.store.record(name, MachineState.STARTING, process=process, started_at=started_at)
        if wait is not Wait.NONE:
            engine.await_running(plan, process, timeout_s=min(timeout_s or ENGINE_TIMEOUT_S, ENGINE_TIMEOUT_S))
        _record_running(site, name, process, started_at)
    except BaseException as error:
        _undo(site, machine, process, error)
        raise
    return site.store.machine(name)


def _record_running(site: Site, name: str, process: ProcessIdentity, started_at: str) -> None:
    """Record the running machine. A write that fails never kills it: the next command finds engine and row again."""
    with contextlib.suppress(StateError):
        site.store.record(name, MachineState.RUNNING, process=process, started_at=started_at)


def _plan(site: Site, machine: Machine) -> BootPlan:
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
        command_line=command_line(machine.lease, site.subnet, stage1=initrd is not None),
        disks=disks,
        tap=machine.lease.tap,
        mac=machine.lease.mac,
        socket=files.socket(name),
        console=files.console(name),
        log=files.log(name),
        config=files.config(name),
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


def _undo(site: Site, machine: Machine, process: ProcessIdentity | None, error: BaseException) -> None:
    """Leave nothing of a start that failed or was interrupted; its own error is the one to be seen."""
    name = machine.name
    process = process or site.processes.find(str(site.files.socket(name)))
    if process is not None:
        site.processes.kill(process)
        site.processes.wait_gone(process, timeout_s=5.0)
    with contextlib.suppress(NetworkError):
        site.network.detach(machine.lease, site.store.forwards(name))
    failed = isinstance(error, VmmError)
    state = MachineState.FAILED if failed else MachineState.STOPPED
    reason = f"{error.brief} {error.details}" if isinstance(error, VmmError) else "its start was interrupted"
    with contextlib.suppress(StateError):
        site.store.record(name, state, process=None, wanted=machine.wanted, reason=reason[:2000])
