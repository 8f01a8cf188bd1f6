"""What a host may lack, and what its clock and its umask may be: a command works or says what is missing, and hides what
is secret; many machines cost a listing no more than their rows."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hosts import VMM, Host, sh, wait_for

from conftest import add_tiny
from vmm.config import SUBNET
from vmm.host import identity
from vmm.model.machine import EngineName, MachineSpec, ProcessIdentity
from vmm.storage import readable
from vmm.storage.store import SqliteStore

pytestmark = pytest.mark.system

SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

# Many machines

# Runs its arguments to their end, and says how much memory the program had at most. A child of the test's own process
# would be measured with all that the test had in memory when it was forked.
MEASURE = """
import os, sys
if not (child := os.fork()):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def many(data_dir: Path, count: int, engine: ProcessIdentity) -> None:
    """Record `count` machines as `create` does, half of them as running with this process as their engine."""
    store = SqliteStore(path=data_dir / "state" / "vmm.db", locks=data_dir / "state" / "locks")
    values = {"cpus": 1, "memory_mib": 512, "disk_mib": 1024, "image": "default", "kernel": "default"}
    first = MachineSpec(name="m00000", engine=EngineName.FIRECRACKER, labels={"project": "many"}, **values)
    store.add(first, subnet=SUBNET, id="0" * 32, created_at="2026-01-01T00:00:00Z")
    connection = sqlite3.connect(store.path)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(machines)")]
    copied = ", ".join(column for column in columns if column not in ("name", "id", "address", "mac", "tap"))
    with connection:
        connection.executemany(
            f"INSERT INTO machines (name, id, address, mac, tap, {copied})"
            f" SELECT ?, ?, address + ?, ?, ?, {copied} FROM machines WHERE name = 'm00000'",
            [(f"m{n:05}", f"{n:032x}", n, f"mac{n}", f"tap{n}") for n in range(1, count)],
        )
        connection.execute(
            "UPDATE machines SET state = 'running', boot_id = ?, pid = ?, start_ticks = ?, marker = ? WHERE address % 2",
            (engine.boot_id, engine.pid, engine.start_ticks, engine.marker),
        )
    connection.isolation_level = None
    # Other users see what vmm wrote last. Not by a command of root's: it would find machines that run, and start a
    # supervisor for them.
    readable.renew(connection, store.path)
    connection.close()


@pytest.fixture(scope="module")
def crowds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Path]]:
    """Data directories with so many machines, which any user may list: one who could start or mend nothing."""
    top = tmp_path_factory.mktemp("many")
    for path in (top, *top.parents[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "/an/engine.sock"]) as process:
        engine = identity.of(process.pid, marker="/an/engine.sock")
        made = {count: top / str(count) for count in (10, 1000, 10000)}
        for count, data_dir in made.items():
            many(data_dir, count, engine)
        yield made
        process.kill()


