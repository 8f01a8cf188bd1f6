"""What the operations act on: one Protocol a room, and `Site`, which holds them all. `vmm.app` fills it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from vmm.model.defaults import Defaults
from vmm.model.engine import BootPlan, EngineFeatures, EngineStatus
from vmm.model.image import Image, Kernel
from vmm.model.machine import (
    EngineName,
    Machine,
    MachineSpec,
    MachineState,
    ProcessIdentity,
    UnreadableRecord,
)
from vmm.model.network import Lease, PortForward, Subnet
from vmm.model.progress import Progress


class Store(Protocol):
    """What vmm remembers (SQLite). Every method is one transaction; all raise StateError."""

    def machines(self) -> Sequence[Machine | UnreadableRecord]: ...
    def machine(self, name: str) -> Machine: ...
    def add(self, spec: MachineSpec, *, subnet: Subnet, id: str, created_at: str) -> Machine: ...  # noqa: A002
    def replace_spec(self, name: str, spec: MachineSpec) -> None: ...
    def record(
        self,
        name: str,
        state: MachineState,
        *,
        process: ProcessIdentity | None,
        wanted: bool | None = None,
        started_at: str | None = None,
        reason: str | None = None,
    ) -> None: ...
    def remove(self, name: str) -> None: ...
    def forwards(self, name: str | None = None) -> Sequence[PortForward]: ...
    def add_forward(self, forward: PortForward) -> None: ...
    def remove_forward(self, forward: PortForward) -> None: ...
    def users_of(self, *, image: str | None = None, kernel: str | None = None) -> Sequence[str]: ...
    def lock(self, name: str, *, timeout_s: float = 60.0) -> AbstractContextManager[None]: ...


class Network(Protocol):
    """Bridge, taps and firewall. Idempotent; all raise NetworkError."""

    def attaching(self, lease: Lease, forwards: Sequence[PortForward]) -> AbstractContextManager[None]:
        """Let a machine onto the bridge; mends bridge and firewall where they are not whole.

        The rules are set beside the block, which prepares whatever else the machine needs; at its end the tap stands.
        """
        ...

    def detach(self, lease: Lease, forwards: Sequence[PortForward]) -> None:
        """Remove the tap and its forwards; what is gone already is no error."""
        ...

    def open_forward(self, lease: Lease, forward: PortForward) -> None: ...
    def close_forward(self, lease: Lease, forward: PortForward) -> None: ...
    def reconcile(self, attached: Sequence[tuple[Lease, Sequence[PortForward]]]) -> None:
        """Make bridge and firewall whole from the running machines, in one transaction."""
        ...

    def port_is_bound(self, forward: PortForward) -> bool:
        """Whether a program of the host listens on the forward's address and port."""
        ...


class Processes(Protocol):
    """The host's processes, each known by its identity and never by its pid alone."""

    def is_alive(self, process: ProcessIdentity) -> bool: ...
    def wait_gone(self, process: ProcessIdentity, *, timeout_s: float) -> bool: ...
    def kill(self, process: ProcessIdentity) -> None: ...
    def find(self, marker: str) -> ProcessIdentity | None: ...
    def this_process(self) -> ProcessIdentity: ...


class Images(Protocol):
    """The image library."""

    def all(self) -> Sequence[Image]: ...
    def get(self, name: str) -> Image: ...
    def delete(self, name: str) -> None: ...
    def pull(self, name: str | None, *, force: bool, progress: Progress) -> Image: ...
    def import_path(self, path: Path, name: str, *, size_mib: int | None, force: bool, progress: Progress) -> Image: ...


class Kernels(Protocol):
    """The kernel library."""

    def all(self) -> Sequence[Kernel]: ...
    def get(self, name: str) -> Kernel: ...
    def delete(self, name: str) -> None: ...
    def pull(self, name: str | None, *, force: bool, progress: Progress) -> Kernel: ...
    def import_path(
        self, path: Path, name: str, *, modules: Path | None, stage1: bool, force: bool, progress: Progress
    ) -> Kernel: ...


