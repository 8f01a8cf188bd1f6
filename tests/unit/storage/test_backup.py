"""Copies of the database, and one made again from what lies beside the disks."""

import contextlib
import errno
import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import a_machine, a_spec

from vmm.errors import StateError, VmmError
from vmm.host import files
from vmm.model.limits import CPU_LIMIT, MEMORY_LIMIT_MIB, PIDS_LIMIT
from vmm.model.machine import EngineName, Limits, Machine, MachineSpec, MachineState, ProcessIdentity, RestartPolicy
from vmm.model.network import PortForward, Protocol, checked_subnet, lease_for
from vmm.model.sizes import CPUS, DISK_MIB, MEMORY_MIB
from vmm.model.value import replace
from vmm.storage import backup, description, rebuild, schema
from vmm.storage.store import SqliteStore

SUBNET = checked_subnet("172.16.0.0/16", "172.16.0.1")
TIME = "2026-01-01T00:00:00Z"
# What the version before wrote: the first of the schema's steps.
FIRST_SCHEMA = schema._MIGRATIONS[1]


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    """A database with two machines, one of them running, and a forward."""
    made = SqliteStore(path=tmp_path / "state" / "vmm.db", locks=tmp_path / "state" / "locks")
    for number, name in enumerate(("a", "b")):
        made.add(a_spec(name, labels={"k": "v"}), subnet=SUBNET, id=f"{number:032x}", created_at=TIME)
    process = ProcessIdentity(boot_id="boot", pid=7, start_ticks=9, marker="/socket")
    made.record("a", MachineState.RUNNING, process=process, wanted=True, started_at=TIME)
    made.add_forward(forward("a", 8080))
    return made


def forward(machine: str, port: int, **changes: object) -> PortForward:
    values: dict[str, object] = {"protocol": Protocol.TCP, "guest_port": 80, **changes}
    return PortForward(machine=machine, host_port=port, **values)  # type: ignore[arg-type]