@pytest.mark.fault(36)
@pytest.mark.parametrize("count", [1000, 10000])
def test_a_listing_of_many_machines_execs_and_asks_no_more_than_one_of_few(crowds: dict[int, Path], count: int) -> None:
    calls = {}
    for number in (10, count):
        argv = [*NOBODY, *VMM, "--data-dir", str(crowds[number]), "list", "--output", "json"]
        watched = "trace=execve,socket,connect,clone,?fork,?vfork,clone3"
        traced = sh("strace", "-f", "--seccomp-bpf", "-qq", "-e", watched, *argv)
        states = [row["state"] for row in json.loads(traced.stdout)]
        assert (states.count("created"), states.count("running")) == (number // 2, number // 2)
        calls[number] = [line.partition("(")[0] for line in traced.stderr.splitlines() if "(" in line]
    assert calls[count] == calls[10]
    # setpriv's and vmm's own, and no one else's.
    assert calls[count].count("execve") == 2, calls[count]


@pytest.mark.fault(36)
@pytest.mark.parametrize("count", [1000, 10000])
@pytest.mark.parametrize("output", ["table", "json", "name"])
def test_a_listing_of_many_machines_takes_little_memory(crowds: dict[int, Path], count: int, output: str) -> None:
    vmm = [*VMM, "--data-dir", str(crowds[count]), "list", "--output", output]
    code, kib = map(
        int, sh(sys.executable, "-c", MEASURE, str(shutil.which("setpriv")), *NOBODY[1:], *vmm).stdout.split()
    )
    assert code == 0
    assert kib < 100 * 1024


# Limits, and system calls that fail


def engines_of(host: Host, machine_id: str) -> list[int]:
    """Return the pids of the processes that carry a machine's id, in its jail or out of it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if machine_id.encode() in arguments and b"--config-file" in arguments:
                found.append(int(entry.name))
    return found


def tells(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command did what it was to do; one that did not must have said why in three parts."""
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode == 0:
        return True
    assert done.returncode == 1, done
    assert "Error: " in done.stderr, done.stderr
    assert "To mend it: " in done.stderr, done.stderr
    return False


def try_verbs(host: Host, under: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, bool]:
    """Give every verb of a machine's life `under` a fault, then, where it failed, without it: it must work by then."""
    verbs = {
        "create": ["create", "m", *SMALL],
        "start": ["start", "m"],
        "list": ["list", "--output", "json"],
        "stop": ["stop", "m", "--force"],
        "delete": ["delete", "m"],
    }
    worked = {}
    for verb, arguments in verbs.items():
        worked[verb] = tells(under(*arguments))
        assert_true(host, verb, worked=worked[verb])
        if not worked[verb]:
            host.vmm(*arguments)
            assert_true(host, verb, worked=True)
        if verb == "create":
            machine_id = host.machine("m")["id"]
    assert_nothing_left(host, machine_id)
    return worked


def assert_nothing_left(host: Host, machine_id: str) -> None:
    assert engines_of(host, machine_id) == []
    assert "vmm-ac" not in host.run("ip", "-o", "link").stdout
    assert "172.16.0.2" not in host.run("nft", "list", "ruleset").stdout
    for pattern in ("vms/*", "sockets/*", "staging/*", f"jails/*/{machine_id}", "logs/m.*"):
        assert list(host.data_dir.glob(pattern)) == []
    assert list(Path("/sys/fs/cgroup").glob(f"**/{machine_id}")) == []


def assert_true(host: Host, verb: str, *, worked: bool) -> None:
    """Assert that what is listed is so, and that a verb that did not work has left no engine behind."""
    machines = host.json("list")
    if verb == "delete" and worked:
        assert machines == []
        return
    if not machines:
        assert verb == "create"
        assert not worked
        return
    (machine,) = machines
    running = bool(engines_of(host, machine["id"]))
    assert running == (machine["state"] in ("running", "stopping")), machine
    match verb:
        case "create":
            assert machine["state"] == "created"
        case "start" if not worked:
            assert machine["state"] in ("failed", "stopped", "created")
        case "start" | "list":
            assert running
        case "stop" if worked:
            assert machine["state"] in ("stopped", "failed")


@pytest.fixture(scope="module")
def stock(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    add_tiny(shared_host, tmp_path_factory.mktemp("tiny"))
    return shared_host


@pytest.fixture
def stocked(stock: Host) -> Iterator[Host]:
    """The module's host, with the tiny guest and without a machine."""
    yield stock
    stock.vmm("delete", "--all", "--force", check=False)


@pytest.mark.fault(30)
@pytest.mark.parametrize("files", [16, 24, 32, 64])
def test_few_open_files(stocked: Host, files: int) -> None:
    worked = try_verbs(stocked, limited(stocked, f"--nofile={files}:{files}"))
    assert worked["list"]
    assert worked["start"] or files < 64


@pytest.mark.fault(30)
@pytest.mark.parametrize("mib", [24, 32, 96])
def test_little_memory(stocked: Host, mib: int) -> None:
    limit = f"--as={mib << 20}"
    if sh("prlimit", limit, sys.executable, "-c", "import click, sqlite3", check=False).returncode != 0:
        pytest.skip("the interpreter itself needs more")
    # A guest of 128 MiB never fits.
    assert not try_verbs(stocked, limited(stocked, limit))["start"]


@pytest.mark.fault(30)
@pytest.mark.parametrize("size", [0, 100_000])
def test_small_files(stocked: Host, size: int) -> None:
    worked = try_verbs(stocked, limited(stocked, f"--fsize={size}"))
    assert worked["list"]
    assert not worked["create"]  # a disk of 256 MiB never fits


def limited(host: Host, limit: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda *arguments: host.run("prlimit", limit, *VMM, *arguments, check=False, env=host.environment)


# System calls, the error that each gives, and the verbs that fail by it at least.
CALLS = [
    ("?mkdir,mkdirat", "EPERM", {"create", "start"}),
    ("?rename,?renameat,renameat2", "EIO", {"create"}),
    ("ftruncate", "EIO", {"create"}),
    ("?fork,?vfork,clone,clone3", "ENOMEM", {"start"}),
    ("ioctl", "EPERM", {"start"}),
    ("socket", "EMFILE", {"start"}),
    ("sendto,sendmsg", "ENOMEM", {"start"}),
    ("flock", "EIO", {"create", "start", "stop", "delete"}),
    ("fsync,fdatasync", "EIO", {"create", "start"}),
    ("pwrite64", "EIO", {"create", "start"}),
    ("?unlink,unlinkat", "EIO", {"create", "start"}),
    ("?chown,fchown,?lchown,fchownat", "EPERM", set[str]()),
    ("pidfd_open", "EMFILE", {"stop"}),
    ("pidfd_send_signal", "EPERM", {"stop"}),
]


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    ("calls", "error", "failing"), CALLS, ids=lambda value: str(value) if isinstance(value, str) else ""
)
def test_system_calls_that_fail(stocked: Host, tmp_path: Path, calls: str, error: str, failing: set[str]) -> None:
    trace = tmp_path / "trace"
    # Python itself asks a descriptor for its kind by ioctl: only the calls on vmm's own device are to fail.
    only = ["-P", "/dev/net/tun"] if calls == "ioctl" else []
    injected = 0

    def under(*arguments: str) -> subprocess.CompletedProcess[str]:
        nonlocal injected
        # Without -f: what fails is vmm's, not its children's, and strace does not wait for what outlives vmm.
        strace = [
            "strace",
            "-qq",
            "-o",
            str(trace),
            *only,
            "-e",
            f"trace={calls}",
            "-e",
            f"inject={calls}:error={error}",
        ]
        done = stocked.run(*strace, *VMM, *arguments, check=False, env=stocked.environment)
        injected += trace.read_text().count("(INJECTED)")
        return done

    worked = try_verbs(stocked, under)
    assert injected > 0
    assert failing <= {verb for verb, did in worked.items() if not did}


# The clock

# Runs vmm with a wall clock that is off by as many seconds as CLOCK says: by each of several in turn, at every look at
# it. The monotonic clock goes on, as it does when an administrator, NTP or a resumed laptop sets the other one.
WRONG_CLOCK = """
import itertools, os, sys, time
offsets = itertools.cycle([int(text) for text in os.environ.pop("CLOCK").split(",")])
now, local, universal = time.time, time.localtime, time.gmtime
time.time = lambda: now() + next(offsets)
time.time_ns = lambda: int(time.time() * 10**9)
time.localtime = lambda seconds=None: local(time.time() if seconds is None else seconds)
time.gmtime = lambda seconds=None: universal(time.time() if seconds is None else seconds)
sys.argv = ["vmm", *sys.argv[1:]]
from vmm.__main__ import main
sys.exit(main())
"""
YEAR_S = 31556952


def at_clock(host: Host, clock: str, *arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
    environment = {**host.environment, "CLOCK": clock}
    return host.run(sys.executable, "-c", WRONG_CLOCK, *arguments, env=environment, **kwargs)


@pytest.mark.fault(32)
def test_a_wrong_clock_is_recorded_as_it_was_and_disturbs_nothing(tiny: Host) -> None:
    # After 2038, where 32 bits end; before vmm was written; in the year in which a clock without a battery begins.
    later, before, begin = str(20 * YEAR_S), str(-15 * YEAR_S), str(-int(time.time()))
    at_clock(tiny, later, "create", "m", *SMALL)
    at_clock(tiny, before, "start", "m")
    at_clock(tiny, begin, "create", "n", *SMALL)
    for clock in ("0", later, before, begin):
        listed = json.loads(at_clock(tiny, clock, "list", "--output", "json").stdout)
        assert [(row["name"], row["state"]) for row in listed] == [("m", "running"), ("n", "created")]
        created, started = (datetime.fromisoformat(str(listed[0][key])) for key in ("created_at", "started_at"))
        assert created.year > 2038
        assert started.year < 2020
        assert created.tzinfo == started.tzinfo == UTC
        assert datetime.fromisoformat(listed[1]["created_at"]).year == 1970
        assert "running" in at_clock(tiny, clock, "list").stdout
        assert "running" in at_clock(tiny, clock, "show", "m").stdout
    for clock, verb in ((begin, "stop"), (later, "start"), (before, "restart"), (begin, "delete")):
        at_clock(tiny, clock, verb, "m", *([] if verb == "start" else ["--force"]))
    assert [row["name"] for row in tiny.json("list")] == ["n"]


@pytest.mark.fault(32)
def test_timeouts_are_as_long_as_they_say_whatever_the_clock_does(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    tiny.vmm("start", "m")
    for verb, words in (
        (["start", "m", "--wait", "ssh", "--timeout", "1"], "did not answer within 1 s"),
        (["stop", "m", "--timeout", "1"], "killed"),
    ):
        began = time.monotonic()
        # Years to and fro, at every look at the clock, and never the same again at every second or third.
        jumps = ",".join(str(years * YEAR_S) for years in (10, -10, 3, 0, -7))
        done = at_clock(tiny, jumps, *verb, check=False, timeout=30)
        assert words in done.stdout + done.stderr
        assert 1 <= time.monotonic() - began < 8
    assert tiny.machine("m")["state"] == "stopped"


# What is secret


def is_public(path: Path) -> bool:
    """Whether other users of the host may read this: what a listing needs, what came from outside, public keys."""
    inside = path.parts
    return (
        inside[0] in ("bin", "images", "config")
        or str(path) in ("state/id", "state/readable.0", "state/readable.1")  # the database itself is root's
        or path.name == "known_hosts"
        or path.suffix == ".pub"
        # The jail's own directory lets no one in; the engine must be able to read what is in it.
        or inside[0] == "jails"
    )


def modes(data_dir: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in (data_dir, *sorted(data_dir.rglob("*"))):
        if not path.is_symlink():
            yield path.relative_to(data_dir), path.lstat()


@pytest.mark.fault(24)
def test_under_umask_0_nothing_is_anyones_to_write_and_secrets_are_roots_to_read(host: Host, tmp_path: Path) -> None:
    add_tiny(host, tmp_path)
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "id"))
    user_data = tmp_path / "user-data"
    user_data.write_text("#cloud-config\npassword: secret\n")
    kernel = host.data_dir / "images" / "kernels" / "tiny" / "vmlinux"
    image = host.data_dir / "images" / "rootfs" / "tiny" / "rootfs.ext4"

    def vmm(*arguments: str) -> None:
        host.run("sh", "-c", 'umask 000; exec "$0" "$@"', *VMM, *arguments, env=host.environment)

    vmm("config", "init")
    vmm("config", "set", "vm_defaults.memory_mb", "256")
    vmm("setup", "--no-kernel", "--no-image")
    vmm("kernel", "import", str(kernel), "--name", "other", "--no-stage1")
    vmm("image", "import", str(image), "--name", "other")
    full = ("--engine", "firecracker", "--user-data", str(user_data), "--ssh-key", str(tmp_path / "id.pub"))
    vmm("create", "full", *full)
    vmm("create", "bare", *SMALL, "--no-jail")
    vmm("create", "emulated", *SMALL, "--engine", "qemu")
    for name in ("full", "bare", "emulated"):
        vmm("start", name)
    vmm("port-forward", "add", "full", "8080:80")
    vmm("restart", "bare", "--force")
    seen = set()
    for path, found in modes(host.data_dir):
        seen.add(path.name)
        assert not found.st_mode & 0o022, f"{path}: {found.st_mode:o}"
        is_directory = path == Path() or (host.data_dir / path).is_dir()
        assert is_directory or is_public(path) or not found.st_mode & 0o077, f"{path}: {found.st_mode:o}"
    for directory in ("ssh", "sockets", "jails"):
        assert (host.data_dir / directory).stat().st_mode & 0o077 == 0
    for name in ("disk.ext4", "initrd", "user-data", "cidata.iso", "ssh_host_ed25519_key", "vmm_ed25519", "full.sock",
                 "bare.sock", "emulated.sock", "full.console", "full.log", "vmm.db", "config.toml"):  # fmt: skip
        assert name in seen, name
    assert_all_is_in_the_pages_tree(host.data_dir)


# What the page has a word for, and no name.
_WORDS = {
    "firecracker.json": "where they came from",
    "ssh_host_ed25519_key": "host key",
    "ssh_host_ed25519_key.pub": "host key",
    "vmm_ed25519": "the key that vmm reaches its machines with",
    "vmm_ed25519.pub": "the key that vmm reaches its machines with",
}
# What others make, or the page names as a whole.
_WHOLE = ("jails/firecracker/ID/", "ssh/.lock", "state/locks/", "state/units/", "vms/NAME/keys/")


def assert_all_is_in_the_pages_tree(data_dir: Path) -> None:
    """Assert that configuration.md names each file of a data directory, where it lies."""
    text = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text()
    told: dict[str, str] = {}
    where = ""
    for line in text.split("```")[1].splitlines()[1:]:
        first, *rest = line.split(maxsplit=1)
        if line[:3].strip():
            # A directory, or a file in one.
            where = first.rpartition("/")[0]
            told[where] = f"{told.get(where, '')} {first.rpartition('/')[2]} {' '.join(rest)}"
        else:
            told[where] += f" {line.strip()}"
    names = "|".join(path.name for path in (data_dir / "vms").iterdir())
    for path in data_dir.rglob("*"):
        at = str(path.relative_to(data_dir))
        at = re.sub(rf"(?<=^vms/)({names})(?=/)|(?<=^logs/)({names})(?=\.)|(?<=^sockets/)({names})(?=\.)", "NAME", at)
        at = re.sub(r"(?<=^images/kernels/)[^/]+(?=/)|(?<=^images/rootfs/)[^/]+(?=/)", "NAME", at)
        at = re.sub(r"(?<=^jails/firecracker/)[^/]+", "ID", at)
        if not path.is_dir() and not at.startswith(_WHOLE):
            directory, _, name = at.rpartition("/")
            assert _WORDS.get(name, name) in " ".join(told.get(directory, "").split()), at


def private_body(path: Path) -> str:
    """A line of a private key that is in no public one: from its end, where the private half is."""
    return path.read_text().splitlines()[-3]


def traced(host: Host, trace: Path, *arguments: str) -> str:
    """Run vmm with all that it executes written down, arguments and environments in full; return what it said."""
    strace = ["strace", "-I", "1", "-f", "-q", "-v", "-s", "100000", "-e", "trace=execve", "-o", str(trace)]
    argv = [*host.prefix, *strace, *VMM, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=host.environment, text=True, stdout=pipe, stderr=pipe) as process:
        wait_for(lambda: process.poll() is not None or first_has_ended(trace), what=f"the end of {arguments}")
        # strace would stay as long as the engine does; told to go, it lets go of it.
        process.terminate()
        return "".join(process.communicate())


def first_has_ended(trace: Path) -> bool:
    """Whether the process that a trace begins with has ended."""
    lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    return any(line.split()[0] == lines[0].split()[0] and "+++ exited" in line for line in lines)


@pytest.mark.fault(38)
def test_no_secret_is_in_arguments_output_logs_or_the_database(host: Host, tmp_path: Path) -> None:
    user_data = tmp_path / "user-data"
    user_data.write_text("#cloud-config\npassword: canary-of-the-users-own\n")
    add_tiny(host, tmp_path)
    host.vmm("create", "broken", *SMALL, "--user-data", str(user_data))
    (host.data_dir / "images" / "kernels" / "tiny" / "vmlinux").write_bytes(b"\x7fELF but no kernel")
    words = [
        traced(host, tmp_path / "create", "-v", "create", "m", "--engine", "firecracker", "--user-data", str(user_data))
    ]
    words.append(traced(host, tmp_path / "start", "-v", "start", "m"))
    directory = host.data_dir / "vms" / "m"
    canaries = {
        "user data": "canary-of-the-users-own",
        "vmm's key": private_body(host.data_dir / "ssh" / "vmm_ed25519"),
        "the host key": private_body(directory / "ssh_host_ed25519_key"),
    }
    words += [path.read_text(errors="replace") for path in (tmp_path / "create", tmp_path / "start")]
    assert "ssh-keygen" in words[2], words[2]
    assert "firecracker" in words[3], words[3]
    for pid in engines_of(host, host.machine("m")["id"]):
        words += [Path(f"/proc/{pid}/{what}").read_text(errors="replace") for what in ("cmdline", "environ")]
    words += [said(host, *arguments) for arguments in everything_to_say()]
    said_in_all = "\n".join(words)
    for what, canary in canaries.items():
        assert canary not in said_in_all, what
    assert_only_in(host, canaries)


def everything_to_say() -> Iterator[list[str]]:
    """Every way to make vmm talk, in both its languages, and to make it fail."""
    for verb in (["list"], ["show", "m"], ["image", "list"], ["kernel", "list"], ["config", "show"], ["doctor"],
                 ["port-forward", "list", "m"], ["events"], ["reconcile"], ["db", "check"]):  # fmt: skip
        for output in ("table", "json"):
            yield ["-v", *verb, "--output", output]
    yield from (
        ["-v", "create", "m"],
        ["-v", "create", "bad", "--user-data", "/nonexistent"],
        ["-v", "set", "m", "--memory", "1G"],
        ["-v", "delete", "nosuch"],
        ["-v", "show", "nosuch"],
        ["-v", "console", "m"],
        ["-v", "start", "broken"],
        ["-v", "start", "m", "--wait", "ssh", "--timeout", "0.1"],
        ["-v", "restart", "m", "--force"],
        ["-v", "stop", "m", "--timeout", "0.1"],
        ["-v", "exec", "m", "--", "true"],
    )


def said(host: Host, *arguments: str) -> str:
    done = host.vmm(*arguments, check=False)
    return done.stdout + done.stderr


def assert_only_in(host: Host, canaries: dict[str, str]) -> None:
    """Assert that secrets are in the files that are meant for them, each its owner's alone, and in no other."""
    meant = {
        "user data": {"user-data", "cidata.iso", "disk1"},
        "vmm's key": {"vmm_ed25519"},
        "the host key": {"ssh_host_ed25519_key", "initrd"},
    }
    found: dict[str, set[str]] = {what: set() for what in meant}
    for path in sorted(host.data_dir.rglob("*")):
        # Disks are the guests' own; what is in images came from outside.
        if not path.is_file() or path.name in ("disk.ext4", "disk0", "rootfs.ext4"):
            continue
        content = path.read_bytes()
        for what, canary in canaries.items():
            if canary.encode() in content:
                found[what].add(path.name)
                assert path.stat().st_mode & 0o077 == 0, path
    for what, names in found.items():
        assert {"user data": "user-data", "vmm's key": "vmm_ed25519", "the host key": "initrd"}[what] in names
        assert names <= meant[what], what