class MachineFiles(Protocol):
    """A machine's own directory: its disk, its initrd, its console."""

    def make(self, machine: Machine, image: Image) -> None:
        """Make directory, disk (a copy of the image, grown to the spec's size) and host key; whole or not at all."""
        ...

    def is_made(self, name: str) -> bool:
        """Whether the machine's disk is there."""
        ...

    def grow(self, name: str, disk_mib: int) -> None:
        """Make the disk larger; the guest's file system follows at its next boot."""
        ...

    def grown(self, name: str) -> None:
        """Note that a guest booted with its larger disk, so that the next boot need not grow it again."""
        ...

    def last_words(self, name: str) -> str:
        """Return the end of the console since the last boot, at most 4 KiB; empty where there is none."""
        ...

    def engine_words(self, name: str) -> str:
        """Return the end of the engine's log, at most 2 KiB."""
        ...

    def disk(self, name: str) -> Path: ...
    def prepare_boot(self, machine: Machine, kernel: Kernel, resolvers: Sequence[str]) -> Path | None:
        """Write the initrd (stage-1 and the machine's facts), return its path; None for a kernel without stage-1."""
        ...

    def mark_boot(self, name: str, *, at: str) -> None:
        """Write the line that marks a boot into the console log, and keep the log bounded."""
        ...

    def seed_disk(self, machine: Machine) -> Path | None:
        """Return the NoCloud seed disk when the machine has user data."""
        ...

    def console(self, name: str) -> Path: ...
    def log(self, name: str) -> Path: ...
    def socket(self, name: str) -> Path: ...
    def config(self, name: str) -> Path: ...
    def remove(self, name: str) -> None:
        """Remove everything that is the machine's on disk; what is gone already is no error. Works on a full disk."""
        ...


class Engine(Protocol):
    """How a machine runs. Engines are twins: same verbs, features declared, refusal early.

    Every method is bounded in time. All raise EngineError with the engine's own words in `details`.
    """

    @property
    def name(self) -> EngineName: ...

    @property
    def features(self) -> EngineFeatures: ...

    def spawn(self, plan: BootPlan) -> ProcessIdentity:
        """Start the engine's process for `plan` in a session of its own and return at once."""
        ...

    def await_running(self, plan: BootPlan, process: ProcessIdentity, *, timeout_s: float) -> None:
        """Return as soon as the engine reports the guest running; raise EngineError if it ends or the time is over."""
        ...

    def status(self, socket: Path, *, timeout_s: float = 2.0) -> EngineStatus:
        """Ask the engine through its API socket."""
        ...

    def press_power_button(self, socket: Path) -> bool:
        """Ask the guest to shut down (Ctrl-Alt-Del, ACPI). True when the engine took the request."""
        ...


class WriteInitrd(Protocol):
    """Writes a machine's initrd: the kernel's stage-1 and the machine's own facts."""

    def __call__(
        self, out: Path, *, machine: Machine, stage1: Path, host_key: Path, resolvers: Sequence[str], grow: bool
    ) -> None: ...


class Guest(Protocol):
    """The ways into a running machine."""

    def await_ssh(self, machine: Machine, *, timeout_s: float, alive: Callable[[], bool]) -> float:
        """Return the seconds until the guest's ssh server sent its banner; raise GuestError when it did not in time."""
        ...

    def ask_shutdown(self, machine: Machine, *, reboot: bool, timeout_s: float) -> bool:
        """Ask the guest over ssh to shut down, bounded by `timeout_s`; True when it took the request."""
        ...

    def ssh_command(self, machine: Machine, *, user: str, arguments: Sequence[str]) -> list[str]:
        """Return the argument list of the system's ssh that reaches this machine and checks its host key strictly."""
        ...


class Site(Protocol):
    """One host's vmm: what every operation is given first. Rooms are opened when they are first asked for."""

    @property
    def store(self) -> Store: ...
    @property
    def network(self) -> Network: ...
    @property
    def processes(self) -> Processes: ...
    @property
    def images(self) -> Images: ...
    @property
    def kernels(self) -> Kernels: ...
    @property
    def files(self) -> MachineFiles: ...
    @property
    def guest(self) -> Guest: ...
    @property
    def subnet(self) -> Subnet: ...
    @property
    def defaults(self) -> Defaults: ...

    def engine(self, name: EngineName) -> Engine: ...

    def pick_engine(self, wish: str) -> EngineName:
        """Return the engine for `auto`, `firecracker` or `qemu`; raise EngineError when it is not on this host."""
        ...

    def resolvers(self) -> Sequence[str]:
        """Return the name servers that guests are given unless told otherwise."""
        ...