def old_database(path: Path, *names: str) -> Path:
    """Make a database as the version before did, with machines that stand still."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(FIRST_SCHEMA)
    connection.execute("PRAGMA user_version = 1")
    for number, name in enumerate(names):
        lease = lease_for(IPv4Address("172.16.0.2") + number)
        connection.execute(
            "INSERT INTO machines VALUES (?, ?, 1, 512, 1024, 'default', 'default', 'qemu', 1, '{}', '[]', '[]',"
            " ?, ?, ?, 'stopped', 0, ?, NULL, NULL, NULL, NULL, NULL, NULL)",
            (name, f"{number:032x}", int(IPv4Address(lease.address)), lease.mac, lease.tap, TIME),
        )
    connection.commit()
    connection.close()
    return path


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def in_child(script: str, *arguments: str) -> int:
    """Run a script in a python of its own, and return how it ended; what it has to say of an error is shown."""
    return subprocess.run([sys.executable, "-c", script, *arguments], check=False).returncode


# A write of many pages, ended in the middle of its commit: some are in the database, the journal knows what they were.
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


def cut_off(path: Path) -> Path:
    """Leave the database within a write, as a killed vmm does; return the journal that says so."""
    assert in_child(HOT, str(path)) == 73
    journal = path.with_name(path.name + "-journal")
    # The journal's magic number (sqlite.org/fileformat2.html): without it SQLite would take it for an ended one.
    assert journal.read_bytes()[:2] == b"\xd9\xd5"
    return journal


@pytest.mark.fault(17)
def test_a_migration_keeps_a_copy_of_what_was(tmp_path: Path) -> None:
    path = old_database(tmp_path / "state" / "vmm.db", "m", "n")
    store = SqliteStore(path=path, locks=tmp_path / "locks")
    store.record("m", MachineState.STOPPED, process=None)
    assert [record.name for record in store.machines()] == ["m", "n"]
    assert backup.examine(path).version == schema.VERSION
    (copy,) = backup.copies(path)
    assert copy.path.name.startswith("vmm-v1-")
    assert not copy.by_hand
    assert backup.examine(copy.path) == backup.Condition(version=1, machines=2)
    store.record("n", MachineState.STOPPED, process=None)
    assert len(backup.copies(path)) == 1


@pytest.mark.fault(17, 24)
def test_copies_are_root_s_alone_under_any_umask(store: SqliteStore) -> None:
    old = os.umask(0)
    try:
        copy = backup.save(store.path)
    finally:
        os.umask(old)
    assert mode_of(copy) == 0o600
    assert mode_of(copy.parent) == 0o700
    assert sorted(entry.name for entry in copy.parent.iterdir()) == [copy.name]


def test_of_each_kind_the_newest_ten_stay(store: SqliteStore) -> None:
    first = backup.save(store.path)
    with sqlite3.connect(store.path) as connection:
        migrations = [backup.keep(connection, store.path, version=1) for _ in range(12)]
    connection.close()
    by_hand = [first, *(backup.save(store.path) for _ in range(11))]
    known = {copy.path for copy in backup.copies(store.path)}
    assert known == {*migrations[2:], *by_hand[2:]}
    assert backup.copies(store.path)[0].path == by_hand[-1]


def test_a_damaged_database_takes_no_good_copy_s_place(store: SqliteStore) -> None:
    good = backup.save(store.path)
    with store.path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xff" * 4096)
    with pytest.raises(StateError, match="damaged, and was not backed up") as caught:
        backup.save(store.path)
    assert "db restore" in caught.value.resolution
    assert [copy.path for copy in backup.copies(store.path)] == [good]
    store.path.unlink()
    with pytest.raises(StateError, match="no database"):
        backup.save(store.path)


@pytest.mark.parametrize("what", ["empty", "orphans"])
def test_what_could_not_be_put_back_takes_no_good_copy_s_place(store: SqliteStore, what: str) -> None:
    good = backup.save(store.path)
    if what == "empty":
        store.path.write_bytes(b"")
    else:
        with contextlib.closing(sqlite3.connect(store.path)) as connection:
            connection.execute("INSERT INTO forwards VALUES ('nobody', 'tcp', '127.0.0.1', 8080, 80)")
            connection.commit()
    for _ in range(backup.MOST + 1):
        with pytest.raises(StateError, match="was not backed up") as caught:
            backup.save(store.path)
    assert "could not be put back" in caught.value.details
    assert [copy.path for copy in backup.copies(store.path)] == [good]


def test_what_only_has_a_copy_s_name_is_none(store: SqliteStore) -> None:
    good = backup.save(store.path)
    (good.parent / "vmm-20261399T000000Z-aaaaaa.db").write_bytes(b"")
    (good.parent / "vmm-20260101T000000Z-bbbbbb.db").symlink_to("nowhere")
    assert [copy.path for copy in backup.copies(store.path)] == [good]
    assert backup.save(store.path) in {copy.path for copy in backup.copies(store.path)}


COPY = """
import os, sys
from pathlib import Path
from vmm.storage import backup
left = int(sys.argv[2])
def hook(event, arguments):
    global left
    if event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir") or event == "open" and arguments[2] & os.O_CREAT:
        left -= 1
        if left == 0:
            os._exit(73)
sys.addaudithook(hook)
path = Path(sys.argv[1])
if len(sys.argv) == 3:
    backup.save(path)
else:
    with backup.draft_of(Path(sys.argv[3]), path) as draft:
        backup.put_in_place(draft, path)
