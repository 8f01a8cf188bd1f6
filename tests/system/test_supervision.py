"""Machines whose engines end: who notices, what is done about it, and what it costs to watch over them."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_kernel
from hosts import SMALL, Host, is_running, sh, status_of, wait_for
from tiny_kernel import Then, build

from conftest import add_kernel, add_tiny
from vmm.host import cgroups
from vmm.storage.machine_files import CONSOLE_BYTES, LOG_BYTES

pytestmark = pytest.mark.system

RSS_MOST_KIB = 40 << 10


@pytest.fixture(scope="module")
def stocked(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host with guests that end in their own way when Ctrl-Alt-Del is pressed."""
    directory = tmp_path_factory.mktemp("kernels")
    add_tiny(shared_host, directory)
    for name, content in (
        ("powers-off", build(Then.HALT, last=tiny_kernel.POWERED_OFF)),
        ("reboots", build(Then.RESET, last=tiny_kernel.REBOOTED)),
        ("panics", build(Then.RESET, last=tiny_kernel.PANICKED)),
        ("floods", build(Then.FLOOD)),
    ):
        add_kernel(shared_host, directory, name, content)
    return shared_host


@pytest.fixture
def lab(stocked: Host) -> Iterator[Host]:
    """The module's host, with no machine of another test's."""
    yield stocked
    stocked.vmm("delete", "--all", "--force")


def end(host: Host, name: str, pid: int) -> None:
    """Have a machine end by itself, in the way that its name says."""
    if name == "killed":
        os.kill(pid, signal.SIGKILL)
    else:
        host.press(name)


RESTARTED = {
    "no": {"reboots"},
    "on-failure": {"reboots", "panics", "killed"},
    "always": {"reboots", "panics", "killed", "powers-off"},
}
WHY = {
    "reboots": "the guest rebooted",
    "panics": "the guest's kernel panicked: [ 1.000000] Kernel panic - not syncing: no working init found",
    "powers-off": "the guest powered off",
    "killed": "its engine (pid {pid}) is gone: killed, crashed, or the host was restarted",
}


@pytest.mark.fault(13)
@pytest.mark.parametrize("policy", RESTARTED)
def test_what_becomes_of_each_end_is_the_policys_and_events_say_why(lab: Host, policy: str) -> None:
    pids = {}
    for name in WHY:
        kernel = "tiny" if name == "killed" else name
        lab.vmm("create", name, *SMALL, "--kernel", kernel, "--restart", policy)
        pids[name] = lab.start(name)
    for name, pid in pids.items():
        end(lab, name, pid)
    for name, pid in pids.items():
        why = WHY[name].format(pid=pid)
        if name in RESTARTED[policy]:
            restarted_once(lab, name, pid, why)
        else:
            stays_down(lab, name, pid, why)


def restarted_once(host: Host, name: str, pid: int, why: str) -> None:
    wait_for(lambda: host.machine(name)["pid"] not in (None, pid), what=f"the restart of {name}")
    wait_for(lambda: host.events(name)[-1][0] == "started")
    shown = host.machine(name)
    assert (shown["state"], shown["wanted"]) == ("running", True)
    # A guest's own reboot is no failure, and is not counted.
    count = 0 if name == "reboots" else 1
    assert shown["restarts"] == count
    ended, started = host.events(name)[-2:]
    if count:
        assert ended == ("restarting", f"{why}; restart 1 of 10")
        assert started == ("started", f"firecracker, pid {shown['pid']}, restart 1")
    else:
        assert ended == ("rebooted", why)
        assert started == ("started", f"firecracker, pid {shown['pid']}")


def stays_down(host: Host, name: str, pid: int, why: str) -> None:
    expected = ("stopped", "ended") if name == "powers-off" else ("failed", "failed")
    wait_for(lambda: host.events(name)[-1] == (expected[1], why), what=f"the end of {name}")
    shown = host.machine(name)
    assert (shown["state"], shown["pid"]) == (expected[0], None)
    assert shown["reason"].split() == why.split()
    # What its guest switched off stays off after a reboot of the host; what failed is wanted all the same.
    assert shown["wanted"] is (name != "powers-off")
    # Firecracker's process outlives a power-off: it is gone all the same, and all that was the machine's with it.
    assert not is_running(pid)
    assert shown["id"] not in cgroups.names()
    assert shown["tap_device"] not in host.links()


