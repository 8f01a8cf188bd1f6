"""Engines that die, hang, or answer as no engine should: every command on them is bounded, and says what is the matter.

The real ones are used for what they can do; a stand-in (tests/support/bad_engine.py) for what no real one would.
"""

import concurrent.futures
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import bad_engine
import pytest
import tiny_kernel
from hosts import LIBRARY, SMALL, VMM, Host, is_running, sh, wait_for

from conftest import add_kernel, add_tiny
from vmm.engines.firecracker import api
from vmm.engines.firecracker.engine import FirecrackerEngine
from vmm.engines.qemu.engine import QemuEngine
from vmm.errors import EngineError
from vmm.host import cgroups

pytestmark = pytest.mark.system

QEMU = (*SMALL[:-1], "qemu")
# Of any vmm command: a start takes some 30 MiB, and what an engine says must not add to it.
RSS_MOST_KIB = 64 << 10
ASK_S = 0.3
START_S = 0.5
# For vmm itself, and to kill and clear up, on a busy host.
SLACK_S = 6.0
PROTOCOLS = {"firecracker": "http", "qemu": "qmp"}


@pytest.fixture(scope="module")
def stocked(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    add_tiny(shared_host, tmp_path_factory.mktemp("kernel"))
    return shared_host


@pytest.fixture
def lab(stocked: Host) -> Iterator[Host]:
    """The module's host with the real engines, and no machine of another test's."""
    stocked.vmm("delete", "--all", "--force")
    (stocked.data_dir / "config" / "config.toml").unlink(missing_ok=True)
    yield stocked
    stocked.vmm("delete", "--all", "--force")


class BadEngine:
    """A host whose engines are the stand-in, and a machine for each: they bear the engines' names."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self._directory = directory
        text = Path(bad_engine.__file__).read_text()
        for engine in PROTOCOLS:
            program = directory / engine
            program.write_text(f"#!{sys.executable} -IS\n{text}")
            program.chmod(0o755)
            host.vmm("config", "set", engine, str(program))
            # In a jail there is no Python to run it.
            host.vmm("create", engine, *SMALL[:-1], engine, "--no-jail")

    def behaves(self, mode: str) -> None:
        (self._directory / "MODE").write_text(mode)

    def processes(self) -> list[str]:
        return [line for line in self.host.processes() if str(self._directory) in line]


@pytest.fixture(scope="module")
def bad(stocked: Host, tmp_path_factory: pytest.TempPathFactory) -> BadEngine:
    return BadEngine(stocked, tmp_path_factory.mktemp("engines"))


WORDS = {
    "a refusal": "refused.",
    "closes": "gives no usable answer",
    "an unknown state": "xploded",
    "10 GB": "an answer of 10737418240 bytes",
    "no end of headers": "it sent more than 65536 bytes",
    "no end of line": "it sent more than 65536 bytes",
    "no end of events": "it sent more than 65536 bytes",
}


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("engine", "mode"),
    [
        (engine, mode)
        for engine, protocol in PROTOCOLS.items()
        for mode in bad_engine.MODES[protocol]
        # That it has not started its guest yet is an answer that it may well give, if not for ever.
        if mode != "never started"
    ],
)
def test_an_answer_that_no_engine_gives_is_an_error_in_time_and_in_little_memory(
    tmp_path: Path, engine: str, mode: str
) -> None:
    path = tmp_path / "m.sock"
    adapter = FirecrackerEngine(binary=path) if engine == "firecracker" else QemuEngine(binary=path, kvm=False)
    program = shutil.copy(bad_engine.__file__, tmp_path)
    (tmp_path / "MODE").write_text(mode)
    named = ["--api-sock", str(path)] if engine == "firecracker" else ["-qmp", f"unix:{path},server=on"]
    with subprocess.Popen([sys.executable, "-IS", program, *named], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(path.exists)
            time.sleep(0.02)
            tracemalloc.start()
            began = time.monotonic()
            with pytest.raises(EngineError) as caught:
                adapter.status(path, timeout_s=ASK_S)
            seconds, peak = time.monotonic() - began, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            process.kill()
    said = f"{caught.value.brief}\n{caught.value.details}"
    assert WORDS.get(mode, "") in said
    assert caught.value.resolution
    assert len(said) < 4000
    assert seconds < ASK_S + 0.5
    assert peak < 4 << 20


# A process begins with the peak of the one that it was forked from: this one's parent is small.
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stderr=subprocess.STDOUT)
print(f"\\n{code} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}")
"""


def measured(host: Host, *arguments: str) -> tuple[int, str, float, int]:
    """Run vmm, and return its exit code, what it said, the seconds and the KiB of memory it took at most."""
    began = time.monotonic()
    argv = [sys.executable, "-IS", "-c", MEASURE, *host.prefix, *VMM, *arguments]
    said, _, counted = sh(*argv, env=host.environment).stdout.rstrip("\n").rpartition("\n")
    code, rss_kib = map(int, counted.split())
    return code, said, time.monotonic() - began, rss_kib


def assert_nothing_left(host: Host, name: str) -> None:
    shown = host.machine(name)
    assert (shown["state"], shown["pid"]) == ("failed", None)
    assert shown["reason"]
    assert shown["tap_device"] not in host.links()
    assert shown["id"] not in cgroups.names()
    assert list(host.data_dir.glob("sockets/*")) == []
    assert list(host.data_dir.glob("jails/*/*")) == []


AT_START = {
    "no socket": "did not run its guest within",
    "hangs": "did not run its guest within",
    "ends": "ended at its start.\n  out of cheese",
    "killed at once": "ended at its start",
    "killed while it answers": "ended at its start",
    "drip": "did not run its guest within",
    "10 GB": "did not run its guest within",
    "no end of line": "did not run its guest within",
    "an odd state": "did not run its guest within",
    "never started": "did not run its guest within",
}
# Told by qemu otherwise than Firecracker does, and tried above.
NOT_SO = {("qemu", "10 GB"), ("qemu", "never started")}


@pytest.mark.fault(13, 14, 15)
@pytest.mark.parametrize(("engine", "mode"), [pair for pair in product(PROTOCOLS, AT_START) if pair not in NOT_SO])
def test_a_start_gives_a_bad_engine_up_and_leaves_nothing(bad: BadEngine, engine: str, mode: str) -> None:
    bad.behaves(mode)
    code, said, seconds, rss_kib = measured(bad.host, "start", engine, "--timeout", str(START_S))
    assert code == 1, said
    assert seconds < START_S + SLACK_S
    assert rss_kib < RSS_MOST_KIB
    assert f"Error: The engine of '{engine}' {AT_START[mode]}" in said
    assert "To mend it: " in said
    assert "Traceback" not in said
    assert len(said) < 4000
    assert_nothing_left(bad.host, engine)
    assert bad.processes() == []


@pytest.mark.fault(15)
@pytest.mark.parametrize("engine", PROTOCOLS)
@pytest.mark.parametrize("mode", ["silent", "no end of line"])
def test_an_engine_that_goes_bad_while_it_runs_is_listed_and_stopped_in_time(
    bad: BadEngine, engine: str, mode: str
) -> None:
    bad.behaves("well")
    bad.host.vmm("start", engine)
    bad.behaves(mode)
    for arguments in (("list",), ("show", engine), ("start", engine), ("reconcile",)):
        code, said, seconds, _ = measured(bad.host, *arguments)
        assert (code, seconds < SLACK_S) == (0, True), said
    code, said, seconds, rss_kib = measured(bad.host, "stop", engine, "--timeout", "0.5")
    assert code == 0
    assert f"{engine} is stopped: killed" in said
    # The power button has 2 s of its own.
    assert seconds < 2 + 0.5 + SLACK_S
    assert rss_kib < RSS_MOST_KIB
    assert bad.host.machine(engine)["state"] == "stopped"
    assert bad.processes() == []


@pytest.mark.fault(14, 15, 31)
@pytest.mark.parametrize(
    ("number", "code", "options"),
    [(signal.SIGINT, 130, ()), (signal.SIGTERM, 143, ()), (signal.SIGTERM, 143, ("--foreground",))],
)
def test_a_start_that_waits_for_a_bad_engine_is_in_no_ones_way_and_ends_when_told_to(
    bad: BadEngine, number: int, code: int, options: tuple[str, ...]
) -> None:
    host = bad.host
    bad.behaves("silent")
    with host.popen("start", "firecracker", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as waiting:
        wait_for(bad.processes)
        began = time.monotonic()
        assert {row["name"]: row["state"] for row in host.json("list")}["firecracker"] in ("starting", "running")
        bad.behaves("well")
        host.vmm("start", "qemu")
        host.vmm("stop", "qemu", "--force")
        assert time.monotonic() - began < SLACK_S
        assert waiting.poll() is None
        waiting.send_signal(number)
        _, said = waiting.communicate(timeout=SLACK_S)
    assert waiting.returncode == code
    assert "Interrupted" in said
    assert bad.processes() == []
    shown = host.machine("firecracker")
    assert (shown["state"], shown["pid"]) == ("stopped", None)
    assert shown["tap_device"] not in host.links()


JAILERS = {
    "fails": ("echo 'no chroot today' >&2; exit 1", "no chroot today"),
    "is killed": ("kill -9 $$", "ended at its start"),
    "writes no pid": ("exit 0", "firecracker.pid"),
    "writes garbage for a pid": ("echo many >$root/firecracker.pid", "invalid literal"),
    "writes a foreign pid": ("echo $FOREIGN >$root/firecracker.pid", "did not run its guest"),
    "leads its log elsewhere": ("rm $root/log; ln -s $BAIT $root/log; exit 1", "ended at its start"),
    "makes a file of the socket": (
        "sleep 600 $sock </dev/null >/dev/null 2>&1 & echo $! >$root/firecracker.pid; echo x >$root$sock",
        "is no socket",
    ),
    "makes a link of the socket": (
        "sleep 600 $sock </dev/null >/dev/null 2>&1 & echo $! >$root/firecracker.pid; ln -s $BAIT $root$sock",
        "is no socket",
    ),
}


@pytest.mark.fault(15, 26)
@pytest.mark.parametrize("way", JAILERS)
def test_a_jailer_that_does_not_do_its_work_is_told_of_and_harms_no_one(lab: Host, tmp_path: Path, way: str) -> None:
    script, words = JAILERS[way]
    bait = tmp_path / "bait"
    bait.write_text("untouched\n")
    bait.chmod(0o640)
    shutil.copy(LIBRARY / "bin" / "firecracker", tmp_path)
    with subprocess.Popen(["sleep", "300"]) as foreign:
        try:
            (tmp_path / "jailer").write_text(
                f"#!/bin/sh\nFOREIGN={foreign.pid} BAIT={bait} sock=/$2.sock root={lab.data_dir}/jails/firecracker/$2/root\n{script}\n"
            )
            (tmp_path / "jailer").chmod(0o755)
            lab.vmm("config", "set", "firecracker", str(tmp_path / "firecracker"))
            lab.vmm("create", "m", *SMALL)
            began = time.monotonic()
            said = lab.fails("start", "m", "--timeout", "0.5")
            assert time.monotonic() - began < 1 + SLACK_S
            assert words in said
            assert_nothing_left(lab, "m")
            assert foreign.poll() is None
            assert (bait.read_text(), bait.stat().st_mode & 0o777, bait.stat().st_uid) == ("untouched\n", 0o640, 0)
            assert [line for line in lab.processes() if "sleep 600" in line] == []
        finally:
            foreign.kill()


@pytest.mark.fault(14)
@pytest.mark.parametrize("options", [SMALL, (*SMALL, "--no-jail"), QEMU], ids=["jailed", "not jailed", "qemu"])
def test_a_hung_engine_keeps_no_command_waiting(lab: Host, options: tuple[str, ...]) -> None:
    lab.vmm("create", "m", *options)
    pid = lab.start("m")
    os.kill(pid, signal.SIGSTOP)
    for arguments in (("list",), ("show", "m"), ("port-forward", "add", "m", "127.0.0.1:8080:80"), ("reconcile",)):
        code, said, seconds, _ = measured(lab, *arguments)
        assert (code, seconds < SLACK_S) == (0, True), said
    assert lab.machine("m")["state"] == "running"
    code, said, seconds, _ = measured(lab, "start", "m")
    assert "runs already" in said
    assert seconds < SLACK_S
    code, said, seconds, _ = measured(lab, "stop", "m", "--timeout", "0.5")
    assert "m is stopped: killed" in said
    assert seconds < 0.5 + 2 + SLACK_S
    assert not is_running(pid)
    pid = lab.start("m")
    os.kill(pid, signal.SIGSTOP)
    code, said, seconds, _ = measured(lab, "delete", "m", "--force")
    assert (code, seconds < SLACK_S) == (0, True), said
    assert not is_running(pid)


@pytest.mark.fault(13)
@pytest.mark.parametrize("options", [SMALL, QEMU], ids=["firecracker", "qemu"])
def test_an_engine_that_is_killed_as_soon_as_it_is_there_is_told_truly(lab: Host, options: tuple[str, ...]) -> None:
    lab.vmm("create", "m", *options)
    machine_id = lab.machine("m")["id"]
    for _ in range(4):
        with lab.popen("start", "m", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as starting:
            wait_for(lambda: [kill_all(machine_id)] != [0] or starting.poll() is not None, timeout=20)
            _, said = starting.communicate(timeout=30)
        # It was killed before it had said that it runs, or after.
        if starting.returncode:
            assert "Error: The engine of 'm' ended at its start." in said
        wait_for(lambda: lab.machine("m")["state"] == "failed")
        wait_for(lambda: lab.sql("SELECT state FROM machines") == [("failed",)])
        assert_nothing_left(lab, "m")
    lab.start("m")


def kill_all(machine_id: str) -> int:
    """Kill what is in a machine's cgroup; return how many there were."""
    pids = cgroups.members(machine_id)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(pids)


@pytest.mark.fault(46)
def test_a_guest_that_ends_while_its_engine_is_asked_has_ended(lab: Host, tmp_path: Path) -> None:
    """Firecracker waits for ever then: its API for an answer, and whoever would give it for the API's end."""
    # Its last word says nothing of an end: there is only its engine to see that by.
    add_kernel(lab, tmp_path, "resets", tiny_kernel.build(tiny_kernel.Then.RESET, last=b"bye\n"))
    lab.vmm("create", "m", *SMALL[2:], "--kernel", "resets", "--restart", "no")
    stuck = 0
    for _ in range(8):
        pid = lab.start("m")
        wait_for(lambda: "tiny guest" in lab.console("m").rpartition(" ===\n")[2], what="the guest")
        with asked_without_end(lab.data_dir / "sockets" / "m.sock"):
            lab.press("m")
            time.sleep(0.3)
        stuck += is_running(pid)
        wait_for(lambda pid=pid: not is_running(pid), timeout=20, what="the engine's end")
        wait_for(lambda: lab.machine("m")["state"] == "failed", what="the record")
    assert stuck, "no engine was met at the moment that this is about"


@contextlib.contextmanager
def asked_without_end(socket: Path) -> Iterator[None]:
    """Have four clients ask an engine for its state as fast as it answers."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            with contextlib.suppress(EngineError):
                api.request(socket, "GET", "/", timeout_s=0.5)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        try:
            yield
        finally:
            done.set()