"""


@pytest.mark.fault(1, 17)
def test_a_copy_that_is_killed_at_any_step_is_whole_or_not_there(store: SqliteStore) -> None:
    for step in range(1, 100):
        code = in_child(COPY, str(store.path), str(step))
        for copy in backup.copies(store.path):
            assert backup.examine(copy.path) == backup.Condition(version=schema.VERSION, machines=2)
        if code == 0:
            break
        assert code == 73
    assert step > 4, "the failpoint never fired"
    # What the killed ones left has gone with the next.
    assert all(entry.name.startswith("vmm-") for entry in (store.path.parent / "backups").iterdir())


@pytest.mark.fault(1, 17)
def test_a_restoration_that_is_killed_at_any_step_leaves_the_old_or_the_new(store: SqliteStore, tmp_path: Path) -> None:
    copy = backup.save(store.path)
    store.remove("b")
    before = store.path.read_bytes()
    beside = store.path.parent
    for step in range(1, 100):
        for entry in beside.glob("vmm.db*"):
            entry.unlink()
        store.path.write_bytes(before)
        code = in_child(COPY, str(store.path), str(step), str(copy))
        restored = store.path.read_bytes() != before
        assert len(store.machines()) == (2 if restored else 1)
        kept = list(beside.glob("vmm.db.damaged-*"))
        if restored:
            assert [entry.read_bytes() for entry in kept] == [before]
        if code == 0:
            break
        assert code == 73
    assert step > 6, "the failpoint never fired"
    assert restored
    # What the killed ones had begun has gone with the last.
    assert not list(beside.glob(".*"))
    assert {entry.name for entry in beside.glob("vmm.db*")} == {"vmm.db", kept[0].name}


@pytest.mark.fault(1, 17)
def test_what_a_killed_copy_or_restoration_left_is_swept(store: SqliteStore) -> None:
    copy = backup.save(store.path)
    store.remove("b")
    before = store.path.read_bytes()
    beside, swept = store.path.parent, 0
    for arguments in ((), (str(copy),)):
        for step in range(1, 100):
            code = in_child(COPY, str(store.path), str(step), *arguments)
            swept += len(backup.sweep(store.path))
            assert all(entry.name.startswith("vmm-") for entry in (beside / "backups").iterdir())
            assert not list(beside.glob(".*"))
            if store.path.read_bytes() == before:
                assert [entry.name for entry in beside.glob("vmm.db*")] == ["vmm.db"]
            else:
                # What was replaced is kept, and no sweep takes it.
                assert [entry.read_bytes() for entry in beside.glob("vmm.db.damaged-*")] == [before]
                break
            if code == 0:
                break
    assert swept > 4
    assert store.path.read_bytes() != before


@pytest.mark.fault(11, 17)
def test_a_restoration_that_fails_leaves_the_old_with_its_journal_and_no_second_name(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = backup.save(store.path)
    journal = cut_off(store.path)
    halves = store.path.read_bytes(), journal.read_bytes()

    def fails(_directory: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with backup.draft_of(copy, store.path) as draft:
        monkeypatch.setattr(files, "flush_directory", fails)
        with pytest.raises(StateError):
            backup.put_in_place(draft, store.path)
    assert (store.path.read_bytes(), journal.read_bytes()) == halves
    assert {entry.name for entry in store.path.parent.glob("vmm.db*")} == {"vmm.db", "vmm.db-journal"}


@pytest.mark.fault(17)
def test_what_a_killed_write_left_is_not_played_back_into_the_new_database(store: SqliteStore) -> None:
    copy = backup.save(store.path)
    journal = cut_off(store.path)
    halves = store.path.read_bytes(), journal.read_bytes()
    with backup.draft_of(copy, store.path) as draft:
        kept = backup.put_in_place(draft, store.path)
    assert kept is not None
    assert not journal.exists()
    assert (kept.read_bytes(), kept.with_name(kept.name + "-journal").read_bytes()) == halves
    assert [record.name for record in store.machines()] == ["a", "b"]
    assert mode_of(store.path) == 0o600
    # And what was kept is whole: its own journal takes the half write back.
    assert backup.examine(kept) == backup.Condition(version=schema.VERSION, machines=2)


@pytest.mark.fault(1, 17)
def test_a_write_that_was_killed_is_taken_back_by_whoever_looks_next(store: SqliteStore) -> None:
    before = store.machines()
    cut_off(store.path)
    assert replace(store, read_only=True).machines() == before
    journal = cut_off(store.path)
    assert backup.examine(store.path).machines == 2
    assert not journal.exists()


def _write_in(
    path: str, opened: "multiprocessing.synchronize.Event", go: "multiprocessing.synchronize.Event", told
) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("SELECT count(*) FROM machines").fetchall()
    opened.set()
    go.wait(30)
    try:
        connection.execute("UPDATE machines SET state = 'failed'")
        told.put("written")
    except sqlite3.Error as error:
        told.put(str(error))


@pytest.mark.fault(17)
def test_a_process_that_had_the_old_database_open_does_not_write_into_nowhere(store: SqliteStore) -> None:
    context = multiprocessing.get_context("spawn")
    opened, go, told = context.Event(), context.Event(), context.Queue()
    writer = context.Process(target=_write_in, args=(str(store.path), opened, go, told))
    writer.start()
    assert opened.wait(30)
    with backup.draft_of(backup.save(store.path), store.path) as draft:
        backup.put_in_place(draft, store.path)
    go.set()
    assert "readonly" in told.get(timeout=30)
    writer.join()
    assert store.machine("a").state is MachineState.RUNNING


@pytest.mark.fault(17)
def test_a_database_that_is_being_written_is_not_replaced(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "_BUSY_S", 0.3)
    copy = backup.save(store.path)
    inode = store.path.stat().st_ino
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE'); print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", script, str(store.path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with backup.draft_of(copy, store.path) as draft, pytest.raises(StateError, match="in use") as caught:
            backup.put_in_place(draft, store.path)
    assert "fuser" in caught.value.resolution
    assert store.path.stat().st_ino == inode
    assert not list(store.path.parent.glob(".*"))
    assert [entry.name for entry in store.path.parent.glob("vmm.db*")] == ["vmm.db"]


@pytest.mark.fault(17)
def test_what_cannot_be_put_back_is_refused(store: SqliteStore, tmp_path: Path) -> None:
    newer, orphaned, empty, foreign = (backup.save(store.path) for _ in range(4))
    with sqlite3.connect(newer) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with sqlite3.connect(orphaned) as connection:
        connection.execute("DELETE FROM machines")
    connection.close()
    empty.write_bytes(b"")
    foreign.unlink()
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE songs (name)")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    before = store.path.read_bytes()
    for source, words in ((newer, "newer vmm"), (orphaned, "no machine"), (empty, "nothing in it"),
                          (foreign, "machines"), (tmp_path / "nosuch", "nothing in it")):  # fmt: skip
        with pytest.raises(StateError, match="cannot be put back") as caught, backup.draft_of(source, store.path):
            pass
        assert words in caught.value.details
    assert store.path.read_bytes() == before


@pytest.mark.fault(17)
def test_an_older_copy_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "state" / "vmm.db"
    copy = old_database(tmp_path / "copy.db", "m")
    before = copy.read_bytes()
    with backup.draft_of(copy, path) as draft:
        assert backup.put_in_place(draft, path) is None
    assert backup.examine(path) == backup.Condition(version=schema.VERSION, machines=1)
    assert SqliteStore(path=path, locks=tmp_path / "locks").machine("m").spec.jail is True
    assert copy.read_bytes() == before


def told(read: Callable[[], object]) -> VmmError | None:
    """Return the error that a reader is told; whatever else is raised is a bug's own trace."""
    try:
        read()
    except VmmError as error:
        return error
    return None