@pytest.mark.fault(13)
def test_a_power_off_is_seen_on_a_console_that_looks_like_its_predecessors(lab: Host) -> None:
    """Another machine of the same name, whose console has grown as long before anyone looked at it."""
    lab.vmm("create", "stays", *SMALL)
    lab.start("stays")
    (supervisor,) = lab.supervisors()
    sizes = []
    for stopped in (False, True):
        lab.vmm("create", "m", *SMALL, "--kernel", "powers-off")
        if stopped:
            os.kill(supervisor, signal.SIGSTOP)
        try:
            lab.start("m")
            lab.press("m")
            wait_for(lambda: "Power down" in lab.console("m"))
            sizes.append(len(lab.console("m")))
        finally:
            os.kill(supervisor, signal.SIGCONT)
        wait_for(lambda: lab.machine("m")["state"] == "stopped", timeout=10)
        lab.vmm("delete", "m")
    assert sizes[0] == sizes[1]


@pytest.mark.fault(13)
def test_each_restart_in_a_row_waits_longer_and_the_tenth_is_the_last(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL, "--restart", "on-failure")
    for before, delay in ((2, 4), (4, 16), (9, 60)):
        pid = lab.start("m")
        assert lab.machine("m")["restarts"] == 0
        lab.sql("UPDATE machines SET restarts = ?", before)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: lab.events("m")[-1][0] == "restarting")
        ((due, restarts, state),) = lab.sql("SELECT due_at, restarts, state FROM machines")
        assert (restarts, state) == (before + 1, "starting")
        assert delay - 4 < due - time.time() <= delay
        assert lab.events("m")[-1][1].endswith(f"; restart {before + 1} of 10")
        lab.vmm("stop", "m")
        assert lab.machine("m")["state"] == "stopped"
    pid = lab.start("m")
    lab.sql("UPDATE machines SET restarts = 10")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: lab.events("m")[-1][0] == "gave-up")
    shown = lab.machine("m")
    assert (shown["state"], shown["pid"]) == ("failed", None)
    assert shown["reason"].startswith(f"10 restarts in a row were in vain; its engine (pid {pid}) is gone")
    # One that ran well for long is counted anew.
    pid = lab.start("m")
    lab.sql("UPDATE machines SET restarts = 10, started_at = '2026-01-01T00:00:00Z'")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: lab.sql("SELECT restarts FROM machines") == [(1,)])


@pytest.mark.fault(13)
def test_whoever_acts_while_a_restart_is_waited_for_has_the_last_word(lab: Host) -> None:
    names = ("stopped", "deleted", "started")
    for name in names:
        lab.vmm("create", name, *SMALL, "--restart", "always")
        pid = lab.start(name)
        # Due in 3 to 4 s.
        lab.sql("UPDATE machines SET restarts = 2 WHERE name = ?", name)
        os.kill(pid, signal.SIGKILL)
    for name in names:
        wait_for(lambda name=name: lab.events(name)[-1][0] == "restarting")
    due = max(value for (value,) in lab.sql("SELECT due_at FROM machines"))
    lab.vmm("stop", "stopped")
    lab.vmm("delete", "deleted")
    pid = lab.start("started")
    assert time.time() < due, "too slow to try what is tried here"
    time.sleep(max(0.0, due - time.time()) + 1.5)
    assert [row["name"] for row in lab.json("list")] == ["started", "stopped"]
    assert (lab.machine("stopped")["state"], lab.machine("stopped")["pid"]) == ("stopped", None)
    assert (lab.machine("started")["pid"], lab.machine("started")["restarts"]) == (pid, 0)
    assert len([line for line in lab.processes() if "firecracker" in line]) == 1
    lab.vmm("list")
    assert lab.machine("stopped")["state"] == "stopped"


