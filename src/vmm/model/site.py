"""What the operations act on: one Protocol a room, and `Site`, which holds them all. `vmm.app` fills it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from vmm.model.defaults import Defaults
from vmm.model.engine import BootPlan, EngineFeatures, EngineStatus
from vmm.model.event import Event, Happening
from vmm.model.facts import Answer, Moment
from vmm.model.image import Image, Kernel
from vmm.model.machine import (
    EngineName,
    Machine,
    MachineSpec,
    MachineState,
    ProcessIdentity,
    Stray,
    Supervision,
    UnreadableRecord,
)
from vmm.model.machine_files import MachineFiles
from vmm.model.network import Lease, PortForward, Subnet
from vmm.model.progress import Progress
from vmm.model.session import Session
from vmm.model.value import Value


class Traces(Value):
    """What stands on a host of machines: the ids with a jail and with a cgroup, the names with a socket, the taps."""

    jails: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    sockets: frozenset[str] = frozenset()
    taps: frozenset[str] = frozenset()


class Store(Protocol):
    """What vmm remembers (SQLite). Every method is one transaction; all raise StateError."""

    def machines(self, *, live: bool = False) -> Sequence[Machine | UnreadableRecord]: ...
    def any_live(self) -> bool: ...
    def machine(self, name: str) -> Machine: ...
    def add(
        self,
        spec: MachineSpec,
        *,
        subnet: Subnet,
        id: str,  # noqa: A002
        created_at: str,
        reserved: Collection[str] = (),
    ) -> Machine:
        """Record a new machine, with an address that no other has and none that is reserved."""
        ...

    def replace_spec(self, name: str, spec: MachineSpec, *, event: Happening | None = None) -> None: ...
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
    ) -> None: ...
    def admit(self, name: str, *, process: ProcessIdentity, supervision: Supervision, host_mib: int | None) -> int:
        """Record that a machine is being started, if its memory fits; return the MiB that the host lacks, else 0."""
        ...

    def remove(self, name: str, *, event: Happening | None = None) -> None: ...
    def forwards(self, name: str | None = None) -> Sequence[PortForward]: ...
    def add_forward(self, forward: PortForward) -> None: ...
    def remove_forward(self, forward: PortForward) -> None: ...
    def note_once(self, key: str) -> bool:
        """Whether this is the first time that `key` is noted on this host."""
        ...

    def happened(self, event: Happening) -> None:
        """Remember what happened to this host, and to no single machine."""
        ...

    def events(self, machine: str | None = None, *, after: int = 0, most: int = 1000) -> Sequence[Event]: ...
    def users_of(self, *, image: str | None = None, kernel: str | None = None) -> Sequence[str]: ...
    def lock(self, name: str, *, timeout_s: float = 60.0) -> AbstractContextManager[None]: ...


class Network(Protocol):
    """Bridge, taps and firewall. Idempotent; all raise NetworkError."""

    def attaching(
        self, lease: Lease, forwards: Sequence[PortForward], *, uid: int = 0, resolvers: Sequence[str] = ()
    ) -> AbstractContextManager[None]:
        """Let a machine onto the bridge, by a tap that only `uid` may open; mends bridge and firewall.

        It may ask `resolvers` for names, wherever these lie.
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

    def differences(self, attached: Sequence[tuple[Lease, Sequence[PortForward]]]) -> Sequence[str]:
        """Return what of bridge, firewall and taps is not as these machines need it, a sentence each."""
        ...

    def is_set_up(self) -> bool:
        """Whether the machines' bridge is there, whole or not."""
        ...

    def restore(self) -> None:
        """Make bridge and firewall what the machines that run now need."""
        ...

    def remove_tap(self, tap: str) -> bool:
        """Remove a tap; False when it is not there."""
        ...

    def port_is_bound(self, forward: PortForward) -> bool:
        """Whether a program of the host listens on the forward's address and port."""
        ...