@pytest.mark.fault(17)
def test_whichever_byte_is_flipped_it_is_told_and_no_trace_is_shown(store: SqliteStore) -> None:
    """SQLite keeps no sums: a flipped letter of a text is that. All else is found, and never a bug's own trace."""
    good = store.path.read_bytes()
    found = 0
    # Headers of pages and the ends of pages, where rows lie, one by one; of the rest every eleventh.
    places = [n for n in range(len(good)) if good[n] or n % 11 == 0][::3]
    for place in places:
        flipped = bytearray(good)
        flipped[place] ^= 0xFF
        store.path.write_bytes(flipped)
        found += not backup.examine(store.path).is_good
        for read in (store.machines, store.forwards, store.events, lambda: store.machine("a")):
            error = told(read)
            assert error is None or (error.details and error.resolution)
    assert found > 300
    store.path.write_bytes(good)
    assert backup.examine(store.path).is_good


@pytest.mark.fault(17)
@pytest.mark.parametrize("size", [1, 15, 100, 511, 512, 4096, 5000, 8192, 20000, -4096, -1])
def test_a_database_that_was_cut_is_told(store: SqliteStore, size: int) -> None:
    os.truncate(store.path, size if size > 0 else store.path.stat().st_size + size)
    before = store.path.read_bytes()
    found = backup.examine(store.path)
    assert not found.is_good
    assert found.problems
    with pytest.raises(StateError, match="damaged"):
        backup.save(store.path)
    assert store.path.read_bytes() == before


def test_a_path_with_what_means_something_in_a_uri(tmp_path: Path) -> None:
    path = tmp_path / "50%41?mode=rw#1" / "vmm.db"
    SqliteStore(path=path, locks=tmp_path / "locks").add(a_spec("m"), subnet=SUBNET, id="0" * 32, created_at=TIME)
    assert backup.examine(path).machines == 1
    assert backup.examine(backup.save(path)).machines == 1


