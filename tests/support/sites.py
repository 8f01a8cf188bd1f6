"""A site of plain objects around a real store: for unit tests of what operations decide, and in what order.

Nothing here decides anything. An engine is an entry in a table of processes, a tap a name in a set; so that a test can
look at the host as it would be, and end the command at any step on the way there.
"""

import contextlib
import functools
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vmm.app import HostSite
from vmm.config import DEFAULTS, SUBNET
from vmm.errors import EngineError, NotFoundError, StateError
from vmm.model.engine import BootPlan, EngineFeatures
from vmm.model.facts import Answer, Moment
from vmm.model.image import Image, Kernel
from vmm.model.machine import EngineName, Machine, MachineState, Owner, ProcessIdentity, Stray
from vmm.model.network import Lease, PortForward, place_in
from vmm.model.site import Traces
from vmm.operations.create import CreateRequest, create
from vmm.operations.observe import view
from vmm.operations.start import Mode, start
from vmm.storage.store import SqliteStore


class Killed(BaseException):
    """kill -9: nothing of the command runs after it, no clean-up either."""


class Journal(list[str]):
    """What was done to the host, in order; every step of it is one at which a test can have the command end."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0  # of the store
        self._left: int | None = None
        self._death: BaseException = Killed()
        self._gone = False

    def end_at(self, step: int, death: BaseException) -> None:
        """Have the command end before its step number `step`; a `Killed` one does nothing from there on."""
        self._left, self._death = step, death

    def go_on(self) -> bool:
        """Let the next command live; return whether the last one was ended."""
        ended = self._left is not None and self._left < 0
        self._left, self._gone = None, False
        return ended

    def step(self) -> None:
        if self._gone:
            raise Killed
        if self._left is None or self._left < 0:
            return
        self._left -= 1
        if self._left < 0:
            self._gone = isinstance(self._death, Killed)
            raise self._death

    def do(self, what: str) -> None:
        self.step()
        self.append(what)


class Clock:
    """Stands in for the module `time`: it passes by waiting only, and can be set."""

    strptime = staticmethod(time.strptime)
    strftime = staticmethod(time.strftime)

    def __init__(self) -> None:
        self.wall = 1_767_225_600.0  # 2026-01-01T00:00:00Z
        self._up = 0.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self._up

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self._up += seconds

    def gmtime(self):
        return time.gmtime(self.wall)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for module in ("operations.start", "operations.stop", "operations.settle", "model.clock"):
            patch.setattr(f"vmm.{module}.time", self)


class WatchedStore(SqliteStore):
    """The real store; each of its writes is a step, and fails while the disk is `full`.

    Nobody pulls the plug of a unit test: what is written need not reach the disk, which would take most of its time.
    """

    journal: Journal
    full: set[str]

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(_empty_database())
        connection = super()._open()
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self.journal.step()
        if self.full:
            raise StateError("The database cannot be written: the disk is full.", details="-", resolution="-")
        with super()._writing() as connection:
            yield connection
        self.journal.writes += 1


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        store = SqliteStore(path=Path(directory) / "vmm.db", locks=Path(directory))
        store.remove("nobody")
        return store.path.read_bytes()


@dataclass
class FakeProcesses:
    log: Journal
    clock: Clock
    running: dict[int, ProcessIdentity] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)  # ids of machines with a cgroup
    out_of_memory: set[str] = field(default_factory=set)
    boot_id: str = "boot-1"
    command: int = 1
    next_pid: int = 42
    begun: int = 0
    forking: threading.Lock = field(default_factory=threading.Lock)
    immortal: bool = False

    def exec(self, marker: str) -> ProcessIdentity:
        """Have a process with this marker in its command line, on the next pid that is free."""
        with self.forking:
            while self.next_pid in self.running:
                self.next_pid += 1
            self.begun += 1
            process = ProcessIdentity(boot_id=self.boot_id, pid=self.next_pid, start_ticks=self.begun, marker=marker)
            self.running[process.pid] = process
            return process

    def end(self, process: ProcessIdentity | None) -> None:
        if process is not None and self.running.get(process.pid) == process:
            del self.running[process.pid]

    def reboot(self) -> None:
        """Reboot the host: no process is left, and pids are given out anew."""
        self.running.clear()
        self.groups.clear()
        self.boot_id = f"boot-{int(self.boot_id[5:]) + 1}"
        self.next_pid = 42

    def is_alive(self, process: ProcessIdentity) -> bool:
        return process in (self.running.get(process.pid), self.this_process())

    def wait_gone(self, process: ProcessIdentity, *, timeout_s: float) -> bool:
        if self.is_alive(process):
            self.clock.sleep(timeout_s)
        return not self.is_alive(process)

    def kill(self, process: ProcessIdentity) -> None:
        self.log.do(f"kill {process.pid}")
        if not self.immortal:
            self.end(process)

    def find(self, *markers: str) -> ProcessIdentity | None:
        found = self.find_all(markers)
        return next((found[marker] for marker in markers if marker in found), None)

    def find_all(self, markers: Collection[str]) -> dict[str, ProcessIdentity]:
        return {process.marker: process for process in self.running.values() if process.marker in markers}

    def ran_out_of_memory(self, machine_id: str) -> bool:
        return machine_id in self.out_of_memory

    def remove_group(self, machine_id: str) -> None:
        self.log.do("remove group")
        self.groups.discard(machine_id)
        self.out_of_memory.discard(machine_id)

    def this_process(self) -> ProcessIdentity:
        return ProcessIdentity(boot_id=self.boot_id, pid=self.command, start_ticks=self.command, marker="")


@dataclass
class FakeNetwork:
    log: Journal
    running: Callable[[], Sequence[tuple[Lease, Sequence[PortForward]]]]
    taps: dict[str, int] = field(default_factory=dict)  # tap -> the user id that may open it
    # What the firewall holds: addresses of machines, and forwards each with the address that it leads to.
    admitted: set[str] = field(default_factory=set)
    ports: set[tuple[str, PortForward]] = field(default_factory=set)
    bound: bool = False
    fails: Exception | None = None

    @property
    def rules(self) -> dict[str, frozenset[PortForward]]:
        """What is in force, by address."""
        addresses = self.admitted | {address for address, _ in self.ports}
        return {address: frozenset(f for where, f in self.ports if where == address) for address in addresses}

    def flush(self) -> None:
        """Do what another tool does to the tables."""
        self.admitted.clear()
        self.ports.clear()

    @contextlib.contextmanager
    def attaching(self, lease, forwards, *, uid: int = 0, resolvers=()) -> Iterator[None]:
        self.log.do(f"attach {lease.tap}")
        if self.fails:
            raise self.fails
        self.admitted.add(lease.address)
        self.ports |= {(lease.address, forward) for forward in forwards}
        yield
        self.log.do(f"tap {lease.tap}")
        self.taps[lease.tap] = uid

    def detach(self, lease, forwards) -> None:
        self.log.do(f"detach {lease.tap}")
        self.taps.pop(lease.tap, None)
        self.log.step()
        self.admitted.discard(lease.address)
        # Those that it is told of: a firewall does not know whose the others are.
        self.ports -= {(lease.address, forward) for forward in forwards}

    def open_forward(self, lease, forward) -> None:
        self.log.do(f"open {forward.host_port}")
        if self.fails:
            raise self.fails
        self.ports.add((lease.address, forward))

    def close_forward(self, lease, forward) -> None:
        self.log.do(f"close {forward.host_port}")
        self.ports.discard((lease.address, forward))

    def is_set_up(self) -> bool:
        return bool(self.taps or self.admitted)

    def restore(self) -> None:
        self.log.do("restore network")
        self.admitted = {lease.address for lease, _ in self.running()}
        self.ports = {(lease.address, forward) for lease, forwards in self.running() for forward in forwards}

    def differences(self, attached) -> list[str]:
        admitted = {lease.address for lease, _ in attached}
        ports = {(lease.address, forward) for lease, forwards in attached for forward in forwards}
        found = [f"{address} was not in machines" for address in sorted(admitted - self.admitted)]
        found += [f"{address} was left in machines" for address in sorted(self.admitted - admitted)]
        found += [f"{forward.host_port} of {address} was not in ports" for address, forward in ports - self.ports]
        return found + [
            f"{forward.host_port} of {address} was left in ports" for address, forward in self.ports - ports
        ]

    def remove_tap(self, tap: str) -> bool:
        if tap not in self.taps:
            return False
        self.log.do(f"remove {tap}")
        del self.taps[tap]
        return True

    def port_is_bound(self, forward) -> bool:
        return self.bound


@dataclass
class FakeEngine:
    log: Journal
    processes: FakeProcesses
    consoles: dict[str, str]
    plans: list[BootPlan] = field(default_factory=list)
    jails: set[str] = field(default_factory=set)
    sockets: set[Path] = field(default_factory=set)
    fails: BaseException | None = None
    fails_to_spawn: BaseException | None = None
    known_holes: tuple[str, ...] = ()
    honours_button: bool = False
    power_off_ends: bool = True
    name: EngineName = EngineName.QEMU

    @property
    def features(self) -> EngineFeatures:
        return EngineFeatures(snapshot=False, pause=False, jailer=True, power_off_ends=self.power_off_ends)

    def spawn(self, plan) -> ProcessIdentity:
        self.log.do("spawn")
        if self.fails_to_spawn:
            raise self.fails_to_spawn
        self.plans.append(plan)
        if plan.cgroup:
            self.processes.groups.add(plan.id)
        if plan.jails is not None:
            self.jails.add(plan.id)
        self.sockets.add(plan.socket)
        process = self.processes.exec(str(plan.socket) if plan.jails is None else f"/{plan.id}.sock")
        # From here on there is an engine of which nobody has heard.
        self.log.step()
        return process

    def await_running(self, plan, process, *, timeout_s: float) -> None:
        self.log.do("await")
        if self.fails:
            raise self.fails

    def is_hollow(self, process) -> bool:
        return False

    def press_power_button(self, socket) -> bool:
        self.log.do("button")
        if self.honours_button:
            self.consoles[self.plans[-1].name] = "reboot: Restarting system"
            self.processes.end(self.processes.running[max(self.processes.running)])
        return True

    def markers(self, *, machine_id: str, socket: Path) -> tuple[str, ...]:
        return (f"/{machine_id}.sock", str(socket))

    def holes(self) -> tuple[str, ...]:
        return self.known_holes

    def adopt(self, machine_id: str, *, socket: Path, jails: Path, group: int | None) -> None:
        self.log.do("adopt")

    def put_back(self, machine_id: str, disk: Path, *, jails: Path) -> bool:
        return False

    def clean_up(self, machine_id: str, *, jails: Path) -> None:
        self.log.do("clean up")
        self.jails.discard(machine_id)


@dataclass
class FakeFiles:
    said: Journal
    root: Path
    sockets: set[Path]
    consoles: dict[str, str]
    made: set[str] = field(default_factory=set)
    described: dict[str, list[PortForward]] = field(default_factory=dict)
    left_mounted: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)  # names whose directory is another machine's
    fails: BaseException | None = None
    stuck: BaseException | None = None

    def make(self, machine, image) -> None:
        self.said.do(f"make {machine.name}")
        if self.fails:
            raise self.fails
        self.made.add(machine.name)

    def strangers(self, name: str) -> list[str]:
        return []

    def is_made(self, name: str) -> bool:
        return name in self.made

    def is_its_own(self, machine) -> bool:
        return machine.name not in self.others

    def is_described(self, name: str) -> bool:
        return name in self.described

    def check_removable(self, name: str) -> None:
        if self.stuck:
            raise self.stuck

    def remove(self, name: str) -> None:
        self.said.do(f"remove {name}")
        self.made.discard(name)

    def describe(self, machine, forwards) -> None:
        self.said.step()
        self.described[machine.name] = list(forwards)

    def grow(self, name: str, disk_mib: int) -> None:
        self.said.do(f"grow {name} {disk_mib}")

    def grown(self, name: str) -> None:
        self.said.do(f"grown {name}")

    def last_words(self, name: str) -> str:
        return self.consoles.get(name, "")

    def first_words(self, name: str) -> str:
        return self.consoles.get(name, "")

    def is_unmounted(self, name: str) -> bool:
        return name not in self.left_mounted

    def engine_words(self, name: str) -> str:
        return "first\nlast of the engine"

    def prepare_boot(self, machine, kernel, resolvers) -> Path | None:
        self.said.do(f"prepare {machine.name} {','.join(resolvers)}")
        return None

    def mark_boot(self, name: str, *, at: str) -> None:
        self.said.do("mark")
        self.consoles[name] = ""

    def seed_disk(self, machine) -> Path | None:
        return None

    def disk(self, name: str) -> Path:
        return self.root / name / "disk"

    def console(self, name: str) -> Path:
        return self.root / name / "console"

    def log(self, name: str) -> Path:
        return self.root / name / "log"

    def socket(self, name: str) -> Path:
        return self.root / f"{name}.sock"

    def unlink_socket(self, name: str) -> None:
        self.said.do("unlink socket")
        self.sockets.discard(self.socket(name))

    def config(self, name: str) -> Path:
        return self.root / name / "config"


@dataclass
class FakeGuest:
    log: Journal
    processes: FakeProcesses
    consoles: dict[str, str]
    obeys: bool = False
    ends_meanwhile: bool = False  # someone else ends its engine while it is asked
    deaf: int = 0  # how many times it does not hear
    fails: Exception | None = None

    def await_ssh(self, machine, *, timeout_s, alive) -> float:
        self.log.do("await ssh")
        if self.fails:
            raise self.fails
        assert alive()
        return 0.1

    def has_answered(self, machine) -> bool:
        return self.fails is None

    def ask_shutdown(self, machine, *, reboot: bool, timeout_s: float) -> bool:
        self.log.do("ask reboot" if reboot else "ask poweroff")
        if self.deaf:
            self.deaf -= 1
            return False
        if self.obeys:
            self.consoles[machine.name] = "reboot: Restarting system" if reboot else "reboot: Power down"
        if self.obeys or self.ends_meanwhile:
            self.processes.end(machine.process)
        return self.obeys

    def ssh_command(self, machine, session) -> list[str]:
        return ["ssh", "-l", session.user, machine.id, *session.words]


class FakeLibrary:
    def __init__(self, **items: object) -> None:
        self.items = items

    def get(self, name: str):
        if name not in self.items:
            raise NotFoundError(f"There is no {name!r}.", details="-", resolution="-")
        return self.items[name]

    def delete(self, name: str) -> None:
        del self.items[name]


@dataclass
class FakeUnits:
    """systemd: a unit that is asked for does inside what `vmm start --owner unit` does."""

    log: Journal
    inside: Callable[[Machine, bool], object]
    fails: Exception | None = None

    def start(self, machine: Machine, *, overcommit: bool) -> None:
        self.log.do(f"unit start {machine.name}")
        if self.fails:
            raise self.fails
        self.inside(machine, overcommit)

    def stop(self, machine: Machine, *, wait: bool = True) -> None:
        self.log.do(f"unit stop {machine.name}" + ("" if wait else " without waiting"))
        if self.fails:
            raise self.fails


@dataclass
class FakeFacts:
    log: Journal
    answers: list[Answer] = field(default_factory=list)

    def ask(self, moment: Moment) -> list[Answer]:
        return self.answers

    @contextlib.contextmanager
    def beside_start(self) -> Iterator[Callable[[], list[Answer]]]:
        yield lambda: self.answers

    def mend(self, moment: Moment, *, but: Collection[str] = ()) -> list[Answer]:
        self.log.step()
        return self.answers


class FakeSite:
    """Everything that happens is in `log`, in order."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.log = Journal()
        self.clock = clock
        self.disk_is_full: set[str] = set()
        state = root / "state"
        self.store = WatchedStore(
            path=state / "vmm.db", locks=state / "locks", journal=self.log, full=self.disk_is_full
        )
        self.processes = FakeProcesses(self.log, clock)
        # What a firewall that must be rendered is rendered from is decided where everything is wired.
        self.network = FakeNetwork(self.log, lambda: HostSite.running_leases(self))  # type: ignore[arg-type]
        self.facts = FakeFacts(self.log)
        consoles: dict[str, str] = {}
        self.the_engine = FakeEngine(self.log, self.processes, consoles)
        self.files = FakeFiles(self.log, root, self.the_engine.sockets, consoles)
        self.guest = FakeGuest(self.log, self.processes, consoles)
        times = {"created_at": "2026-01-01T00:00:00Z", "sha256": "0", "source": "test"}
        image = Image(name="default", path=root / "image", size_mib=512, **times)
        kernel = Kernel(name="default", path=root / "vmlinux", stage1=root / "stage1", version="6", **times)
        self.images, self.kernels = FakeLibrary(default=image), FakeLibrary(default=kernel)
        self.subnet, self.defaults = SUBNET, DEFAULTS
        self.units: FakeUnits | None = None
        self.jails = root / "jails"
        self.socket_group: int | None = None
        self.memory = 64 * 1024
        self.unknown: list[Stray] = []
        self.left: list[tuple[str, str]] = []  # what is there to be swept

    def with_units(self) -> FakeUnits:
        """Have systemd look after machines."""

        def inside(machine: Machine, overcommit: bool) -> None:
            start(self, machine.name, Mode(owner=Owner.UNIT, overcommit=overcommit))

        self.units = FakeUnits(self.log, inside)
        return self.units

    def engine(self, name: EngineName) -> FakeEngine:
        return self.the_engine

    def pick_engine(self, wish: str) -> EngineName:
        if wish == "nosuch":
            raise EngineError("There is no engine.", details="-", resolution="-")
        return EngineName.QEMU

    def resolvers(self) -> tuple[str, ...]:
        return ("9.9.9.9",)

    def uid_of(self, machine: Machine) -> int:
        return 100_000 + place_in(self.subnet, machine.lease.address) if machine.spec.jail else 0

    def ensure_supervisor(self) -> None:
        self.log.do("supervisor")

    def strays(self, *, quick: bool = False) -> list[Stray]:
        return list(self.unknown)

    def traces(self) -> Traces:
        return Traces(
            jails=frozenset(self.the_engine.jails),
            groups=frozenset(self.processes.groups),
            sockets=frozenset(path.name.removesuffix(".sock") for path in self.the_engine.sockets),
            taps=frozenset(self.network.taps),
        )

    def sweep(self) -> list[tuple[str, str]]:
        self.log.do("sweep")
        found, self.left = self.left, []
        return found

    def memory_mib(self) -> int:
        return self.memory


def made(site: FakeSite, name: str = "m", **changes: object) -> Machine:
    return create(site, CreateRequest(name=name, **changes))  # type: ignore[arg-type]


def running(site: FakeSite, name: str = "m", **changes: object) -> Machine:
    """Have a machine that runs, and a journal without what led there."""
    made(site, name, **changes)
    machine = start(site, name).machine
    site.log.clear()
    return machine


def state(site: FakeSite, name: str = "m") -> MachineState:
    return view(site, name).machine.state


def end_engine(site: FakeSite, name: str = "m", *, console: str = "") -> None:
    """End a machine's engine from outside, with these as the last words on the console."""
    site.files.consoles[name] = console
    site.processes.end(site.store.machine(name).process)


def kinds(site: FakeSite, name: str = "m") -> list[str]:
    """Return what kinds of events are remembered of a machine, the oldest first."""
    return [event.kind.value for event in site.store.events(name)]
