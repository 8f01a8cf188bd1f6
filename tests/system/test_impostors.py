"""A process of another user's whose command line is an engine's: no verb takes it for one, and none ends it."""

import contextlib
import os
import pty
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hosts import SMALL, Host, is_running, status_of, wait_for

from conftest import add_tiny

pytestmark = [pytest.mark.system, pytest.mark.fault(43)]

NOBODY = 65534
# As exec leaves a setuid program's ids, and as sudo makes them once it knows who asks.
SETUID = f"os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, 0, 0)"
SUDO = "os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)"
WAIT = "print('ready', flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def stocked(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    add_tiny(shared_host, tmp_path_factory.mktemp("kernel"))
    return shared_host


@pytest.fixture
def lab(stocked: Host) -> Iterator[Host]:
    """The module's host, with no machine of another test's."""
    yield stocked
    stocked.vmm("delete", "--all", "--force")


@contextlib.contextmanager
def waiting_su(words: Sequence[str]) -> Iterator[int]:
    """Have `su` of an ordinary user wait for root's password, with the first of these words as the command to run."""
    ours, its = pty.openpty()
    argv = ["setsid", "-c", "su", "-c", words[0], "--", "root", *words[1:]]
    with subprocess.Popen(
        argv, stdin=its, stdout=its, stderr=its, user=NOBODY, group=NOBODY, extra_groups=()
    ) as process:
        os.close(its)
        try:
            shown = b""
            while b"assword" not in shown:
                shown += os.read(ours, 1024)
            assert status_of(process.pid)["Uid"].split() == [str(NOBODY), "0", "0", "0"]
            yield process.pid
        finally:
            process.kill()
            os.close(ours)


@contextlib.contextmanager
def setuid_program(words: Sequence[str], ids: str) -> Iterator[int]:
    """Have a process with the ids that a setuid program has, or takes: no such interpreter must lie about for that."""
    argv = ["program", "-c", f"import os, time; {ids}; {WAIT}", *words]
    with subprocess.Popen(
        argv, executable="/usr/bin/python3", stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def impostors(words: Sequence[str]) -> Iterator[list[int]]:
    """Have a process of each kind; all of them must be alive at the end."""
    with (
        waiting_su(words) as su,
        setuid_program(words, SETUID) as setuid,
        setuid_program(words, SUDO) as sudo,
    ):
        yield [su, setuid, sudo]
        assert [is_running(pid) for pid in (su, setuid, sudo)] == [True, True, True]


def words_of(host: Host, jail: str) -> list[str]:
    """Return the words by which an engine of the machine `m` is found: its socket, and its own id."""
    machine_id = host.machine("m")["id"]
    path = f"/{machine_id}.sock" if jail == "--jail" else str(host.data_dir / "sockets" / "m.sock")
    return [path, f"--id={machine_id}", "-uuid", str(uuid.UUID(machine_id)), "-qmp", f"unix:{path},server=on"]


@contextlib.contextmanager
def users_group(pid: int) -> Iterator[None]:
    """Have a process in a group as a user's own systemd makes it for a unit that the user has called so."""
    table = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    (top, *_) = [Path(fields[1]) for fields in table if fields[2] == "cgroup2" or "pids" in fields[3].split(",")]
    groups = [top / f"user@{NOBODY}.service"]
    groups.append(groups[0] / "vmm-m.service")
    try:
        for group in groups:
            group.mkdir()
        (groups[1] / "cgroup.procs").write_text(str(pid))
        assert f"{groups[1].relative_to(top)}\n" in Path(f"/proc/{pid}/cgroup").read_text()
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            (top / "cgroup.procs").write_text(str(pid))
        for group in reversed(groups):
            group.rmdir()


@contextlib.contextmanager
def unsupervised(host: Host) -> Iterator[None]:
    """Keep the supervisors from settling what this test looks at."""
    watching = host.supervisors()
    for pid in watching:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in watching:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("jail", ["--jail", "--no-jail"])
def test_nobodys_process_with_an_engines_command_line_is_no_engine(lab: Host, jail: str) -> None:
    lab.vmm("create", "m", *SMALL, jail)
    engine = lab.start("m")
    with impostors(words_of(lab, jail)) as pids, users_group(pids[-1]):
        with unsupervised(lab):
            os.kill(engine, signal.SIGKILL)
            wait_for(lambda: not is_running(engine))
            # As a start leaves it that was killed before it knew its engine: the process recorded is its own.
            lab.sql("UPDATE machines SET state = 'starting', pid = 1, marker = ''")
            listed = lab.json("list", "--all")
            assert [(row["name"], row["pid"]) for row in listed] == [("m", None)]
            assert "it was recorded as" in lab.vmm("reconcile", check=False).stdout
            assert lab.machine("m")["state"] in ("stopped", "failed")
            assert lab.machine("m")["pid"] is None
            lab.vmm("stop", "--force", "m", check=False)
            assert all(map(is_running, pids))
        again = lab.start("m")
        # And while an engine of its own runs.
        assert lab.vmm("reconcile").stdout == "All is as it is remembered.\n"
        assert lab.machine("m")["pid"] == again
        lab.vmm("stop", "--force", "m")
        assert not is_running(again)
        # An engine that no record is of would be told as a stray.
        lab.vmm("delete", "--force", "m")
        assert lab.json("list", "--all") == []
        lab.vmm("reconcile")