# --- What lies beside a disk -------------------------------------------------------------------------------------


def text(most: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), max_size=most)


def _may_be_a_server(address: IPv4Address | IPv6Address) -> bool:
    return not address.is_multicast and not (address.version == 4 and address.is_reserved)


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
RATES = st.none() | st.integers(1, 2**40)
SPECS = st.builds(
    MachineSpec,
    name=NAMES,
    cpus=st.integers(*CPUS),
    memory_mib=st.integers(*MEMORY_MIB),
    disk_mib=st.integers(*DISK_MIB),
    image=NAMES,
    kernel=NAMES,
    engine=st.sampled_from(EngineName),
    auto_start=st.booleans(),
    labels=st.dictionaries(
        NAMES.map(lambda name: name[:60]), st.from_regex(r"[A-Za-z0-9._/:@+ -]{0,40}", fullmatch=True)
    ),
    ssh_keys=st.lists(text(100)).map(tuple),
    dns=st.lists(st.ip_addresses().filter(_may_be_a_server).map(str), max_size=3).map(tuple),
    user_data=st.none() | text(20),
    jail=st.booleans(),
    limits=st.builds(
        Limits,
        cpus=st.none() | st.floats(*CPU_LIMIT),
        memory_mib=st.none() | st.integers(*MEMORY_LIMIT_MIB),
        pids=st.none() | st.integers(*PIDS_LIMIT),
        io_read_bps=RATES,
        io_write_bps=RATES,
        io_read_iops=RATES,
        io_write_iops=RATES,
    ),
    restart=st.sampled_from(RestartPolicy),
)
TIMES = st.datetimes().map(lambda moment: f"{moment.year:04}" + moment.strftime("-%m-%dT%H:%M:%SZ"))
MACHINES = st.builds(
    Machine,
    id=st.binary(min_size=16, max_size=16).map(bytes.hex),
    spec=SPECS,
    lease=st.ip_addresses(v=4).map(lease_for),
    state=st.just(MachineState.STOPPED),
    wanted=st.booleans(),
    created_at=TIMES,
    started_at=st.none() | TIMES,
)
PORTS = st.integers(1, 65535)


@settings(max_examples=200, deadline=None)
@given(
    MACHINES,
    st.lists(st.tuples(st.sampled_from(Protocol), st.ip_addresses(v=4).map(str), PORTS, PORTS), max_size=3),
)
def test_a_described_machine_comes_back_without_its_user_data(machine: Machine, ports) -> None:
    forwards = tuple(
        PortForward(machine=machine.name, protocol=protocol, host_address=address, host_port=port, guest_port=guest)
        for protocol, address, port, guest in ports
    )
    written = description.text_of(machine, forwards)
    state = MachineState.CREATED if machine.started_at is None else MachineState.STOPPED
    expected = replace(machine, state=state, spec=replace(machine.spec, user_data=None))
    assert rebuild.read_description(written) == (expected, forwards)


def test_user_data_and_processes_are_not_described() -> None:
    machine = a_machine("m", user_data="#cloud-config\npassword: very-secret\n")
    process = ProcessIdentity(boot_id="the-boot", pid=4711, start_ticks=1, marker="the-marker")
    written = description.text_of(replace(machine, process=process), ())
    for secret in ("very-secret", "the-boot", "4711", "the-marker"):
        assert secret not in written


def described(**changes: object) -> dict[str, object]:
    machine = a_machine("m", ssh_keys=("ssh-ed25519 AAAA me",), labels={"a": "b"}, dns=("1.1.1.1",))
    machine = replace(machine, id="0123456789abcdef" * 2, started_at=TIME)
    return {**json.loads(description.text_of(machine, [forward("m", 8080)])), **changes}


def a_forward(**changes: object) -> list[object]:
    return [{"protocol": "tcp", "host_address": "0.0.0.0", "host_port": 1, "guest_port": 1, **changes}]


