"""A site of plain objects around a real store: for unit tests of what operations decide, and in what order."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vmm.config import DEFAULTS, SUBNET
from vmm.errors import EngineError, NotFoundError
from vmm.model.engine import EngineFeatures
from vmm.model.image import Image, Kernel
from vmm.model.machine import EngineName, ProcessIdentity
from vmm.storage.store import SqliteStore


@dataclass
class FakeProcesses:
    log: list[str]
    alive: set[int] = field(default_factory=set)
    stray: ProcessIdentity | None = None
    immortal: bool = False

    def is_alive(self, process: ProcessIdentity) -> bool:
        return process.pid in self.alive

    def wait_gone(self, process: ProcessIdentity, *, timeout_s: float) -> bool:
        return process.pid not in self.alive

    def kill(self, process: ProcessIdentity) -> None:
        self.log.append(f"kill {process.pid}")
        if not self.immortal:
            self.alive.discard(process.pid)

    def find(self, marker: str) -> ProcessIdentity | None:
        return self.stray

    def this_process(self) -> ProcessIdentity:
        return ProcessIdentity(boot_id="boot", pid=1, start_ticks=1, marker="")


@dataclass
class FakeNetwork:
    log: list[str]
    bound: bool = False
    fails: Exception | None = None

    @contextlib.contextmanager
    def attaching(self, lease, forwards) -> Iterator[None]:
        self.log.append(f"attach {lease.tap}")
        if self.fails:
            raise self.fails
        yield
        self.log.append(f"tap {lease.tap}")

    def detach(self, lease, forwards) -> None:
        self.log.append(f"detach {lease.tap}")

    def open_forward(self, lease, forward) -> None:
        self.log.append(f"open {forward.host_port}")
        if self.fails:
            raise self.fails

    def close_forward(self, lease, forward) -> None:
        self.log.append(f"close {forward.host_port}")

    def port_is_bound(self, forward) -> bool:
        return self.bound


@dataclass
class FakeEngine:
    log: list[str]
    processes: FakeProcesses
    fails: BaseException | None = None
    honours_button: bool = False
    power_off_ends: bool = True
    name: EngineName = EngineName.QEMU

    @property
    def features(self) -> EngineFeatures:
        return EngineFeatures(snapshot=False, pause=False, jailer=False, power_off_ends=self.power_off_ends)

    def spawn(self, plan) -> ProcessIdentity:
        self.log.append("spawn")
        self.processes.alive.add(42)
        return ProcessIdentity(boot_id="boot", pid=42, start_ticks=7, marker=str(plan.socket))

    def await_running(self, plan, process, *, timeout_s: float) -> None:
        self.log.append("await")
        if self.fails:
            raise self.fails

    def press_power_button(self, socket) -> bool:
        self.log.append("button")
        if self.honours_button:
            self.processes.alive.discard(42)
        return True


@dataclass
class FakeFiles:
    said: list[str]
    root: Path
    made: set[str] = field(default_factory=set)
    words: str = ""
    fails: BaseException | None = None

    def make(self, machine, image) -> None:
        self.said.append(f"make {machine.name}")
        if self.fails:
            raise self.fails
        self.made.add(machine.name)

    def is_made(self, name: str) -> bool:
        return name in self.made

    def remove(self, name: str) -> None:
        self.said.append(f"remove {name}")
        self.made.discard(name)

    def grow(self, name: str, disk_mib: int) -> None:
        self.said.append(f"grow {name} {disk_mib}")

    def grown(self, name: str) -> None:
        self.said.append(f"grown {name}")

    def last_words(self, name: str) -> str:
        return self.words

    def engine_words(self, name: str) -> str:
        return "first\nlast of the engine"

    def prepare_boot(self, machine, kernel, resolvers) -> Path | None:
        self.said.append(f"prepare {machine.name} {','.join(resolvers)}")
        return None

    def mark_boot(self, name: str, *, at: str) -> None:
        self.said.append("mark")

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

    def config(self, name: str) -> Path:
        return self.root / name / "config"


@dataclass
class FakeGuest:
    log: list[str]
    processes: FakeProcesses
    obeys: bool = False
    deaf: int = 0  # how many times it does not hear
    fails: Exception | None = None

    def await_ssh(self, machine, *, timeout_s, alive) -> float:
        self.log.append("await ssh")
        if self.fails:
            raise self.fails
        return 0.1

    def ask_shutdown(self, machine, *, reboot: bool, timeout_s: float) -> bool:
        self.log.append("ask reboot" if reboot else "ask poweroff")
        if self.deaf:
            self.deaf -= 1
            return False
        if self.obeys:
            self.processes.alive.discard(42)
        return self.obeys

    def ssh_command(self, machine, *, user, arguments) -> list[str]:
        return ["ssh", "-l", user, machine.id, *arguments]


class FakeLibrary:
    def __init__(self, **items: object) -> None:
        self.items = items

    def get(self, name: str):
        if name not in self.items:
            raise NotFoundError(f"There is no {name!r}.", details="-", resolution="-")
        return self.items[name]

    def delete(self, name: str) -> None:
        del self.items[name]


class FakeSite:
    """Everything that happens is in `log`, in order."""

    def __init__(self, root: Path) -> None:
        self.log: list[str] = []
        self.store = SqliteStore(path=root / "state" / "vmm.db", locks=root / "state" / "locks")
        self.processes = FakeProcesses(self.log)
        self.network = FakeNetwork(self.log)
        self.the_engine = FakeEngine(self.log, self.processes)
        self.files = FakeFiles(self.log, root)
        self.guest = FakeGuest(self.log, self.processes)
        times = {"created_at": "2026-01-01T00:00:00Z", "sha256": "0", "source": "test"}
        image = Image(name="default", path=root / "image", size_mib=512, **times)
        kernel = Kernel(name="default", path=root / "vmlinux", stage1=root / "stage1", version="6", **times)
        self.images, self.kernels = FakeLibrary(default=image), FakeLibrary(default=kernel)
        self.subnet, self.defaults = SUBNET, DEFAULTS

    def engine(self, name: EngineName) -> FakeEngine:
        return self.the_engine

    def pick_engine(self, wish: str) -> EngineName:
        if wish == "nosuch":
            raise EngineError("There is no engine.", details="-", resolution="-")
        return EngineName.QEMU

    def resolvers(self) -> tuple[str, ...]:
        return ("9.9.9.9",)
