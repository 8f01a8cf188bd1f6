"""The database lost, damaged, older, newer, on a disk that is full or read-only: machines run on, and come back."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hosts import VMM, Host, sh, wait_for

from conftest import add_tiny
from vmm.app import HostSite, database, load_config
from vmm.errors import ConflictError
from vmm.model.network import lease_for
from vmm.storage import schema

pytestmark = pytest.mark.system

SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *VMM]
PAGE = 4096


@dataclass(frozen=True)
class Running:
    """A machine's engine and disk, as they are now: nothing that happens to the database may change any of it."""

    name: str
    pid: int
    ticks: str
    inode: int

    @classmethod
    def of(cls, host: Host, name: str) -> "Running":
        pid = host.machine(name)["pid"]
        assert pid is not None
        return cls(name, pid, ticks(pid), (host.data_dir / "vms" / name / "disk.ext4").stat().st_ino)

    def goes_on(self, host: Host) -> bool:
        disk = host.data_dir / "vms" / self.name / "disk.ext4"
        tap = host.run("ip", "-o", "link").stdout.count(lease_for(IPv4Address("172.16.0.2")).tap)
        return ticks(self.pid) == self.ticks and disk.stat().st_ino == self.inode and tap == 1


def ticks(pid: int) -> str:
    """Return the time that a process started at; a zombie is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]


def db(host: Host) -> Path:
    return host.data_dir / "state" / "vmm.db"


def checks(host: Host, *, code: int = 0) -> dict[str, dict[str, str]]:
    """Return what `vmm db check` finds, by name."""
    done = host.vmm("db", "check", "--output", "json", check=False)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return {row["name"]: row for row in json.loads(done.stdout)}


def in_state(host: Host) -> dict[str, bytes]:
    """Return every file below state/ but the locks, with what is in it."""
    found = (path for path in (host.data_dir / "state").rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in found if "lock" not in str(path)}


def reach_for_all(directory: Path) -> None:
    """Let every user pass through the directories above a test's own."""
    for parent in [directory, *directory.parents[:3]]:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)


@pytest.fixture(scope="module")
def ready(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host with a machine `runs` that runs with a forward, and one, `stands`, that never did; and a good copy."""
    add_tiny(shared_host, tmp_path_factory.mktemp("tiny"))
    shared_host.vmm("create", "runs", *SMALL, "--label", "k=v")
    shared_host.vmm("create", "stands", *SMALL)
    shared_host.vmm("start", "runs")
    shared_host.vmm("port-forward", "add", "runs", "7000:70")
    shared_host.vmm("db", "backup")
    reach_for_all(shared_host.data_dir)
    return shared_host


@pytest.fixture
def runs(ready: Host) -> Iterator[Running]:
    """The running machine, which must run on through the test, and be known and manageable after it."""
    # Another run of pytest, as it begins, closes the directory that they share.
    reach_for_all(ready.data_dir)
    before = Running.of(ready, "runs")
    shown, good = ready.vmm("list", "--output", "json").stdout, db(ready).read_bytes()
    yield before
    assert before.goes_on(ready)
    found = ready.vmm("list", "--output", "json", check=False).stdout
    if found != shown:
        # A test that failed is no reason for the next to fail.
        db(ready).write_bytes(good)
    assert json.loads(found or "[]") == json.loads(shown)
    assert checks(ready)["database"]["status"] == "ok"
    ready.vmm("port-forward", "add", "runs", "7001:71")
    assert "7001" in ready.run("nft", "list", "ruleset").stdout
    ready.vmm("port-forward", "remove", "runs", "7001:71")
    assert "7001" not in ready.run("nft", "list", "ruleset").stdout
    for leftover in (ready.data_dir / "state").glob("vmm.db.damaged-*"):
        leftover.unlink()


def flip(place: int) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 0xFF
        path.write_bytes(content)

    return act


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size if size >= 0 else path.stat().st_size + size)


def page_of_rows(path: Path) -> None:
    """Fill the page that holds the machines' rows, the first that is made, with nonsense."""
    with path.open("r+b") as stream:
        stream.seek(PAGE)
        stream.write(os.urandom(PAGE))


# What is done to the file, and a word of what must be said of it.
DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "its magic word": ("damaged", flip(0)),
    "its page size": ("damaged", flip(16)),
    "the head of its first page": ("damaged", flip(100)),
    "the head of its second page": ("damaged", flip(PAGE)),
    "the page with the rows": ("damaged", page_of_rows),
    "cut to nothing": ("lost", cut(0)),
    "cut to a piece of a page": ("damaged", cut(700)),
    "cut to a page": ("damaged", cut(PAGE)),
    "cut in the middle": ("damaged", cut(3 * PAGE + 100)),
    "cut by a page": ("damaged", cut(-PAGE)),
    "another file": ("damaged", lambda path: path.write_bytes(b"this is no database\n" * 500)),
    "zeros": ("damaged", lambda path: path.write_bytes(bytes(path.stat().st_size))),
    "gone": ("lost", lambda path: path.unlink()),
}