WRONG: list[dict[str, object]] = [
    {"name": "../etc"}, {"name": "a/b"}, {"name": ""}, {"name": "-rf"}, {"name": "m\n"}, {"name": 5}, {"name": None},
    {"id": "../../up"}, {"id": "0" * 31}, {"id": "G" * 32}, {"id": "0" * 32 + "\n"},
    {"image": "../x"}, {"kernel": "x\0"}, {"engine": "xen"}, {"restart": "maybe"},
    {"cpus": 0}, {"cpus": True}, {"cpus": 1.5}, {"cpus": "1"}, {"memory_mib": 10**9}, {"disk_mib": -1},
    {"auto_start": 1}, {"jail": "no"}, {"jail": None}, {"wanted": 0},
    {"address": "172.16.0.999"}, {"address": "172.16.0.3"}, {"address": 5}, {"address": "::1"},
    {"mac": "06:00:00:00:00:00"}, {"tap": "eth0"}, {"tap": "vmm-ac100002; reboot"},
    {"created_at": "yesterday"}, {"created_at": "2026-13-01T00:00:00Z"}, {"created_at": None}, {"started_at": ""},
    {"labels": []}, {"labels": {"a": 1}}, {"labels": {"a": "$(id)"}}, {"labels": {"a=b": "c"}}, {"labels": {"": "x"}},
    {"ssh_keys": "ssh-ed25519 AAAA"}, {"ssh_keys": ["two\nlines"]}, {"ssh_keys": [1]}, {"ssh_keys": ["x" * 20000]},
    {"dns": ["dns.example"]}, {"dns": [5]}, {"dns": {}},
    {"limits": {"cpus": 1e9}}, {"limits": {"cpus": True}}, {"limits": {"cpus": float("nan")}}, {"limits": {"pids": 9.5}},
    {"limits": {"nosuch": 1}}, {"limits": {"memory_mib": "1"}}, {"limits": None},
    {"forwards": {}}, {"forwards": [1]}, {"forwards": a_forward(host_port=0)}, {"forwards": a_forward(guest_port=65536)},
    {"forwards": a_forward(protocol="icmp")}, {"forwards": a_forward(host_address="localhost")},
    {"forwards": a_forward(host_port=True)}, {"forwards": a_forward(host_port=None)},
    {"schema": schema.VERSION + 1}, {"schema": "2"},
]  # fmt: skip


@pytest.mark.fault(16, 17)
@pytest.mark.parametrize("changes", WRONG, ids=[json.dumps(change)[:50] for change in WRONG])
def test_a_description_that_was_tampered_with_is_refused(changes: dict[str, object]) -> None:
    rebuild.read_description(json.dumps(described()))
    with pytest.raises(StateError, match="cannot be used") as caught:
        rebuild.read_description(json.dumps(described(**changes)))
    assert caught.value.details
    assert caught.value.resolution


@pytest.mark.fault(17)
def test_a_description_that_was_cut_is_refused_wherever_it_was() -> None:
    whole = description.text_of(a_machine("m"), [forward("m", 8080)]).rstrip("\n")
    for end in range(len(whole)):
        with pytest.raises(StateError):
            rebuild.read_description(whole[:end])
    for missing in described():
        with pytest.raises(StateError, match="cannot be used") as caught:
            rebuild.read_description(json.dumps({key: value for key, value in described().items() if key != missing}))
        assert missing in caught.value.details
    for strange in ("", "null", "[]", "5", '"m"', "[" * 100000, "{" * 50, '{"schema": 1e400}', "9" * 5000):
        with pytest.raises(StateError):
            rebuild.read_description(strange)


def write(directory: Path, machine: Machine, *forwards: PortForward) -> Path:
    directory.mkdir(parents=True)
    path = directory / description.FILE
    path.write_text(description.text_of(machine, forwards))
    return path


def machine_at(name: str, last: int, *, created_at: str = TIME, started_at: str | None = TIME) -> Machine:
    made = a_machine(name, address=f"172.16.0.{last}")
    return replace(made, id=f"{last:032x}", created_at=created_at, started_at=started_at)


@pytest.mark.fault(17)
def test_a_database_is_made_again_from_what_lies_on_disk(tmp_path: Path) -> None:
    first, second = machine_at("a", 2), replace(machine_at("b", 3, started_at=None), wanted=True)
    write(tmp_path / "vms" / "a", first, forward("a", 80), forward("a", 53, protocol=Protocol.UDP))
    write(tmp_path / "vms" / "b", second)
    found = rebuild.look(tmp_path / "vms", SUBNET)
    assert found.left == ()
    path = tmp_path / "state" / "vmm.db"
    with backup.draft_by(lambda draft: rebuild.fill(draft, found), path) as draft:
        backup.put_in_place(draft, path)
    store = SqliteStore(path=path, locks=tmp_path / "locks")
    assert store.machines() == [first, replace(second, state=MachineState.CREATED)]
    assert store.forwards() == [forward("a", 53, protocol=Protocol.UDP), forward("a", 80)]
    assert backup.examine(path) == backup.Condition(version=schema.VERSION, machines=2)