def test_a_guest_whose_restart_fails_is_tried_again_and_told_of(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL, "--restart", "on-failure")
    pid = lab.start("m")
    disk = lab.data_dir / "vms" / "m" / "disk.ext4"
    disk.rename(disk.with_suffix(".away"))
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len([kind for kind, _ in lab.events("m") if kind == "restarting"]) >= 2)
    told = lab.events("m")
    assert any(kind == "restarting" and "has lost its disk" in why for kind, why in told), "\n".join(map(str, told))
    assert lab.machine("m")["restarts"] >= 2
    disk.with_suffix(".away").rename(disk)
    wait_for(lambda: lab.machine("m")["state"] == "running")
    assert lab.machine("m")["pid"] != pid


def test_one_supervisor_watches_all_and_goes_with_the_last(lab: Host) -> None:
    wait_for(lambda: lab.supervisors() == [], timeout=10)
    names = [f"m{number}" for number in range(6)]
    for name in names:
        lab.vmm("create", name, *SMALL)
    racing = [lab.popen("start", name, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for name in names]
    said = [process.communicate(timeout=60)[1] for process in racing]
    assert [process.returncode for process in racing] == [0] * len(names), said
    # Those that came second have looked and gone.
    wait_for(lambda: len(lab.supervisors()) == 1)
    (supervisor,) = lab.supervisors()
    # No machine has any helper: its engine and the one supervisor are all there is.
    # One that looks at the network once has come and gone by then.
    wait_for(lambda: len(lab.processes()) == len(names) + 1)
    time.sleep(1.0)
    facts = status_of(supervisor)
    print(f"the supervisor of {len(names)} machines: RSS {facts['VmRSS']}, of it its own {facts['RssAnon']}")
    assert int(facts["VmRSS"].split()[0]) < RSS_MOST_KIB
    before = cpu_ticks(supervisor)
    time.sleep(1.0)
    assert cpu_ticks(supervisor) - before <= 10, "it takes more than a tenth of a CPU to look on"
    assert not [line for line in lab.processes() if "settle" in line]
    lab.vmm("delete", *names[1:], "--force")
    assert lab.supervisors() == [supervisor]
    lab.vmm("stop", names[0], "--force")
    began = time.monotonic()
    wait_for(lambda: not is_running(supervisor), timeout=5)
    print(f"gone {time.monotonic() - began:.1f} s after the last machine")
    # And what only looks brings none.
    lab.vmm("list")
    assert lab.supervisors() == []


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.fault(13)
def test_a_killed_supervisor_takes_no_machine_with_it_and_the_next_command_brings_it_back(lab: Host) -> None:
    lab.vmm("create", "lives", *SMALL)
    lab.vmm("create", "comes-back", *SMALL, "--restart", "on-failure")
    lab.vmm("create", "goes", *SMALL, "--kernel", "powers-off")
    pids = {name: lab.start(name) for name in ("lives", "comes-back", "goes")}
    (supervisor,) = lab.supervisors()
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: not is_running(supervisor))
    assert all(map(is_running, pids.values()))
    # Nobody is there to see this.
    os.kill(pids["comes-back"], signal.SIGKILL)
    lab.press("goes")
    wait_for(lambda: "Power down" in lab.console("goes"))
    assert lab.sql("SELECT count(*) FROM machines WHERE state = 'running'") == [(3,)]
    assert {row["name"]: row["state"] for row in lab.json("list")}["comes-back"] == "failed"
    wait_for(lambda: len(lab.supervisors()) == 1)
    assert lab.supervisors() != [supervisor]
    wait_for(lambda: lab.machine("comes-back")["pid"] not in (None, pids["comes-back"]))
    wait_for(lambda: lab.events("goes")[-1] == ("ended", "the guest powered off"))
    assert not is_running(pids["goes"])
    assert lab.machine("lives")["pid"] == pids["lives"]