@pytest.mark.fault(17)
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_database_is_told_and_put_back_while_machines_run(ready: Host, runs: Running, what: str) -> None:
    words, damage = DAMAGES[what]
    damage(db(ready))
    damaged = db(ready).read_bytes() if db(ready).exists() else None
    for arguments in (["list"], ["show", "runs"], ["stop", "runs"], ["start", "stands"], ["delete", "-f", "runs"],
                      ["create", "m", *SMALL], ["port-forward", "add", "runs", "7005:1"]):  # fmt: skip
        said = ready.fails(*arguments)
        assert words in said, said
        assert "vmm db restore" in said
        assert "go on" in said
    # Who reads the copy sees what was before, and is told so; a database that is gone has none.
    told = ready.run(*NOBODY, "list", check=False, env=ready.environment)
    assert "Error" in told.stderr or ("runs" in told.stdout and "may be of before" in told.stderr)
    assert runs.goes_on(ready)
    found = checks(ready, code=1)
    assert found["database"]["status"] == "failure"
    assert found["database"]["fix"] == "sudo vmm db restore"
    assert "backups/vmm-" in found["backups"]["detail"]
    assert (db(ready).read_bytes() if db(ready).exists() else None) == damaged
    said = ready.vmm("db", "restore").stdout
    assert "2 machine(s)" in said
    assert "found: runs" in said
    kept = [path.read_bytes() for path in (ready.data_dir / "state").glob("vmm.db.damaged-*")]
    assert kept == ([] if damaged is None else [damaged])


@pytest.mark.fault(17)
def test_a_sound_database_is_found_sound_by_anyone_and_left_as_it_is(ready: Host, runs: Running) -> None:
    before = in_state(ready)
    found = checks(ready)
    assert {name: row["status"] for name, row in found.items()} == dict.fromkeys(
        ("database", "integrity", "forwards", "records", "disks", "directories", "backups"), "ok"
    )
    assert found["backups"]["fix"] is None
    assert "2 machine(s)" in ready.vmm("db", "check").stdout
    done = ready.run(*NOBODY, "db", "check", "--output", "json", env=ready.environment)
    statuses = {row["name"]: row["status"] for row in json.loads(done.stdout)}
    assert statuses.pop("backups") == "warning"
    assert set(statuses.values()) == {"ok"}
    for arguments in (["db", "backup"], ["db", "restore", "-f"]):
        done = ready.run(*NOBODY, *arguments, check=False, env=ready.environment)
        assert done.returncode == 1
        assert "needs root" in done.stderr
    assert in_state(ready) == before


@pytest.mark.fault(17, 24)
def test_a_copy_is_kept_where_only_root_sees_it(ready: Host, runs: Running) -> None:
    path = Path(ready.vmm("db", "backup").stdout.strip())
    assert path.parent == ready.data_dir / "state" / "backups"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.fault(17)
def test_a_good_database_is_not_replaced_by_mistake(ready: Host, runs: Running) -> None:
    before = in_state(ready)
    said = ready.fails("db", "restore")
    assert "is good" in said
    assert "restore -f" in said
    assert "is good" in ready.fails("db", "restore", "--rebuild")
    ready.fails("db", "restore", "--rebuild", "--from", "x", code=2)
    asked = ["script", "-qec", f"{' '.join(VMM)} db restore", "/dev/null"]
    done = ready.run(*asked, check=False, input="n\n", env=ready.environment)
    assert "Replace it all the same?" in done.stdout
    assert done.stdout.rstrip().endswith("Nothing was restored.")
    assert (done.returncode, in_state(ready)) == (1, before)
    assert "restored from" in ready.run(*asked, input="y\n", env=ready.environment).stdout
    copy = ready.vmm("db", "backup").stdout.strip()
    shown = json.loads(ready.vmm("db", "restore", "-f", "--from", copy, "--output", "json").stdout)
    assert shown["source"] == copy
    assert (shown["machines"], shown["running"], shown["left"]) == (2, ["runs"], [])
    assert Path(shown["kept"]).exists()


@pytest.mark.fault(17)
def test_a_copy_that_is_damaged_is_passed_over(ready: Host, runs: Running) -> None:
    good = ready.vmm("db", "backup").stdout.strip()
    bad = Path(ready.vmm("db", "backup").stdout.strip())
    os.truncate(bad, 5000)
    assert "cannot be put back" in ready.fails("db", "restore", "-f", "--from", str(bad))
    flip(0)(db(ready))
    detail = checks(ready, code=1)["backups"]["detail"]
    assert f"{bad} (" in detail
    assert "not usable" in detail
    assert good in ready.vmm("db", "restore").stdout
    bad.unlink()


# A write of many pages, ended in the middle of its commit.
HOT = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 2")
connection.execute("BEGIN IMMEDIATE")
for number in range(2000):
    connection.execute("INSERT INTO notes VALUES (?, ?)", (f"key {number}", "x" * 500))
connection.execute("DELETE FROM machines")
os._exit(73)
"""


def cut_off(host: Host) -> Path:
    """Leave the database within a write, as a killed vmm does; return the journal that says so."""
    assert subprocess.run([sys.executable, "-c", HOT, str(db(host))], check=False).returncode == 73
    journal = db(host).with_name("vmm.db-journal")
    assert journal.read_bytes()[:2] == b"\xd9\xd5"
    return journal


@pytest.fixture
def alone(ready: Host) -> Iterator[None]:
    """Let the supervisor, which reads the database all the time, stand still: a test's command is to be the next one."""
    supervisors = [int(line.partition(":")[0]) for line in ready.processes() if line.rstrip().endswith("supervise")]
    assert len(supervisors) == 1
    os.kill(supervisors[0], signal.SIGSTOP)
    yield
    os.kill(supervisors[0], signal.SIGCONT)