@pytest.mark.fault(17, 26)
def test_what_is_no_machine_s_description_is_said_and_left_alone(tmp_path: Path) -> None:
    vms = tmp_path / "vms"
    write(vms / "good", machine_at("good", 2))
    (vms / "bare").mkdir()
    write(vms / "other", machine_at("name", 3))
    write(vms / "cut", machine_at("cut", 4)).write_text('{"schema"')
    write(vms / "binary", machine_at("binary", 5)).write_bytes(b"\xff\xfe{")
    write(vms / "huge", machine_at("huge", 6)).write_text(" " * (2 << 20))
    write(vms / "outside", replace(machine_at("outside", 7), lease=lease_for(IPv4Address("10.0.0.1"))))
    write(vms / "gateway", replace(machine_at("gateway", 8), lease=lease_for(IPv4Address("172.16.0.1"))))
    elsewhere = write(tmp_path / "elsewhere", machine_at("linked", 9))
    (vms / "linked").mkdir()
    (vms / "linked" / description.FILE).symlink_to(elsewhere)
    (vms / "pipe").mkdir()
    os.mkfifo(vms / "pipe" / description.FILE)
    (vms / "away").symlink_to(tmp_path / "elsewhere")
    (vms / ".staging").mkdir()
    (vms / "file").write_text("")
    found = rebuild.look(vms, SUBNET)
    assert [machine.name for machine in found.machines] == ["good"]
    why = {left.name: left.why for left in found.left}
    assert set(why) == {"bare", "other", "cut", "binary", "huge", "outside", "gateway", "linked", "pipe"}
    assert "has no machine.json" in why["bare"]
    assert "describes a machine 'name'" in why["other"]
    assert rebuild.look(tmp_path / "nosuch", SUBNET) == rebuild.Found(machines=(), forwards=(), left=())


@pytest.mark.fault(17)
def test_of_two_that_claim_the_same_the_older_has_it(tmp_path: Path) -> None:
    vms = tmp_path / "vms"
    older, younger = machine_at("z", 2), machine_at("a", 3, created_at="2026-06-01T00:00:00Z")
    write(vms / "z", older, forward("z", 80), forward("z", 90, host_address="127.0.0.1"))
    write(vms / "a", younger, forward("a", 80, host_address="127.0.0.1"), forward("a", 90, host_address="127.0.0.2"))
    copied = replace(machine_at("copy", 2, created_at="2026-07-01T00:00:00Z"), id=f"{9:032x}")
    write(vms / "copy", copied)
    write(vms / "twin", replace(machine_at("twin", 5, created_at="2026-07-01T00:00:00Z"), id=older.id))
    found = rebuild.look(vms, SUBNET)
    assert [machine.name for machine in found.machines] == ["z", "a"]
    assert sorted(left.name for left in found.left) == ["a", "copy", "twin"]
    assert [(f.machine, f.host_address, f.host_port) for f in found.forwards] == [
        ("z", "0.0.0.0", 80),
        ("z", "127.0.0.1", 90),
        ("a", "127.0.0.2", 90),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="the database is root's to make private")
def test_nobody_holds_up_a_restoration_by_a_lock_on_a_damaged_database(tmp_path: Path) -> None:
    """One of before that any user could open is another file first, whatever it holds."""
    import fcntl

    database = tmp_path / "vmm.db"
    database.write_bytes(b"noise" * 1000)
    database.chmod(0o644)
    with database.open("rb") as theirs:
        ready, done = multiprocessing.Event(), multiprocessing.Event()

        def hold() -> None:
            fcntl.lockf(theirs.fileno(), fcntl.LOCK_SH)
            ready.set()
            done.wait(30)

        holder = multiprocessing.Process(target=hold)
        holder.start()
        try:
            assert ready.wait(10)
            with backup._held(database):  # what a restoration holds
                assert database.read_bytes() == b"noise" * 1000
                assert database.stat().st_mode & 0o777 == 0o600
        finally:
            done.set()
            holder.join()
