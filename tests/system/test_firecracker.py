"""Machines on the real Firecracker, with a guest that greets and halts (lab hosts cannot run more of one on it)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_kernel
from budget import TELL_MODULES
from hosts import VMM, Host, wait_for

from conftest import add_tiny
from vmm.storage.machine_files import CONSOLE_BYTES

pytestmark = pytest.mark.system

SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")


def console(host: Host, name: str) -> str:
    path = host.data_dir / "logs" / f"{name}.console"
    return path.read_text(errors="replace") if path.exists() else ""


def start(host: Host, name: str) -> int:
    host.vmm("start", name)
    return host.machine(name)["pid"]


@pytest.mark.fault(31)
def test_a_machine_lives_from_create_to_delete(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    assert tiny.machine("m")["state"] == "created"
    pid = start(tiny, "m")
    wait_for(lambda: tiny_kernel.GREETING.decode().strip() in console(tiny, "m"))
    shown = tiny.machine("m")
    assert (shown["state"], shown["engine"], shown["tap_device"]) == ("running", "firecracker", "vmm-ac100002")
    command_line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert b"--enable-pci" not in command_line
    assert os.getsid(pid) == pid
    assert (tiny.data_dir / "sockets" / "m.sock").stat().st_mode & 0o077 == 0
    links = tiny.run("ip", "-d", "-o", "link", "show", "vmm-ac100002").stdout
    assert "isolated on" in links
    assert "master vmm-br0" in links
    assert "killed" in tiny.vmm("stop", "m", "--timeout", "0.5").stdout
    assert tiny.machine("m")["state"] == "stopped"
    assert "vmm-ac100002" not in tiny.run("ip", "-o", "link").stdout
    start(tiny, "m")
    assert console(tiny, "m").count("boots at") == 2
    tiny.vmm("delete", "m", "--force")
    assert tiny.json("list") == []


@pytest.mark.fault(13)
def test_a_killed_engine_shows_as_failed_with_its_reason(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    pid = start(tiny, "m")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: tiny.machine("m")["state"] == "failed")
    assert f"pid {pid}" in tiny.machine("m")["reason"]
    (row,) = tiny.json("list")
    assert (row["state"], row["pid"]) == ("failed", None)
    # And it can be started again, on the same address.
    start(tiny, "m")
    assert tiny.machine("m")["ip_address"] == "172.16.0.2"
    tiny.vmm("stop", "m", "--force")


def test_a_guest_that_resets_ends_its_machine(tiny: Host, tmp_path: Path) -> None:
    add_tiny(tiny, tmp_path, tiny_kernel.Then.RESET, "resets")
    tiny.vmm("create", "m", *SMALL, "--kernel", "resets")
    tiny.vmm("start", "m", "--wait", "none", check=False)
    wait_for(lambda: tiny.machine("m")["state"] in ("failed", "stopped"))


@pytest.mark.fault(14)
def test_a_hung_engine_is_listed_at_once_and_stopped_in_time(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    pid = start(tiny, "m")
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert tiny.json("list")[0]["state"] == "running"
    assert time.monotonic() - began < 5
    began = time.monotonic()
    assert "killed" in tiny.vmm("stop", "m", "--timeout", "1").stdout
    assert time.monotonic() - began < 15


def test_a_kernel_that_is_none_fails_and_leaves_nothing(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    kernel = tiny.data_dir / "images" / "kernels" / "tiny" / "vmlinux"
    good = kernel.read_bytes()
    kernel.write_bytes(b"\x7fELF but no kernel" * 100)
    said = tiny.fails("start", "m")
    assert "ended at its start" in said
    assert re.search(r"[Kk]ernel|ELF|elf|boot", said), said
    shown = tiny.machine("m")
    assert shown["state"] == "failed"
    assert shown["reason"]
    assert "vmm-ac100002" not in tiny.run("ip", "-o", "link").stdout
    assert tiny.processes() == []
    kernel.write_bytes(good)
    start(tiny, "m")


def test_a_machine_that_runs_is_not_deleted_unless_forced(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    start(tiny, "m")
    assert "--force" in tiny.fails("delete", "m")
    assert "It is running" in tiny.fails("set", "m", "--memory", "256")
    tiny.vmm("set", "m", "--no-auto-start")
    assert tiny.machine("m")["auto_start"] is False
    tiny.vmm("delete", "m", "-f")


@pytest.mark.fault(3)
def test_a_foreign_process_with_the_recorded_pid_is_never_touched(tiny: Host) -> None:
    """The row says a pid that now belongs to someone else: vmm must see that, and leave it alone."""
    import sqlite3

    tiny.vmm("create", "m", *SMALL)
    pid = start(tiny, "m")
    os.kill(pid, signal.SIGKILL)
    with subprocess.Popen(["sleep", "300"]) as foreign:
        try:
            ticks = int(Path(f"/proc/{foreign.pid}/stat").read_text().rpartition(")")[2].split()[19])
            connection = sqlite3.connect(tiny.data_dir / "state" / "vmm.db")
            connection.execute("UPDATE machines SET pid = ?, start_ticks = ?", (foreign.pid, ticks))
            connection.commit()
            connection.close()
            assert tiny.machine("m")["state"] == "failed"
            tiny.vmm("stop", "m", "--force")
            tiny.vmm("delete", "m", "--force")
            assert foreign.poll() is None
        finally:
            foreign.kill()


def test_the_console_is_shown_followed_and_harmless(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    assert "nothing yet" in tiny.vmm("console", "m").stdout
    start(tiny, "m")
    wait_for(lambda: "tiny guest" in tiny.vmm("console", "m").stdout)
    with tiny.popen("console", "m", "-f", "-n", "0", stdout=subprocess.PIPE) as follower:
        tiny.vmm("restart", "m", "--force")
        assert follower.stdout is not None
        seen = [follower.stdout.readline() for _ in range(3)]
        follower.terminate()
    assert any("boots at" in line for line in seen), seen
    wait_for(lambda: tiny.vmm("console", "m", "--full").stdout.count("tiny guest") == 2)
    assert tiny.vmm("console", "m", "--full").stdout.count("boots at") == 2
    assert tiny.vmm("console", "m", "-n", "1").stdout == tiny_kernel.GREETING.decode()
    # On a terminal a guest's control characters are taken out; --raw keeps them.
    path = tiny.data_dir / "logs" / "m.console"
    with path.open("ab") as stream:
        stream.write(b"\x1b]0;owned\x07title\n")
    on_terminal = ["script", "-qec", f"{' '.join(VMM)} console m -n 1", "/dev/null"]
    shown = tiny.run(*on_terminal, env=tiny.environment).stdout
    assert "title" in shown
    assert "\x1b" not in shown
    raw = tiny.run(*on_terminal[:2], f"{' '.join(VMM)} console m -n 1 --raw", "/dev/null", env=tiny.environment)
    assert "\x1b]0;owned" in raw.stdout


@pytest.mark.fault(22)
def test_a_console_that_was_flooded_is_turned_over_at_the_next_start(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    newest, older = (tiny.data_dir / "logs" / name for name in ("m.console", "m.console.1"))
    newest.parent.mkdir(exist_ok=True)
    newest.write_bytes(b"the oldest\n" + b"x" * (20 << 20) + b"said before the turn\n")
    start(tiny, "m")
    wait_for(lambda: "tiny guest" in console(tiny, "m"))
    assert newest.stat().st_size < 1 << 20
    assert older.stat().st_size == CONSOLE_BYTES
    assert older.stat().st_mode & 0o077 == 0
    # Both parts are one to whoever looks.
    shown = tiny.vmm("console", "m", "--full").stdout
    assert "the oldest" not in shown
    assert shown.index("said before the turn") < shown.index("boots at") < shown.index("tiny guest")


@pytest.mark.fault(24, 38)
def test_user_data_is_a_seed_disk_and_nowhere_else(tiny: Host, tmp_path: Path) -> None:
    user_data = tmp_path / "user-data"
    user_data.write_text("#cloud-config\npassword: very-secret\n")
    tiny.vmm("create", "m", *SMALL, "--user-data", str(user_data))
    start(tiny, "m")
    seed = tiny.data_dir / "vms" / "m" / "cidata.iso"
    assert seed.read_bytes()[32808:32814].lower() == b"cidata"  # the volume's name in ISO 9660's descriptor
    assert b"very-secret" in seed.read_bytes()
    assert seed.stat().st_mode & 0o077 == 0
    jail = tiny.data_dir / "jails" / "firecracker" / tiny.machine("m")["id"] / "root"
    drives = json.loads((jail / "config.json").read_text())["drives"]
    assert [(drive["path_on_host"], drive["is_read_only"]) for drive in drives] == [("/disk0", False), ("/disk1", True)]
    assert (jail / "disk1").samefile(seed)
    assert "very-secret" not in tiny.vmm("show", "m", "--output", "json").stdout
    assert b"very-secret" not in (tiny.data_dir / "state" / "vmm.db").read_bytes()


def test_a_start_imports_no_more_than_it_must(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    done = tiny.run(sys.executable, "-c", TELL_MODULES, "start", "m", env=tiny.environment)
    assert "m is running" in done.stdout
    modules = set(done.stderr.split())
    assert "vmm.engines.firecracker.api" in modules
    for heavy in ("click", "rich", "logging", "tomllib", "tarfile", "urllib.request", "tempfile", "typing", "inspect",
                  "dataclasses", "vmm.images.rootfs", "vmm.operations.stop", "concurrent.futures"):  # fmt: skip
        assert heavy not in modules, heavy


def test_several_machines_at_once(tiny: Host) -> None:
    for number in range(4):
        tiny.vmm("create", f"m{number}", *SMALL)
    tiny.vmm("start", "--all")
    assert [row["state"] for row in tiny.json("list", "--filter", "state=running")] == ["running"] * 4
    began = time.monotonic()
    tiny.vmm("stop", "--all", "--timeout", "1")
    assert time.monotonic() - began < 30
    assert {row["state"] for row in tiny.json("list")} == {"stopped"}
    tiny.vmm("delete", "m0", "m1")
    said = tiny.vmm("delete", "m2", "nosuch", "m3", check=False)
    assert said.returncode == 1
    assert "nosuch" in said.stderr
    assert tiny.json("list") == []