@pytest.mark.usefixtures("alone")
@pytest.mark.fault(1, 17)
def test_a_write_that_was_killed_is_taken_back_by_the_next_command(ready: Host, runs: Running) -> None:
    shown = ready.json("list")
    journal = cut_off(ready)
    half = in_state(ready)
    # Whoever may not write reads it as it was, and takes nothing back.
    done = ready.run(*NOBODY, "list", "--output", "json", env=ready.environment)
    assert {row["name"]: row["state"] for row in json.loads(done.stdout)} == {
        row["name"]: row["state"] for row in shown
    }
    done = ready.run(*NOBODY, "db", "check", check=False, env=ready.environment)
    assert "was killed while it wrote" in done.stdout
    assert in_state(ready) == half
    assert ready.json("list") == shown
    assert not journal.exists()
    for arguments in (["db", "check"], ["port-forward", "list", "runs"], ["db", "backup"]):
        cut_off(ready)
        ready.vmm(*arguments)
        assert ready.json("list") == shown


@pytest.mark.usefixtures("alone")
@pytest.mark.fault(17)
def test_what_a_killed_write_left_is_kept_with_its_database_and_never_played_back(ready: Host, runs: Running) -> None:
    journal = cut_off(ready)
    page_of_rows(db(ready))
    halves = {db(ready).read_bytes(), journal.read_bytes()}
    ready.vmm("db", "restore", "-f")
    assert not journal.exists()
    assert {path.read_bytes() for path in (ready.data_dir / "state").glob("vmm.db.damaged-*")} == halves


