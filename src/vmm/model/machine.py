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


class Limits(Value):
    """What the host lets a machine's engine have; None is no limit.

    `cpus` in whole CPUs (1.5), `memory_mib` in MiB over the guest's own memory, `io_*_bps` in bytes and `io_*_iops` in
    operations a second on the device that holds the machine's disk.
    """

    cpus: float | None = None
    memory_mib: int | None = None
    pids: int | None = None
    io_read_bps: int | None = None
    io_write_bps: int | None = None
    io_read_iops: int | None = None
    io_write_iops: int | None = None


class RestartPolicy(StrEnum):
    """What becomes of a machine that ended without anyone's wish.

    A guest's own reboot restarts it under every policy. `on-failure`: after a crash, a kernel's panic, a killed engine.
    `always`: after the guest's own power-off as well. A machine that was stopped stays stopped.
    """

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class Owner(StrEnum):
    """Who looks after a machine's process: vmm's own supervisor, a unit of systemd's, or a `start --foreground`."""

    SUPERVISOR = "supervisor"
    UNIT = "unit"
    FOREGROUND = "foreground"


class Supervision(Value):
    """`restarts` counts those in a row that no one asked for; `due_at` is when the next one is (seconds since 1970)."""

    owner: Owner = Owner.SUPERVISOR
    restarts: int = 0
    due_at: int = 0


NO_LIMITS = Limits()
UNATTENDED = Supervision()


class MachineSpec(Value):
    """A machine as it was asked for, every default filled in.

    `memory_mib` and `disk_mib` are MiB. `jail`: its engine is confined. `ssh_keys` are public keys in authorized_keys
    form, added to the managed one.
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
    jail: bool = True
    limits: Limits = NO_LIMITS
    restart: RestartPolicy = RestartPolicy.NO


class ProcessIdentity(Value):
    """What tells one process from every other, also after its pid was reused.

    `start_ticks` is field 22 of /proc/PID/stat; `marker` is a string only this process has in its command line: the
    path of its own API socket, or in a jail, where paths are others, the machine's id.
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
    supervision: Supervision = UNATTENDED

    @property
    def name(self) -> str:
        return self.spec.name


class Stray(Value):
    """An engine that runs, and that no record is of. `lease` and `forwards` are as its machine's directory has them.

    Where that `is_described` no more, the lease is that of the tap that the engine has open.
    """

    name: str
    id: str
    pid: int
    lease: Lease | None = None
    forwards: tuple[PortForward, ...] = ()
    is_described: bool = True

    @property
    def problem(self) -> str:
        return f"its engine runs (pid {self.pid}), and the database does not know it"

    @property
    def advice(self) -> str:
        """What to do about it."""
        if self.is_described:
            return "take it in: sudo vmm db restore --rebuild -f"
        return f"nothing on disk describes it any more: save what is in it, then end it: sudo kill {self.pid}"


class UnreadableRecord(Value):
    """A machine's row that this vmm cannot read; shown, never hidden."""

    name: str
    problem: str


class MachineView(Value):
    """A machine with its forwards, its state checked against the host.

    `boot_notes` is what stage-1 said at its last boot, where one machine is looked at by who may read its console.
    """

    machine: Machine
    forwards: tuple[PortForward, ...] = ()
    boot_notes: tuple[str, ...] = ()
