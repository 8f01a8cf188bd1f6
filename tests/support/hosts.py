"""A host for system tests: a network namespace and a data directory of its own, and vmm run inside them."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import own_network

from vmm.engines.firecracker import api
from vmm.host import cgroups

LIBRARY = Path(os.environ.get("VMM_TEST_LIBRARY", ""))
VMM = [str(Path(sys.executable).with_name("vmm"))]
# A machine with the tiny guest (conftest's `add_tiny`) on Firecracker.
SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")
# Set aside for documentation (RFC 5737): no host routes it.
OUTSIDE_HOST, OUTSIDE_WORLD = "192.0.2.1", "192.0.2.2"
METADATA = "169.254.169.254"


def sh(*argv: str, check: bool = True, timeout: float = 120, **kwargs) -> subprocess.CompletedProcess[str]:
    """Run a program of the host's and return what it said."""
    # A guest's bytes may come with it, as from a start in the foreground.
    kwargs.setdefault("errors", "replace")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, **kwargs)
    assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@dataclass(frozen=True)
class Host:
    namespace: str
    data_dir: Path

    @property
    def prefix(self) -> list[str]:
        # Not `ip netns exec`: that hides the cgroups behind a /sys of its own.
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("VMM_")}
        return {**kept, "VMM_DATA_DIR": str(self.data_dir)}

    def vmm(
        self, *arguments: str, check: bool = True, timeout: float = 180, stdin: str = "", extra=None, **kwargs
    ) -> subprocess.CompletedProcess[str]:
        """Run vmm in this host, with `extra` in its environment; with `check` it must end with 0."""
        argv = [*self.prefix, *VMM, *arguments]
        environment = {**self.environment, **(extra or {})}
        return sh(*argv, check=check, timeout=timeout, input=stdin, env=environment, **kwargs)

    def popen(self, *arguments: str, **kwargs) -> subprocess.Popen[str]:
        return subprocess.Popen([*self.prefix, *VMM, *arguments], env=self.environment, text=True, **kwargs)

    def run(self, *argv: str, **kwargs):
        """Run any program in this host's network."""
        return sh(*self.prefix, *argv, **kwargs)

    def json(self, *arguments: str):
        return json.loads(self.vmm(*arguments, "--output", "json").stdout)

    def machine(self, name: str) -> dict:
        return self.json("show", name)

    def start(self, name: str, *arguments: str) -> int:
        """Start a machine and return its engine's pid."""
        self.vmm("start", name, *arguments)
        return self.machine(name)["pid"]

    def events(self, name: str) -> list[tuple[str, str]]:
        """Return what happened to a machine since it was created, as (kind, detail), the oldest first."""
        found = [(event["kind"], event["detail"]) for event in self.json("events", name)]
        # An earlier one may have had its name.
        created = max((number for number, (kind, _) in enumerate(found) if kind == "created"), default=0)
        return found[created:]

    def console(self, name: str) -> str:
        path = self.data_dir / "logs" / f"{name}.console"
        return path.read_text(errors="replace") if path.exists() else ""

    def press(self, name: str) -> None:
        """Press Ctrl-Alt-Del on the keyboard of a guest that Firecracker runs: what a tiny kernel may wait for."""
        socket = self.data_dir / "sockets" / f"{name}.sock"
        api.request(socket, "PUT", "/actions", {"action_type": "SendCtrlAltDel"}, timeout_s=5)

    def sql(self, statement: str, *values) -> list[tuple]:
        """Run a statement on the database behind vmm's back."""
        with contextlib.closing(sqlite3.connect(self.data_dir / "state" / "vmm.db", timeout=10)) as connection:
            found = connection.execute(statement, values).fetchall()
            connection.commit()
            return found

    def links(self) -> str:
        return self.run("ip", "-o", "link").stdout

    def fails(self, *arguments: str, code: int = 1, **kwargs) -> str:
        """Run vmm, which must fail with `code` and an error in three parts; return what it said."""
        done = self.vmm(*arguments, check=False, **kwargs)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Error: " in done.stderr, done.stderr
        assert "To mend it: " in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr

    def guest(self, name: str, command: str, *, check: bool = True, timeout: float = 90) -> str:
        return self.vmm("exec", name, "--", "sh", "-c", command, check=check, timeout=timeout).stdout.strip()

    def supervisors(self) -> list[int]:
        return [int(line.partition(":")[0]) for line in self.processes() if line.rstrip().endswith(" supervise")]

    def processes(self) -> list[str]:
        """Return the command lines of all processes that name this data directory, or have their root in it."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if str(self.data_dir) in line or str(self.data_dir) in _root_mount(entry):
                        found.append(f"{entry.name}: {line}")
        return found


def _root_mount(process: Path) -> str:
    """Return what a process's root is mounted from, within its file system: proc_pid_mountinfo(5)."""
    lines = (line.split(" ") for line in (process / "mountinfo").read_text(errors="replace").splitlines())
    return next((fields[3] for fields in lines if fields[4] == "/"), "")