class Processes(Protocol):
    """The host's processes, each known by its identity and never by its pid alone."""

    def is_alive(self, process: ProcessIdentity) -> bool: ...
    def wait_gone(self, process: ProcessIdentity, *, timeout_s: float) -> bool: ...
    def kill(self, process: ProcessIdentity) -> None: ...
    def find(self, *markers: str) -> ProcessIdentity | None:
        """Return the engine that has one of the markers in its command line; of several markers the first counts."""
        ...

    def find_all(self, markers: Collection[str]) -> Mapping[str, ProcessIdentity]:
        """Return the processes that have one of the markers in their command lines, by it: one walk over all."""
        ...

    def ran_out_of_memory(self, machine_id: str) -> bool:
        """Whether the kernel killed a process of this machine's cgroup for want of memory."""
        ...

    def remove_group(self, machine_id: str) -> None:
        """Remove the machine's cgroup; none is no error."""
        ...

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

    def is_hollow(self, process: ProcessIdentity) -> bool:
        """Whether the guest seems to be gone, though the process stays: one that does not answer either is ended."""
        ...

    def press_power_button(self, socket: Path) -> bool:
        """Ask the guest to shut down (Ctrl-Alt-Del, ACPI). True when the engine took the request."""
        ...

    def markers(self, *, machine_id: str, socket: Path) -> tuple[str, ...]:
        """Return the arguments of which this machine's engine has one in its command line, and no other process."""
        ...

    def holes(self) -> tuple[str, ...]:
        """Return what is published against the engine's program, a sentence each."""
        ...

    def adopt(self, machine_id: str, *, socket: Path, jails: Path, group: int | None) -> None:
        """Give the API of an engine that runs its place, where the command that started it did not come to that."""
        ...

    def put_back(self, machine_id: str, disk: Path, *, jails: Path) -> bool:
        """Give the root disk its name again, where that was removed and the engine has the last; whether it did."""
        ...

    def clean_up(self, machine_id: str, *, jails: Path) -> None:
        """Remove what an engine that has ended left outside of its machine's directory; none is no error."""
        ...


class Guest(Protocol):
    """The ways into a running machine."""

    def await_ssh(self, machine: Machine, *, timeout_s: float, alive: Callable[[], bool]) -> float:
        """Return the seconds until the guest's ssh server sent its banner; raise GuestError when it did not in time."""
        ...

    def has_answered(self, machine: Machine) -> bool:
        """Whether its ssh server is known to have greeted since the machine's last start."""
        ...

    def ask_shutdown(self, machine: Machine, *, reboot: bool, timeout_s: float) -> bool:
        """Ask the guest over ssh to shut down, bounded by `timeout_s`; True when it took the request."""
        ...

    def ssh_command(self, machine: Machine, session: Session) -> list[str]:
        """Return the argument list of the system's ssh that reaches this machine and checks its host key strictly."""
        ...

    def has_key(self, machine: Machine, session: Session) -> bool:
        """Whether whoever asks has a key that the machine was given, or names one."""
        ...


class Units(Protocol):
    """Machines as transient units of this host's systemd."""

    def start(self, machine: Machine, *, overcommit: bool) -> None:
        """Start the machine in a unit of its own, and return when it runs; raise what kept it from it."""
        ...

    def stop(self, machine: Machine, *, wait: bool = True) -> None:
        """End the machine's unit; none is no error. Without `wait` systemd is told and not waited for."""
        ...


class HostFacts(Protocol):
    """What guests need of this host (`vmm.model.facts`). One that cannot be looked at keeps no other from it."""

    def ask(self, moment: Moment) -> Sequence[Answer]:
        """Answer what is asked at this moment; nothing is changed."""
        ...

    def beside_start(self) -> AbstractContextManager[Callable[[], Sequence[Answer]]]:
        """Begin to ask what a start asks, beside it; give what waits for the answers, and mends what can be."""
        ...

    def mend(self, moment: Moment, *, but: Collection[str] = ()) -> Sequence[Answer]:
        """Answer what is asked at this moment, `but` these, and mend what is not ok and can be mended."""
        ...


class Site(Protocol):
    """One host's vmm: what every operation is given first. Rooms are opened when they are first asked for."""

    @property
    def store(self) -> Store: ...
    @property
    def network(self) -> Network: ...
    @property
    def facts(self) -> HostFacts: ...
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
    @property
    def units(self) -> Units | None:
        """systemd, where it looks after machines; None where it is not this host's init, or we stand in its unit."""
        ...

    @property
    def jails(self) -> Path: ...
    @property
    def socket_group(self) -> int | None:
        """The group that may use the engines' API, None for root alone."""
        ...

    def uid_of(self, machine: Machine) -> int:
        """Return the user and group id of the machine's engine, 0 without a jail; ConflictError for no place."""
        ...

    def ensure_supervisor(self) -> None:
        """Have vmm's supervisor there, which looks after the machines that run."""
        ...

    def strays(self, *, quick: bool = False) -> Sequence[Stray]:
        """Return the engines that run and are of no record; `quick`: only where a directory is of none either."""
        ...

    def traces(self) -> Traces:
        """Return what stands on this host of machines, whether they run or not."""
        ...

    def sweep(self) -> Sequence[tuple[str, str]]:
        """Remove what was left and is of no machine that is known; return (subject, what) of each."""
        ...

    def memory_mib(self) -> int:
        """Return what memory the host has for machines, in MiB."""
        ...

    def engine(self, name: EngineName) -> Engine: ...

    def pick_engine(self, wish: str) -> EngineName:
        """Return the engine for `auto`, `firecracker` or `qemu`; raise EngineError when it is not on this host."""
        ...

    def resolvers(self) -> Sequence[str]:
        """Return the name servers that guests are given unless told otherwise."""
        ...