@pytest.mark.fault(17)
def test_the_database_of_a_newer_vmm_is_no_damaged_one(ready: Host, runs: Running) -> None:
    with sqlite3.connect(db(ready)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    content = db(ready).read_bytes()
    for arguments in (["list"], ["stop", "runs"], ["delete", "-f", "runs"]):
        assert "newer vmm" in ready.fails(*arguments)
    assert "newer vmm" in checks(ready, code=1)["database"]["detail"]
    assert "good" in ready.fails("db", "restore")
    assert db(ready).read_bytes() == content
    ready.vmm("db", "restore", "-f")


@pytest.mark.fault(17)
def test_a_record_that_cannot_be_read_is_named_and_mended(ready: Host, runs: Running) -> None:
    copy = ready.vmm("db", "backup").stdout.strip()
    with sqlite3.connect(db(ready)) as connection:
        connection.execute("UPDATE machines SET labels = '{broken' WHERE name = 'runs'")
        connection.execute("UPDATE machines SET image = CAST(x'ff' AS TEXT) WHERE name = 'stands'")
    connection.close()
    rows = {row["name"]: row["state"] for row in ready.json("list")}
    assert rows["runs"] == "unreadable"
    assert set(rows) == {"runs", "stands"}
    assert "runs" in checks(ready, code=1)["records"]["detail"]
    assert runs.goes_on(ready)
    assert copy in ready.vmm("db", "restore").stdout


@pytest.mark.fault(17)
def test_a_forward_to_nowhere_is_named(ready: Host, runs: Running) -> None:
    ready.vmm("db", "backup")
    with sqlite3.connect(db(ready)) as connection:
        connection.execute("INSERT INTO forwards VALUES ('nosuch', 'tcp', '0.0.0.0', 9, 9)")
    connection.close()
    assert "1 forward(s)" in checks(ready, code=1)["forwards"]["detail"]
    ready.vmm("db", "restore")
    assert checks(ready)["forwards"]["status"] == "ok"


@pytest.mark.fault(17)
def test_disks_and_directories_are_compared_with_the_records(ready: Host, runs: Running) -> None:
    vms = ready.data_dir / "vms"
    stranger = vms / "stranger"
    stranger.mkdir()
    found = checks(ready)["directories"]
    assert (found["status"], "stranger" in found["detail"]) == ("warning", True)
    stranger.rmdir()
    disk = vms / "stands" / "disk.ext4"
    disk.rename(vms / "away")
    assert checks(ready)["disks"]["status"] == "warning"
    with sqlite3.connect(db(ready)) as connection:
        connection.execute("UPDATE machines SET started_at = created_at WHERE name = 'stands'")
    connection.close()
    assert "stands" in checks(ready, code=1)["disks"]["detail"]
    (vms / "away").rename(disk)
    with sqlite3.connect(db(ready)) as connection:
        connection.execute("UPDATE machines SET started_at = NULL WHERE name = 'stands'")
    connection.close()
    os.truncate(disk, 300 << 20)
    found = checks(ready)["disks"]
    assert found["detail"] == "larger than they are recorded: stands (300 MiB)"
    assert ready.fails("set", "stands", "--disk", "280", code=2).startswith("Error: The disk of 'stands' cannot shrink")
    assert disk.stat().st_size == 300 << 20
    assert found["fix"] == "sudo vmm set stands --disk 300"
    os.truncate(disk, 256 << 20)
    assert checks(ready)["disks"]["status"] == "ok"
    # A directory that says of itself that it is another machine's of that name.
    described = vms / "stands" / "machine.json"
    text = described.read_text()
    described.write_text(text.replace(ready.machine("stands")["id"], "0" * 32))
    assert "stands" in checks(ready, code=1)["directories"]["detail"]
    described.write_text(text)


@pytest.mark.fault(17)
def test_everything_comes_back_from_what_lies_on_disk(ready: Host, runs: Running) -> None:
    """No database and no copy: what lies beside the disks is enough, and what is not a machine's is left alone."""
    state = ready.data_dir / "state"
    (state / "backups").rename(state / "elsewhere")
    db(ready).unlink()
    vms = ready.data_dir / "vms"
    (vms / "bare").mkdir()
    (vms / "bare" / "disk.ext4").write_bytes(b"precious")
    shutil.copytree(vms / "stands", vms / "copied")
    found = checks(ready, code=1)
    assert "4 machine(s) lie in" in found["database"]["detail"]
    assert "--rebuild" in found["backups"]["fix"]
    assert "--rebuild" in ready.fails("db", "restore")
    done = ready.vmm("db", "restore", "--rebuild")
    assert "2 machine(s)" in done.stdout
    assert "found: runs" in done.stdout
    assert "bare: it has no machine.json" in done.stderr
    assert "copied: its machine.json cannot be used: " in done.stderr
    assert (vms / "bare" / "disk.ext4").read_bytes() == b"precious"
    assert db(ready).stat().st_mode & 0o777 == 0o600
    shown = ready.machine("runs")
    assert (shown["labels"], [f["host_port"] for f in shown["port_forwards"]]) == ({"k": "v"}, [7000])
    shutil.rmtree(vms / "bare")
    shutil.rmtree(vms / "copied")
    (state / "elsewhere").rename(state / "backups")


@pytest.mark.fault(17)
def test_a_machine_that_is_younger_than_the_copy_is_not_forgotten(ready: Host, runs: Running) -> None:
    copy = ready.vmm("db", "backup").stdout.strip()
    ready.vmm("create", "young", *SMALL)
    ready.vmm("start", "young")
    pid = ready.machine("young")["pid"]
    ready.vmm("db", "restore", "-f", "--from", copy)
    assert [row["name"] for row in ready.json("list")] == ["runs", "stands"]
    found = checks(ready)["directories"]
    assert f"young (it runs, pid {pid})" in found["detail"]
    assert "--rebuild" in found["fix"]
    assert "runs, young" in ready.vmm("db", "restore", "--rebuild", "-f").stdout
    assert (ready.machine("young")["pid"], ready.machine("young")["state"]) == (pid, "running")
    ready.vmm("delete", "-f", "young")


@pytest.mark.fault(3, 17)
def test_the_engine_of_another_machine_of_that_name_is_not_taken_for_its_own(ready: Host, runs: Running) -> None:
    """The copy knows a machine whose name another one has by now, at the same place: its engine is not the old one's."""
    ready.vmm("create", "again", *SMALL, "--no-jail")
    copy = ready.vmm("db", "backup").stdout.strip()
    ready.vmm("delete", "again")
    ready.vmm("create", "between", *SMALL)
    ready.vmm("create", "again", *SMALL, "--no-jail")
    ready.vmm("start", "again")
    pid = ready.machine("again")["pid"]
    assert "found: runs\n" in ready.vmm("db", "restore", "-f", "--from", copy).stdout
    assert ready.machine("again")["state"] == "created"
    assert "again" in checks(ready, code=1)["directories"]["detail"]
    ready.vmm("db", "restore", "--rebuild", "-f")
    assert ready.machine("again")["pid"] == pid
    ready.vmm("delete", "-f", "again", "between")


@pytest.mark.fault(17)
def test_rows_of_a_copy_are_compared_with_what_runs(ready: Host, runs: Running) -> None:
    """A copy that says running of what stands, and stands of what runs."""
    with sqlite3.connect(db(ready)) as connection:
        connection.execute("UPDATE machines SET state = 'stopped', wanted = 0, pid = NULL, boot_id = NULL, marker = NULL,"
                           " start_ticks = NULL, started_at = NULL WHERE name = 'runs'")  # fmt: skip
        connection.execute("UPDATE machines SET state = 'running', pid = 1, boot_id = 'x', start_ticks = 1, marker = 'x'"
                           " WHERE name = 'stands'")  # fmt: skip
    connection.close()
    started_at = ready.json("list")[0]["started_at"]
    assert started_at is None
    copy = ready.vmm("db", "backup").stdout.strip()
    ready.vmm("db", "restore", "-f", "--from", copy)
    shown = ready.machine("runs")
    assert (shown["state"], shown["pid"], shown["wanted"]) == ("running", runs.pid, True)
    assert shown["started_at"] is not None
    assert "found running" in ready.vmm("events", "runs").stdout
    wait_for(lambda: ready.machine("stands")["state"] in ("failed", "stopped"))
    ready.vmm("db", "restore", "--rebuild", "-f")


@pytest.mark.fault(17)
def test_a_file_of_another_host_is_not_put_in_the_databases_place(ready: Host, runs: Running, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    shutil.copy(ready.vmm("db", "backup").stdout.strip(), other)
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("UPDATE machines SET id = '00' || substr(id, 3, 28) || '00'")
    connection.close()
    before = db(ready).read_bytes()
    assert "It is of another host" in ready.fails("db", "restore", "-f", "--from", str(other))
    with sqlite3.connect(other) as connection:
        connection.execute("UPDATE machines SET name = '../../etc' WHERE name = 'stands'")
    connection.close()
    said = ready.fails("db", "restore", "-f", "--from", str(other))
    assert f"{other} cannot be put back" in said
    assert "../../etc" in said
    assert db(ready).read_bytes() == before
    assert not list((ready.data_dir / "state").glob("vmm.db.damaged-*"))


@pytest.mark.fault(2, 17)
def test_a_command_at_work_keeps_the_database_from_being_replaced(
    ready: Host, runs: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LOCK_S", 0.2)
    site = HostSite(load_config(data_dir=ready.data_dir))
    inode = db(ready).stat().st_ino
    with (ready.data_dir / "state" / "locks" / "stands").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="'stands'"):
            database.restore(site, database.Wish(force=True))
    assert db(ready).stat().st_ino == inode


# --- An upgrade with machines running ---------------------------------------------------------------------------------

# The firewall of the version before, as it rendered it for one machine with one forward.
TABLES_BEFORE = """
table ip vmm {
  map ports { type inet_proto . inet_service : ipv4_addr . inet_service; }
  map ports_at { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }
  chain forwards {
    meta l4proto { tcp, udp } fib daddr type local dnat ip to meta l4proto . ip daddr . th dport map @ports_at
    meta l4proto { tcp, udp } fib daddr type local dnat ip to meta l4proto . th dport map @ports
  }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    iifname != "vmm-br0" jump forwards
  }
  chain output {
    type nat hook output priority -100; policy accept;
    jump forwards
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 172.16.0.0/16 oifname != "vmm-br0" masquerade
    ip saddr 127.0.0.0/8 oifname "vmm-br0" masquerade
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname "vmm-br0" oifname "vmm-br0" drop
    iifname "vmm-br0" ip daddr 169.254.0.0/16 drop
    iifname "vmm-br0" accept
    oifname "vmm-br0" ct state established,related accept
    oifname "vmm-br0" ct status dnat accept
    oifname "vmm-br0" drop
  }
  chain input {
    type filter hook input priority filter; policy accept;
    iifname "vmm-br0" ct state established,related accept
    iifname "vmm-br0" icmp type echo-request accept
    iifname "vmm-br0" drop
  }
}
table bridge vmm {
  set senders { type ifname . ether_addr . ipv4_addr; }
  chain prerouting {
    type filter hook prerouting priority -300; policy accept;
    iifname != "vmm-*" accept
    ether type ip iifname . ether saddr . ip saddr @senders accept
    iifname . ether saddr . arp saddr ip @senders iifname . arp saddr ether . arp saddr ip @senders accept
    drop
  }
}
add element bridge vmm senders { vmm-ac100002 . 06:00:ac:10:00:02 . 172.16.0.2 }
add element ip vmm ports { tcp . 7000 : 172.16.0.2 . 70 }
"""


class Before:
    """A host as the version before left it: a machine `old` that runs, a forward of its, and nothing of today's vmm.

    Its Firecracker has no jail and no cgroup of its own; its record is in that version's schema, by its statements.
    """

    def __init__(self, host: Host) -> None:
        self.host, self.data, self.id = host, host.data_dir, os.urandom(16).hex()
        self.lease = lease_for(IPv4Address("172.16.0.2"))
        self.vms, self.logs = self.data / "vms" / "old", self.data / "logs"
        self.socket = self.data / "sockets" / "old.sock"
        for directory, mode in ((self.vms, 0o755), (self.logs, 0o755), (self.socket.parent, 0o700),
                                (self.data / "state" / "locks", 0o755)):  # fmt: skip
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(mode)
        self._wire()
        self.engine = self._start()
        self._record()

    def _wire(self) -> None:
        """Make bridge, tap and rules."""
        host, tap = self.host, self.lease.tap
        host.run("ip", "link", "add", "vmm-br0", "address", "06:00:ac:10:00:01", "type", "bridge")
        host.run("ip", "address", "add", "172.16.0.1/16", "broadcast", "172.16.255.255", "dev", "vmm-br0")
        host.run("ip", "link", "set", "vmm-br0", "up")
        host.run("ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr")
        host.run("ip", "link", "set", tap, "master", "vmm-br0", "up")
        host.run("ip", "link", "set", tap, "type", "bridge_slave", "isolated", "on")
        host.run("nft", "-f", "-", input=TABLES_BEFORE)

    def _start(self) -> subprocess.Popen[bytes]:
        image = self.data / "images" / "rootfs" / "tiny" / "rootfs.ext4"
        sh("cp", "--sparse=always", str(image), str(self.vms / "disk.ext4"))
        (self.vms / "disk.ext4").chmod(0o600)
        kernel = str(self.data / "images" / "kernels" / "tiny" / "vmlinux")
        drive = {"drive_id": "disk0", "path_on_host": str(self.vms / "disk.ext4"), "is_root_device": False,
                 "is_read_only": False, "cache_type": "Writeback"}  # fmt: skip
        config = {
            "boot-source": {"kernel_image_path": kernel, "boot_args": "console=ttyS0 reboot=k panic=1"},
            "drives": [drive],
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
            "network-interfaces": [{"iface_id": "eth0", "guest_mac": self.lease.mac, "host_dev_name": self.lease.tap}],
        }
        (self.vms / "engine.json").write_text(json.dumps(config))
        log = self.logs / "old.log"
        argv = [*self.host.prefix, str(self.data / "bin" / "firecracker"), "--id", self.id, "--api-sock", str(self.socket),
                "--config-file", str(self.vms / "engine.json"), "--log-path", str(log), "--level", "Error"]  # fmt: skip
        with (self.logs / "old.console").open("ab") as console, log.open("wb") as errors:
            console.write(b"\n=== vmm: old boots at 2026-01-02T00:00:00Z ===\n")
            console.flush()
            engine = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=errors,
                start_new_session=True,
                cwd="/",
                umask=0o077,
            )
        wait_for(lambda: b"tiny guest" in (self.logs / "old.console").read_bytes(), what="the guest's greeting")
        return engine

    def _record(self) -> None:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        connection = sqlite3.connect(db(self.host))
        for statement in schema._MIGRATIONS[1].split(";\n"):
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 1")
        row = ("old", self.id, 1, 128, 256, "tiny", "tiny", "firecracker", 1, '{"k": "v"}', "[]", "[]",
               int(IPv4Address(self.lease.address)), self.lease.mac, self.lease.tap, "running", 1, "2026-01-01T00:00:00Z",
               "2026-01-02T00:00:00Z", boot_id, self.engine.pid, int(ticks(self.engine.pid)), str(self.socket), None)  # fmt: skip
        connection.execute(f"INSERT INTO machines VALUES ({', '.join('?' * len(row))})", row)
        connection.execute("INSERT INTO forwards VALUES ('old', 'tcp', '0.0.0.0', 7000, 70)")
        connection.commit()
        connection.close()

    def machine(self) -> Running:
        return Running("old", self.engine.pid, ticks(self.engine.pid), (self.vms / "disk.ext4").stat().st_ino)


@pytest.fixture
def before(host: Host, tmp_path: Path) -> Iterator[Before]:
    """The host of the version before."""
    add_tiny(host, tmp_path)
    # Importing an image makes no database.
    assert not db(host).exists()
    reach_for_all(host.data_dir)
    made = Before(host)
    try:
        yield made
    finally:
        made.engine.kill()
        made.engine.wait()


@pytest.mark.fault(17, 18)
def test_whoever_only_looks_sees_the_machines_of_the_version_before_and_changes_nothing(before: Before) -> None:
    host, old = before.host, before.machine()
    kept = in_state(host)
    for arguments in (["list"], ["show", "old"], ["port-forward", "list", "old"]):
        shown = host.run(*NOBODY, *arguments, "--output", "json", env=host.environment).stdout
        assert "7000" in shown
    assert "schema 1" in host.run(*NOBODY, "db", "check", env=host.environment).stdout
    assert in_state(host) == kept
    (row,) = host.json("list")
    assert (row["name"], row["state"], row["pid"], row["labels"]) == ("old", "running", old.pid, {"k": "v"})
    assert old.goes_on(host)


@pytest.mark.fault(17, 18)
def test_machines_of_the_version_before_run_on_and_are_managed(before: Before) -> None:
    host, old = before.host, before.machine()
    # The first command that writes brings the database up to date, and keeps what was.
    host.vmm("port-forward", "add", "old", "7001:71")
    copy = next((host.data_dir / "state" / "backups").glob("vmm-v1-*.db"))
    with sqlite3.connect(copy) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT name, state, pid FROM machines").fetchall() == [("old", "running", old.pid)]
    connection.close()
    assert old.goes_on(host)
    assert host.machine("old")["pid"] == old.pid
    assert "7001" in host.run("nft", "list", "ruleset").stdout
    host.vmm("port-forward", "remove", "old", "7001:71")
    host.vmm("create", "new", *SMALL)
    host.vmm("start", "new")
    host.vmm("reconcile")
    assert host.vmm("db", "check").returncode == 0
    host.vmm("db", "backup")
    assert old.goes_on(host)
    assert {row["name"]: row["state"] for row in host.json("list")} == {"old": "running", "new": "running"}
    assert "tcp . 7000 : 172.16.0.2 . 70" in host.run("nft", "list", "ruleset").stdout
    host.vmm("stop", "old", "--timeout", "1")
    assert before.engine.wait(timeout=10) == -signal.SIGKILL
    assert host.machine("old")["state"] == "stopped"
    assert "7000" not in host.run("nft", "list", "ruleset").stdout
    assert old.name in host.vmm("start", "old").stdout
    assert host.machine("old")["ip_address"] == "172.16.0.2"
    assert (before.vms / "disk.ext4").stat().st_ino == old.inode
    host.vmm("delete", "-f", "old", "new")
    assert host.json("list") == []


@pytest.mark.fault(18)
@pytest.mark.parametrize("verb", [["stop", "old", "--force"], ["delete", "-f", "old"], ["restart", "old", "--force"]])
def test_the_first_verb_after_an_upgrade(before: Before, verb: list[str]) -> None:
    """Each verb as the very first one: rules and record are still those of the version before."""
    host = before.host
    host.vmm(*verb)
    assert before.engine.wait(timeout=10) == -signal.SIGKILL
    if verb[0] == "restart":
        assert host.machine("old")["state"] == "running"
        return
    rules = host.run("nft", "list", "ruleset").stdout
    assert "7000" not in rules
    assert "06:00:ac:10:00:02" not in rules
    assert "vmm-ac100002" not in host.run("ip", "-o", "link").stdout


@pytest.mark.fault(17, 18)
def test_the_database_of_the_version_before_is_restored_while_its_machine_runs(before: Before) -> None:
    host, old = before.host, before.machine()
    # Brought up to date, and the supervisor at rest: what is damaged next is not being written.
    host.vmm("port-forward", "add", "old", "7001:71")
    db(host).write_bytes(b"gone" * 3000)
    assert "/vmm-v1-" in host.vmm("db", "restore").stdout
    assert host.json("port-forward", "list", "old")[0]["host_port"] == 7000
    assert "7001" not in host.run("nft", "list", "ruleset").stdout
    assert (host.machine("old")["pid"], host.machine("old")["state"]) == (old.pid, "running")
    assert old.goes_on(host)
    host.vmm("stop", "old", "--force")


@pytest.mark.fault(11, 18, 19)
def test_an_upgrade_on_a_disk_without_room_can_be_looked_at_and_deleted(host: Host, tmp_path: Path) -> None:
    """There is no room for the copy, nor for the newer schema: what runs is seen all the same, and can be ended."""
    add_tiny(host, tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    with a_small_disk(small, size_mib=40) as fill:
        for part in ("bin", "images/kernels/tiny", "images/rootfs/tiny"):
            (small / "data" / part).parent.mkdir(parents=True, exist_ok=True)
            sh("cp", "-r", "--sparse=always", str(host.data_dir / part), str(small / "data" / part))
        there = Host(namespace=host.namespace, data_dir=small / "data")
        before = Before(there)
        try:
            old, content = before.machine(), db(there).read_bytes()
            fill()
            assert there.machine("old")["pid"] == old.pid
            assert "df -h" in there.fails("port-forward", "add", "old", "7001:71")
            assert db(there).read_bytes() == content
            assert old.goes_on(there)
            assert "Traceback" not in there.vmm("stop", "old", "--force", check=False).stderr
            assert before.engine.wait(timeout=10) == -signal.SIGKILL
            there.vmm("delete", "old")
            assert there.json("list") == []
            wait_for(lambda: there.processes() == [], what="the supervisor's end")
            there.vmm("teardown")
        finally:
            before.engine.kill()
            before.engine.wait()


# --- A state directory that is full or read-only ----------------------------------------------------------------------


@contextlib.contextmanager
def a_small_disk(directory: Path, *, size_mib: int) -> Iterator[Callable[[], None]]:
    """Mount a disk of its own on a directory; what is given fills it to the last byte."""

    def fill() -> None:
        for size in (1 << 16, PAGE, 1):
            with contextlib.suppress(OSError), (directory / f"filler{size}").open("wb", buffering=0) as filler:
                while filler.write(b"\0" * size):
                    pass
        assert os.statvfs(directory).f_bavail == 0

    mode = directory.stat().st_mode & 0o777
    sh("mount", "-t", "tmpfs", "-o", f"size={size_mib}M,mode={mode:o}", "vmmtest", str(directory))
    try:
        yield fill
    finally:
        # Lazily: the supervisor has its lock there.
        sh("umount", "-l", str(directory))


@contextlib.contextmanager
def on_a_small_disk(host: Host, name: str) -> Iterator[Callable[[], None]]:
    """Let a directory of the data directory lie on a disk of its own for the block; what is in it stays in it."""
    directory = host.data_dir / name
    directory.mkdir(exist_ok=True)
    kept = directory.with_name(f"{name}.kept")
    shutil.copytree(directory, kept)
    try:
        with a_small_disk(directory, size_mib=8) as fill:
            shutil.copytree(kept, directory, dirs_exist_ok=True)
            shutil.rmtree(kept)
            try:
                yield fill
            finally:
                for filler in directory.glob("filler*"):
                    filler.unlink()
                shutil.copytree(directory, kept)
    finally:
        shutil.copytree(kept, directory, dirs_exist_ok=True)
        shutil.rmtree(kept)


@pytest.mark.fault(11, 19)
def test_on_a_full_state_directory_machines_are_seen_stopped_and_deleted(tiny: Host) -> None:
    names = ("a", "b", "c")
    with on_a_small_disk(tiny, "state") as fill:
        for name in names:
            tiny.vmm("create", name, *SMALL)
        tiny.vmm("start", *names)
        tiny.vmm("port-forward", "add", "a", "7000:70")
        pids = {row["name"]: row["pid"] for row in tiny.json("list")}
        fill()
        assert {row["state"] for row in tiny.json("list")} == {"running"}
        assert tiny.machine("a")["state"] == "running"
        tiny.vmm("db", "check")
        kept = set((tiny.data_dir / "state").rglob("*"))
        for arguments in (["create", "d", *SMALL], ["db", "backup"], ["port-forward", "add", "a", "7001:1"]):
            said = tiny.fails(*arguments)
            assert "df -h" in said or "room" in said
        # Not even a copy that was begun.
        assert {path.name for path in set((tiny.data_dir / "state").rglob("*")) - kept} <= {"backups", "d"}
        assert all(ticks(pid) for pid in pids.values())
        # A machine that is stopped is stopped, and stays so: a reboot must not bring it back.
        tiny.vmm("stop", "a", "--timeout", "1")
        assert ticks(pids["a"]) == ""
        shown = tiny.machine("a")
        assert (shown["state"], shown["wanted"]) == ("stopped", False)
        tiny.vmm("delete", "-f", "b")
        assert ticks(pids["b"]) == ""
        tiny.vmm("delete", "a")
        assert [row["name"] for row in tiny.json("list")] == ["c"]
        assert ticks(pids["c"])
        assert tiny.run("ip", "-o", "link").stdout.count("vmm-ac10") == 1
        # With room again all is as it was.
        for filler in (tiny.data_dir / "state").glob("filler*"):
            filler.unlink()
        tiny.vmm("db", "check")
        tiny.vmm("restart", "c", "--force")
        tiny.vmm("db", "backup")
        tiny.vmm("delete", "-f", "c")
        wait_for(lambda: tiny.processes() == [], what="the supervisor's end")
        # By the id that goes with this disk.
        tiny.vmm("teardown")


@pytest.mark.fault(11, 19)
def test_a_log_directory_without_room_keeps_no_machine_from_being_stopped(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    with on_a_small_disk(tiny, "logs") as fill:
        tiny.vmm("start", "m")
        running = Running.of(tiny, "m")
        fill()
        assert tiny.machine("m")["state"] == "running"
        assert running.goes_on(tiny)
        tiny.vmm("stop", "m", "--timeout", "1")
        assert ticks(running.pid) == ""
        # Whether there is room for one more line is the file system's to say.
        assert "Traceback" not in tiny.vmm("start", "m", check=False).stderr
        tiny.vmm("delete", "-f", "m")


def read_only(host: Host, directories: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run vmm where these of the data directory's directories are read-only: in a mount namespace of its own."""
    paths = [str(host.data_dir / name) for name in directories]
    binds = " && ".join(f"mount --bind {path} {path} && mount -o remount,bind,ro {path}" for path in paths)
    argv = ["unshare", "-m", "sh", "-c", f'{binds} && exec "$@"', "sh", *host.prefix, *VMM, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=host.environment, timeout=120)


READ_ONLY = [("state",), ("state", "logs", "vms"), ("state", "logs", "vms", "sockets", "jails", "images")]


@pytest.mark.fault(19)
@pytest.mark.parametrize("directories", READ_ONLY, ids=" ".join)
def test_on_a_read_only_state_directory_it_is_said_and_machines_run_on(
    ready: Host, runs: Running, directories: tuple[str, ...]
) -> None:
    for directory in directories:
        (ready.data_dir / directory).mkdir(exist_ok=True)
    before = in_state(ready)
    for arguments in (
        ["list"],
        ["show", "runs"],
        ["db", "check"],
        ["console", "runs"],
        ["port-forward", "list", "runs"],
    ):
        done = read_only(ready, directories, *arguments)
        assert done.returncode == 0, done.stderr
    assert "running" in read_only(ready, directories, "list").stdout
    for arguments in (["stop", "runs"], ["stop", "--force", "runs"], ["delete", "-f", "runs"], ["restart", "--force", "runs"],
                      ["start", "stands"], ["delete", "stands"], ["create", "m", *SMALL], ["db", "backup"],
                      ["set", "stands", "--cpus", "2"], ["db", "restore", "-f"],
                      ["port-forward", "add", "runs", "7009:1"]):  # fmt: skip
        done = read_only(ready, directories, *arguments)
        assert done.returncode == 1, (arguments, done.stdout)
        assert "Error: " in done.stderr, done.stderr
        assert "To mend it: " in done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        assert "read-only" in done.stderr.lower(), done.stderr
        assert runs.goes_on(ready), arguments
    assert in_state(ready) == before


@pytest.mark.fault(19)
@pytest.mark.parametrize("directory", ["logs", "vms"])
def test_a_directory_of_machines_that_is_read_only_keeps_none_from_being_stopped(tiny: Host, directory: str) -> None:
    tiny.vmm("create", "m", *SMALL)
    tiny.vmm("start", "m")
    running = Running.of(tiny, "m")
    assert read_only(tiny, (directory,), "list").returncode == 0
    # What cannot be removed is not begun with: the machine runs on.
    done = read_only(tiny, (directory,), "delete", "-f", "m")
    assert done.returncode == 1
    assert "To mend it: " in done.stderr
    assert running.goes_on(tiny)
    assert tiny.machine("m")["state"] == "running"
    done = read_only(tiny, (directory,), "stop", "m", "--timeout", "1")
    assert done.returncode == 0, done.stderr
    assert tiny.machine("m")["state"] == "stopped"
    assert "To mend it: " in read_only(tiny, (directory,), "start", "m").stderr
    tiny.vmm("start", "m")
    assert tiny.machine("m")["state"] == "running"


# A start whose last record finds no room, nor what is kept for it: the disk fills while the engine comes up.
FILLS = """
import contextlib, sys
from pathlib import Path
from vmm.storage.store import SqliteStore
record, state = SqliteStore.record, Path(sys.argv[1])
def failing(self, name, wanted, **rest):
    if wanted.value == "running":
        (state / "reserve").unlink(missing_ok=True)
        with contextlib.suppress(OSError), (state / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
    return record(self, name, wanted, **rest)
SqliteStore.record = failing
sys.argv = ["vmm", "start", "m"]
from vmm.__main__ import main
main()
"""


@pytest.mark.fault(19)
def test_a_start_that_cannot_be_recorded_as_running_is_not_undone(tiny: Host) -> None:
    """The engine is up, and then there is no room for saying so: it runs on, and the next command knows it."""
    with on_a_small_disk(tiny, "state") as fill:
        tiny.vmm("create", "m", *SMALL)
        state = tiny.data_dir / "state"
        done = tiny.run(sys.executable, "-c", FILLS, str(state), check=False, env=tiny.environment)
        assert "Traceback" not in done.stderr
        fill()
        shown = tiny.machine("m")
        assert shown["state"] == "running"
        assert ticks(shown["pid"])
        # Nor can its stop be recorded; it is stopped all the same, and that is said.
        tiny.fails("stop", "m", "--force")
        assert ticks(shown["pid"]) == ""
        assert tiny.machine("m")["state"] in ("failed", "stopped")
        for filler in state.glob("filler*"):
            filler.unlink()
        tiny.vmm("delete", "m")
        wait_for(lambda: tiny.processes() == [], what="the supervisor's end")
        tiny.vmm("teardown")