@pytest.mark.fault(14)
def test_a_hung_supervisor_is_in_no_ones_way(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL)
    lab.vmm("create", "other", *SMALL)
    pid = lab.start("m")
    (supervisor,) = lab.supervisors()
    os.kill(supervisor, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert [row["state"] for row in lab.json("list")] == ["running", "created"]
        other = lab.start("other")
        lab.vmm("stop", "m", "--force")
        assert not is_running(pid)
        os.kill(other, signal.SIGKILL)
        wait_for(lambda: lab.machine("other")["state"] == "failed")
        lab.start("other")
        assert [row["state"] for row in lab.json("list")] == ["stopped", "running"]
        assert time.monotonic() - began < 10
        assert lab.supervisors() == [supervisor]
    finally:
        os.kill(supervisor, signal.SIGCONT)
    # It has missed an end and a new engine, and makes nothing of either.
    os.kill(lab.machine("other")["pid"], signal.SIGKILL)
    wait_for(lambda: lab.sql("SELECT state FROM machines WHERE name = 'other'") == [("failed",)])
    assert lab.machine("m")["state"] == "stopped"


def fill(path: Path, content: bytes, count: int) -> None:
    """Have a file end with `content`, and `count` bytes in all."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"." * (count - len(content)) + content)


@pytest.mark.fault(22)
def test_a_flood_on_the_console_is_bounded_and_its_newest_part_is_kept_and_followed(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL, "--kernel", "floods")
    newest, older = (lab.data_dir / "logs" / name for name in ("m.console", "m.console.1"))
    fill(newest, b"said before the flood\n", CONSOLE_BYTES - 4096)
    pid = lab.start("m")
    with lab.popen("console", "m", "-f", "-n", "0", stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        try:
            assert "x" in follower.stdout.read(100)
            # It is emptied last.
            wait_for(lambda: older.exists() and newest.stat().st_size < CONSOLE_BYTES // 2, what="the console's turn")
            size = older.stat().st_size
            assert CONSOLE_BYTES - 65536 < size <= CONSOLE_BYTES + 65536
            assert b"said before the flood\n" in older.read_bytes()
            # More than stood before the turn: it can only have been written after it.
            assert len(follower.stdout.read(16384)) == 16384
        finally:
            follower.terminate()
    assert older.stat().st_mode & 0o077 == 0
    # Once more: what is older still goes.
    with newest.open("ab") as stream:
        stream.write(b"y" * CONSOLE_BYTES)
    wait_for(lambda: newest.stat().st_size < CONSOLE_BYTES // 2, what="the second turn")
    assert b"said before the flood\n" not in older.read_bytes()
    assert newest.stat().st_size + older.stat().st_size < 16 << 20
    shown = lab.vmm("console", "m", "--full").stdout
    assert "y" in shown
    assert shown.endswith("x")
    assert is_running(pid)
    assert lab.machine("m")["state"] == "running"
    lab.vmm("delete", "m", "--force")
    assert list(lab.data_dir.glob("logs/m.*")) == []


@pytest.mark.fault(22)
def test_an_engines_log_is_bounded_too(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL)
    lab.start("m")
    log = lab.data_dir / "logs" / "m.log"
    with log.open("ab") as stream:
        stream.write(b"e" * (2 * LOG_BYTES) + b"its newest word\n")
    wait_for(lambda: log.stat().st_size <= LOG_BYTES)
    assert log.read_bytes().endswith(b"its newest word\n")
    # It is one file still, here and in the jail.
    assert log.samefile(lab.data_dir / "jails" / "firecracker" / lab.machine("m")["id"] / "root" / "log")


@pytest.mark.fault(11, 22)
def test_a_flood_on_a_full_disk_is_let_go(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL, "--kernel", "floods")
    logs = lab.data_dir / "logs"
    logs.mkdir(exist_ok=True)
    wait_for(lambda: lab.supervisors() == [], timeout=10)
    sh("mount", "-t", "tmpfs", "-o", f"size={CONSOLE_BYTES + (2 << 20)},mode=0755", "vmmtest", str(logs))
    try:
        fill(logs / "m.console", b"said before the flood\n", CONSOLE_BYTES - 4096)
        pid = lab.start("m")
        wait_for(lambda: (logs / "m.console").stat().st_size < CONSOLE_BYTES // 2, what="the console's turn")
        assert (logs / "m.console.1").stat().st_size == 0
        grown = (logs / "m.console").stat().st_size
        wait_for(lambda: (logs / "m.console").stat().st_size > grown)
        assert is_running(pid)
        assert lab.machine("m")["state"] == "running"
        assert len(lab.supervisors()) == 1
        lab.vmm("delete", "m", "--force")
        wait_for(lambda: lab.supervisors() == [], timeout=10)
    finally:
        sh("umount", str(logs))


@contextlib.contextmanager
def foreground(host: Host, name: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a machine in the foreground, in a session of its own; killed if it still runs in the end."""
    arguments = ("start", name, "--foreground", *options)
    with host.popen(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until_said(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, f"it ended with {process.wait()} after {said!r}: {process.stderr and process.stderr.read()}"
        said += line
    return said


def running_pid(host: Host, name: str, *, besides: int | None = None) -> int:
    wait_for(lambda: host.machine(name)["pid"] not in (None, besides))
    return host.machine(name)["pid"]


def test_in_the_foreground_a_machine_is_a_process_like_any_other(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL, "--kernel", "powers-off")
    for number in (signal.SIGTERM, signal.SIGINT):
        with foreground(lab, "m", "--stop-timeout", "20") as process:
            assert "boots at" in until_said(process, "tiny guest")
            pid = running_pid(lab, "m")
            assert lab.machine("m")["owner"] == "foreground"
            # Whoever ends what it owns by its cgroup ends the engine too.
            assert Path(f"/proc/{pid}/cgroup").read_text() == Path(f"/proc/{process.pid}/cgroup").read_text()
            began = time.monotonic()
            # A terminal and most supervisors send it to all of the group: the engine is in none of it.
            os.killpg(process.pid, number)
            said, complaints = process.communicate(timeout=30)
            assert process.returncode == 0, complaints
            assert time.monotonic() - began < 10
            assert "reboot: Power down" in said
            assert not is_running(pid)
        shown = lab.machine("m")
        assert (shown["state"], shown["wanted"]) == ("stopped", False)
        assert lab.events("m")[-1] == ("stopped", "shut down by the guest")


def test_in_the_foreground_one_that_must_be_killed_is_told_by_the_exit_code(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL, "--pids-limit", "50")
    with foreground(lab, "m", "--stop-timeout", "0.5") as process:
        until_said(process, "tiny guest")
        pid = running_pid(lab, "m")
        # With a limit it has a cgroup of its own all the same.
        assert cgroups.members(lab.machine("m")["id"]) == [pid]
        began = time.monotonic()
        process.terminate()
        _, said = process.communicate(timeout=30)
        assert time.monotonic() - began < 8
    assert process.returncode == 1
    assert "Error: The machine 'm' had to be killed." in said
    assert "Its guest did not shut down within 0.5 s." in said
    assert "To mend it: Give it longer with --stop-timeout." in said
    assert not is_running(pid)
    assert lab.machine("m")["state"] == "stopped"


@pytest.mark.fault(13)
@pytest.mark.parametrize("name", ["killed", "panics"])
def test_in_the_foreground_a_failure_is_its_owners_to_mend(lab: Host, name: str) -> None:
    kernel = "tiny" if name == "killed" else name
    lab.vmm("create", name, *SMALL, "--kernel", kernel, "--restart", "always")
    with foreground(lab, name) as process:
        until_said(process, "tiny guest")
        pid = running_pid(lab, name)
        end(lab, name, pid)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"Error: The machine '{name}' failed." in said
    assert ("Kernel panic - not syncing" if name == "panics" else f"(pid {pid}) is gone") in said
    assert f"vmm console {name}" in said
    # Nobody starts it again behind its owner's back, whatever its policy, and nothing says so.
    assert lab.events(name)[-1][0] == "failed"
    time.sleep(2.0)
    shown = lab.machine(name)
    assert (shown["state"], shown["pid"]) == ("failed", None)
    assert shown["tap_device"] not in lab.links()
    assert lab.events(name)[-1][0] == "failed"


def test_in_the_foreground_a_guests_own_end_is_one_and_its_reboot_is_none(lab: Host) -> None:
    lab.vmm("create", "reboots", *SMALL, "--kernel", "reboots")
    with foreground(lab, "reboots") as process:
        until_said(process, "tiny guest")
        pid = running_pid(lab, "reboots")
        lab.press("reboots")
        assert "reboot: Restarting system" in until_said(process, "boots at")
        until_said(process, "tiny guest")
        assert process.poll() is None
        again = running_pid(lab, "reboots", besides=pid)
        assert lab.machine("reboots")["owner"] == "foreground"
        assert not is_running(pid)
        # Stopped by someone else, it is over, and in order.
        lab.vmm("stop", "reboots", "--force")
        assert process.wait(timeout=10) == 0
        assert not is_running(again)
    lab.vmm("create", "powers-off", *SMALL, "--kernel", "powers-off")
    with foreground(lab, "powers-off") as process:
        until_said(process, "tiny guest")
        lab.press("powers-off")
        assert process.wait(timeout=10) == 0
    assert lab.machine("powers-off")["state"] == "stopped"


@pytest.mark.fault(1, 13)
def test_a_killed_foreground_leaves_its_machine_alive_and_manageable(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL)
    with foreground(lab, "m") as process:
        until_said(process, "tiny guest")
        pid = running_pid(lab, "m")
        process.kill()
    assert is_running(pid)
    assert "runs already" in lab.vmm("start", "m").stdout
    assert lab.machine("m")["pid"] == pid
    lab.vmm("stop", "m", "--force")
    assert not is_running(pid)
    # Its owner is not there to notice its end: after a while the supervisor does.
    with foreground(lab, "m") as process:
        until_said(process, "tiny guest")
        pid = running_pid(lab, "m")
        process.kill()
    os.kill(pid, signal.SIGKILL)
    assert lab.machine("m")["state"] == "failed"
    wait_for(lambda: lab.events("m")[-1][0] == "failed", timeout=10)
    assert lab.machine("m")["tap_device"] not in lab.links()


def test_in_the_foreground_a_reader_that_goes_away_ends_nothing(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL, "--kernel", "reboots")
    with foreground(lab, "m", "--stop-timeout", "0.5") as process:
        until_said(process, "tiny guest")
        pid = running_pid(lab, "m")
        assert process.stdout is not None
        process.stdout.close()
        lab.press("m")
        # The guest's last words are for nobody; it goes on.
        again = running_pid(lab, "m", besides=pid)
        wait_for(lambda: lab.console("m").count("tiny guest") == 2)
        time.sleep(0.3)
        assert process.poll() is None
        assert is_running(again)
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert lab.machine("m")["state"] == "stopped"


@pytest.fixture(scope="module")
def dev(shared_host: Host) -> Host:
    """The module's host with a machine `dev` that has a real user space."""
    shared_host.vmm("create", "dev", "--engine", "qemu", "--cpus", "2")
    return shared_host


def test_a_real_guests_reboot_restarts_it_and_its_panic_is_shown(dev: Host) -> None:
    dev.vmm("start", "dev", "--wait", "ssh")
    pid = dev.machine("dev")["pid"]
    boot = dev.guest("dev", "cat /proc/sys/kernel/random/boot_id")
    dev.guest("dev", "systemctl --no-block reboot", check=False)
    wait_for(lambda: dev.machine("dev")["pid"] not in (None, pid), what="the reboot", timeout=60)
    assert dev.vmm("start", "dev", "--wait", "ssh").stdout.startswith("dev runs already")
    assert dev.guest("dev", "cat /proc/sys/kernel/random/boot_id") != boot
    assert [kind for kind, _ in dev.events("dev")] == ["created", "started", "rebooted", "started"]
    dev.guest("dev", "(sleep 0.5; echo c >/proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &")
    wait_for(lambda: dev.events("dev")[-1][0] == "failed", what="the panic", timeout=60)
    shown = dev.machine("dev")
    assert shown["state"] == "failed"
    assert "the guest's kernel panicked:" in shown["reason"]
    assert "Kernel panic - not syncing: sysrq triggered crash" in dev.vmm("show", "dev").stdout


def test_a_real_guest_in_the_foreground_shuts_down_when_asked_to(dev: Host) -> None:
    with foreground(dev, "dev") as process:
        dev_pid = running_pid(dev, "dev")
        dev.vmm("start", "dev", "--wait", "ssh")
        began = time.monotonic()
        process.terminate()
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    print(f"stopped in {time.monotonic() - began:.1f} s")
    assert not is_running(dev_pid)
    assert dev.events("dev")[-1] == ("stopped", "shut down by the guest")
    dev.vmm("delete", "dev")
