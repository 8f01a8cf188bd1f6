"""A machine that the database does not know of: nothing of it is lost, and it is told for as long as it runs."""

import json
import os
import shutil
import signal

import pytest
from hosts import SMALL, Host, is_running, wait_for

from conftest import add_tiny
from vmm.host import cgroups

pytestmark = pytest.mark.system


@pytest.mark.fault(17)
@pytest.mark.parametrize("runs", [False, True], ids=["stands", "runs"])
def test_a_machine_that_a_restored_database_does_not_know_keeps_all_it_has(host: Host, tmp_path, runs: bool) -> None:
    add_tiny(host, tmp_path)
    host.vmm("create", "early", *SMALL)
    host.vmm("db", "backup")
    host.vmm("create", "late", *SMALL)
    pid = host.start("late") if runs else 0
    disk = host.data_dir / "vms" / "late" / "disk.ext4"
    with disk.open("r+b") as stream:
        stream.seek(200 << 20)
        stream.write(b"precious")
    inode = disk.stat().st_ino
    host.vmm("db", "restore", "--force")
    said = host.fails("create", "late", *SMALL)
    assert "db restore --rebuild" in said
    told = host.vmm("reconcile", check=False)
    listed = {row["name"]: row for row in host.json("list", "--all")}
    checks = {row["name"]: row for row in json.loads(host.vmm("doctor", "--output", "json", check=False).stdout)}
    assert ("late" in listed) is runs
    assert (checks["engines"]["status"] == "ok") is not runs
    assert ("late" in told.stdout) is runs
    assert ("unrecorded" in host.vmm("list", "--all").stdout) is runs
    if runs:
        # As often as it is asked, and whoever asks.
        told = host.vmm("reconcile", check=False)
        assert f"its engine runs (pid {pid})" in told.stdout
        assert listed["late"]["pid"] == pid
        assert is_running(pid)
        assert (host.data_dir / "sockets" / "late.sock").exists()
        assert "vmm-ac100003" in host.links()
        assert "172.16.0.3" in host.run("nft", "list", "ruleset").stdout
        # By another range of ids its engine would be nobody's, and reconcile took its jail and socket.
        assert "late (of no record)" in host.fails("config", "set", "uid_range", "2000000000-2000065535")
        # Its address is nobody else's meanwhile.
        host.vmm("create", "other", *SMALL)
        assert host.machine("other")["ip_address"] != "172.16.0.3"
        host.vmm("delete", "other")
    host.vmm("db", "restore", "--rebuild", "--force")
    assert disk.stat().st_ino == inode
    with disk.open("rb") as stream:
        stream.seek(200 << 20)
        assert stream.read(8) == b"precious"
    assert host.machine("late")["state"] == ("running" if runs else "created")
    assert host.machine("late")["pid"] == (pid or None)


@pytest.mark.fault(17)
def test_a_record_of_before_does_nothing_to_another_machine_of_its_name(host: Host, tmp_path) -> None:
    add_tiny(host, tmp_path)
    host.vmm("create", "web", *SMALL)
    host.vmm("db", "backup")
    host.vmm("delete", "web")
    host.vmm("create", "web", *SMALL)
    pid = host.start("web")
    machine_id = host.machine("web")["id"]
    described = host.data_dir / "vms" / "web" / "machine.json"
    text = described.read_text()
    host.vmm("db", "restore", "--force")
    for verb in (["start", "web"], ["stop", "web"], ["delete", "web"], ["set", "web", "--disk", "512"]):
        assert "is another machine's of that name" in host.fails(*verb)
    told = host.vmm("reconcile", check=False)
    assert f"its engine runs (pid {pid}), and the database does not know it" in told.stdout
    host.vmm("delete", "web", "--force")
    assert is_running(pid)
    assert (host.data_dir / "sockets" / "web.sock").exists()
    assert (host.data_dir / "vms" / "web" / "disk.ext4").stat().st_size == 256 << 20
    assert described.read_text() == text
    host.vmm("db", "restore", "--rebuild", "--force")
    assert (host.machine("web")["id"], host.machine("web")["pid"]) == (machine_id, pid)


@pytest.mark.fault(17)
@pytest.mark.parametrize("jail", ["--jail", "--no-jail"])
@pytest.mark.parametrize("gone", ["description", "directory"])
def test_an_engine_that_nothing_describes_is_known_by_what_it_has_open(
    host: Host, tmp_path, gone: str, jail: str
) -> None:
    add_tiny(host, tmp_path)
    host.vmm("create", "early", *SMALL)
    host.vmm("db", "backup")
    host.vmm("create", "late", *SMALL, jail)
    pid = host.start("late")
    machine_id = host.machine("late")["id"]
    host.vmm("db", "restore", "--force")
    directory = host.data_dir / "vms" / "late"
    if gone == "directory":
        shutil.rmtree(directory)
    else:
        (directory / "machine.json").unlink()
    for _ in range(2):
        told = host.vmm("reconcile", check=False).stdout
        assert f"its engine runs (pid {pid})" in told
        assert f"kill {pid}" in told
        assert is_running(pid)
        assert (host.data_dir / "sockets" / "late.sock").exists()
        assert bool(list((host.data_dir / "jails").glob(f"*/{machine_id}"))) is (jail == "--jail")
        assert "vmm-ac100003" in host.links()
        assert "172.16.0.3" in host.run("nft", "list", "ruleset").stdout
    checks = {row["name"]: row for row in json.loads(host.vmm("doctor", "--output", "json", check=False).stdout)}
    assert f"late (pid {pid})" in checks["engines"]["detail"]
    assert {row["name"]: row for row in host.json("list", "--all")}["late"]["pid"] == pid
    assert f"pid {pid}" in host.fails("create", "late", *SMALL)
    # Its address is nobody else's meanwhile, nor its tap.
    host.vmm("create", "other", *SMALL)
    assert host.machine("other")["ip_address"] != "172.16.0.3"
    host.start("other")
    assert "vmm-ac100003" in host.links()
    assert "172.16.0.3" in host.run("nft", "list", "ruleset").stdout
    os.kill(pid, signal.SIGKILL)
    host.vmm("delete", "--force", "other")
    wait_for(lambda: not is_running(pid), timeout=10)
    # That one may be of another data directory, and is left to whoever made it.
    cgroups.remove(machine_id)
    host.vmm("reconcile", check=False)
    assert not (host.data_dir / "sockets" / "late.sock").exists()
    # Its disk is nobody's to remove but its user's.
    if gone == "description":
        assert (directory / "disk.ext4").exists()
        shutil.rmtree(directory)
