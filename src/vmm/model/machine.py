"""A machine as it was asked for, as it is remembered, and as it is shown."""

from __future__ import annotations

from enum import StrEnum

from vmm import TYPE_CHECKING
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.model.network import Lease, PortForward


class EngineName(StrEnum):
    FIRECRACKER = "firecracker"
    QEMU = "qemu"


class MachineState(StrEnum):
    """Our state of a machine, distinct from what its engine reports."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class MachineSpec(Value):
    """A machine as it was asked for, every default filled in.

    `memory_mib` and `disk_mib` are MiB. `ssh_keys` are public keys in authorized_keys form, added to the managed one.
    `dns` are resolver addresses; empty means the host's own. `user_data` is cloud-init user data (NoCloud), or None.
    """

    name: str
    cpus: int
    memory_mib: int
    disk_mib: int
    image: str
    kernel: str
    engine: EngineName
    auto_start: bool = True
    labels: Mapping[str, str]
    ssh_keys: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    user_data: str | None = None


class ProcessIdentity(Value):
    """What tells one process from every other, also after its pid was reused.

    `start_ticks` is field 22 of /proc/PID/stat; `marker` is a string only this process has in its command line
    (the path of its own API socket).
    """

    boot_id: str
    pid: int
    start_ticks: int
    marker: str


class Machine(Value):
    """A machine as it is remembered.

    `wanted` says whether its user last asked for it to run: what a reboot brings back. `process` is the engine's;
    while the state is starting and no engine exists yet, it is the vmm command at work (its marker is empty). Times are
    UTC in ISO 8601. `reason` is why the state is what it is, where that is no one's wish.
    """

    id: str
    spec: MachineSpec
    lease: Lease
    state: MachineState
    wanted: bool
    created_at: str
    started_at: str | None = None
    process: ProcessIdentity | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        return self.spec.name


class UnreadableRecord(Value):
    """A machine's row that this vmm cannot read; shown, never hidden."""

    name: str
    problem: str


class MachineView(Value):
    """A machine with its forwards, its state checked against the host."""

    machine: Machine
    forwards: tuple[PortForward, ...] = ()