def status_of(pid: int | str) -> dict[str, str]:
    """Return /proc/PID/status, a field a key."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return status_of(pid)["State"][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], object], *, timeout: float = 30, interval: float = 0.05, what: str = "") -> object:
    """Poll every `interval` seconds until `condition` holds and return its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what or condition} did not come true within {timeout} s"
        time.sleep(interval)


def outer_state() -> dict[str, object]:
    """Return what a test must not change of the real host: its network, mounts and loop devices."""
    own = ("cgroup", "netns", "/run/netns")
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return {
        **own_network.state(),
        "mounts": "\n".join(sorted(line for line in mounts if not any(word in line for word in own))),
        "loops": sh("losetup", "-a", check=False).stdout,
    }


@contextlib.contextmanager
def a_host(name: str, directory: Path) -> Iterator[Host]:
    """Give a host, and assert that nothing of it is left behind."""
    before = outer_state()
    host = Host(namespace=name, data_dir=directory / "data")
    sh("ip", "netns", "add", name)
    try:
        sh("ip", "-n", name, "link", "set", "lo", "up")
        stock(host.data_dir)
        try:
            yield host
        finally:
            _save_words(host)
            listed = host.vmm("list", "--output", "json", check=False).stdout
            ids = {row.get("id") for row in json.loads(listed or "[]")}
            host.vmm("delete", "--all", "--force", check=False)
        host.vmm("teardown")
        # The supervisor looks twice a second whether there is anything left to supervise.
        wait_for(lambda: host.processes() == [], timeout=10, what="the end of every process")
        assert ids.isdisjoint(cgroups.names())
        assert list((host.data_dir / "jails").glob("*/*")) == []
        links = host.run("ip", "-o", "link").stdout
        assert "vmm" not in links, links
        assert "vmm" not in host.run("nft", "list", "ruleset").stdout
        assert list((host.data_dir / "vms").glob("*")) == []
        assert list((host.data_dir / "staging").glob("*")) == []
        assert list((host.data_dir / "sockets").glob("*")) == []
    finally:
        sh("ip", "netns", "del", name)
        shutil.rmtree(host.data_dir, ignore_errors=True)
    after = outer_state()
    assert after == before, {key: (value, after[key]) for key, value in before.items() if value != after[key]}


def stock(data_dir: Path) -> None:
    """Fill a data directory with the library's engine, kernel and image, by links where that works."""
    assert LIBRARY.is_dir(), "VMM_TEST_LIBRARY names no directory: run scripts/test, which builds it"
    for part in ("bin", "images"):
        shutil.copytree(LIBRARY / part, data_dir / part, copy_function=_link)
    # What a test asks of the network without a command knows the data directory by an id in it.
    (data_dir / "state").mkdir(exist_ok=True)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def _save_words(host: Host) -> None:
    """Print the end of every log: pytest shows it when the test failed."""
    for path in sorted((host.data_dir / "logs").glob("*")):
        print(f"--- {path.name}\n{path.read_bytes()[-3000:].decode(errors='replace')}")


@contextlib.contextmanager
def the_world(host: Host) -> Iterator[str]:
    """Give the name of another namespace, linked to the host by a cable: the world outside."""
    world = f"{host.namespace}-world"
    sh("ip", "netns", "add", world)
    try:
        sh("ip", "link", "add", "up0", "netns", host.namespace, "type", "veth", "peer", "name", "up1", "netns", world)
        for namespace, link, address in ((host.namespace, "up0", OUTSIDE_HOST), (world, "up1", OUTSIDE_WORLD)):
            sh("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", link)
            sh("ip", "-n", namespace, "link", "set", link, "up")
            sh("ip", "-n", namespace, "link", "set", "lo", "up")
        sh("ip", "-n", host.namespace, "route", "add", "default", "via", OUTSIDE_WORLD)
        # What a cloud answers to its machines, with secrets in it.
        sh("ip", "-n", world, "addr", "add", f"{METADATA}/32", "dev", "lo")
        yield world
    finally:
        sh("ip", "netns", "del", world)


@contextlib.contextmanager
def serving(namespace: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a python program in a namespace while the block lasts; it must print a line when it is ready."""
    argv = ["ip", "netns", "exec", namespace, sys.executable, "-u", *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()
