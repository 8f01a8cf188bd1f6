"""What a file may hold that is to take the database's place: nothing of it is acted on that vmm would not have written."""

import sqlite3
from pathlib import Path

import pytest
from machines import a_spec

from vmm.errors import StateError
from vmm.model.machine import Machine, MachineState, ProcessIdentity
from vmm.model.network import PortForward, Protocol, checked_subnet
from vmm.storage import backup, description, vetting
from vmm.storage.store import SqliteStore

pytestmark = pytest.mark.fault(17)

SUBNET = checked_subnet("172.16.0.0/16", "172.16.0.1")
TIME = "2026-01-01T00:00:00Z"


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    """A database with two machines, one of them running, and a forward."""
    made = SqliteStore(path=tmp_path / "state" / "vmm.db", locks=tmp_path / "state" / "locks")
    for number, name in enumerate(("a", "b")):
        made.add(a_spec(name, labels={"k": "v"}), subnet=SUBNET, id=f"{number:032x}", created_at=TIME)
    process = ProcessIdentity(boot_id="boot", pid=7, start_ticks=9, marker="/socket")
    made.record("a", MachineState.RUNNING, process=process, wanted=True, started_at=TIME)
    made.add_forward(PortForward(machine="a", protocol=Protocol.TCP, host_port=8080, guest_port=80))
    return made


def changed(store: SqliteStore, sql: str) -> Path:
    """Return a copy that someone has changed."""
    copy = backup.save(store.path)
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.executescript(sql)
    connection.close()
    return copy


def vetted(store: SqliteStore, copy: Path, *, markers: tuple[str, ...] = ("/socket",)) -> sqlite3.Connection:
    with backup.draft_of(copy, store.path) as draft:
        vetting.vet(draft, copy, subnet=SUBNET, markers=lambda _: markers)
        # In memory, for the draft is gone after this.
        found = sqlite3.connect(":memory:")
        with sqlite3.connect(draft) as connection:
            connection.backup(found)
        connection.close()
        return found


WITHOUT_CONSTRAINTS = (
    "CREATE TABLE loose AS SELECT * FROM machines; DROP TABLE machines; ALTER TABLE loose RENAME TO machines;"
)


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("UPDATE machines SET name = '../../etc/passwd' WHERE name = 'b'", "../../etc/passwd"),
        ("UPDATE machines SET name = '-f' WHERE name = 'b'", "cannot be the name"),
        ("UPDATE machines SET image = '../x' WHERE name = 'b'", "'b' cannot be used"),
        ("UPDATE machines SET kernel = '/vmlinuz' WHERE name = 'b'", "'b' cannot be used"),
        ("UPDATE machines SET id = 'x' WHERE name = 'b'", "id is 'x'"),
        ("UPDATE machines SET address = 2903506947, mac = '06:00:ad:10:00:03', tap = 'vmm-ad100003' WHERE name = 'b'",
         "no address for a machine in 172.16.0.0/16"),
        ("UPDATE machines SET address = 2886729729, mac = '06:00:ac:10:00:01', tap = 'vmm-ac100001' WHERE name = 'b'",
         "no address for a machine"),
        ("UPDATE machines SET address = -1 WHERE name = 'b'", "'b'"),
        ("UPDATE machines SET tap = 'eth0' WHERE name = 'b'", "tap are not those of the address"),
        ("UPDATE machines SET mac = 'ff:ff:ff:ff:ff:ff' WHERE name = 'b'", "not those of the address"),
        ("UPDATE machines SET engine = 'xen' WHERE name = 'b'", "xen"),
        ("UPDATE machines SET state = 'flying' WHERE name = 'b'", "flying"),
        ("UPDATE machines SET restart = 'never' WHERE name = 'b'", "never"),
        ("UPDATE machines SET cpus = 0 WHERE name = 'b'", "'b' cannot be used"),
        ("UPDATE machines SET memory_mib = -5 WHERE name = 'b'", "'b' cannot be used"),
        ("UPDATE machines SET labels = '[]' WHERE name = 'b'", "'b'"),
        ("UPDATE machines SET labels = 'nonsense' WHERE name = 'b'", "'b'"),
        ("UPDATE machines SET limits = '{\"rockets\": 1}' WHERE name = 'b'", "'b'"),
        ("UPDATE machines SET ssh_keys = '[\"one\\ntwo\"]' WHERE name = 'b'", "no line of text"),
        ("UPDATE machines SET dns = '[\"example\"]' WHERE name = 'b'", "'b' cannot be used"),
        ("UPDATE machines SET created_at = 'yesterday' WHERE name = 'b'", "created_at"),
        ("UPDATE forwards SET host_port = 0", "ports 0 and 80"),
        ("UPDATE forwards SET protocol = 'icmp'", "icmp"),
        ("UPDATE forwards SET host_address = '1.2.3.4; drop'", "'a' cannot be used"),
        ("INSERT INTO forwards VALUES ('b', 'tcp', '192.0.2.1', 8080, 81)", "'a' has it"),
        (WITHOUT_CONSTRAINTS, "foreign key mismatch"),
        ("CREATE TRIGGER t AFTER UPDATE ON machines BEGIN DELETE FROM machines; END", "not as vmm makes it"),
        ("DROP TABLE events", "not as vmm makes it"),
    ],
)  # fmt: skip
def test_rows_that_vmm_would_not_have_written_are_refused_by_name(store: SqliteStore, sql: str, words: str) -> None:
    before = store.path.read_bytes()
    copy = changed(store, sql)
    with pytest.raises(StateError, match="cannot be put back") as caught:
        vetted(store, copy)
    assert words in caught.value.details
    assert store.path.read_bytes() == before
    assert not list(store.path.parent.glob(".*"))


def test_what_vmm_has_written_is_taken_as_it_is(store: SqliteStore) -> None:
    found = vetted(store, backup.save(store.path))
    assert found.execute("SELECT name, pid FROM machines ORDER BY name").fetchall() == [("a", 7), ("b", None)]


@pytest.mark.parametrize("marker", ["", "/sbin/init", "x"])
def test_a_process_that_is_no_engine_of_its_machine_is_forgotten(store: SqliteStore, marker: str) -> None:
    """With a marker that is empty any process of that pid would be taken for its own, and ended by `stop`."""
    copy = changed(store, f"UPDATE machines SET pid = 1, marker = '{marker}' WHERE name = 'a'")
    found = vetted(store, copy)
    assert found.execute("SELECT state, pid, marker FROM machines WHERE name = 'a'").fetchone() == (
        "running",
        None,
        None,
    )


def test_a_copy_of_machines_that_are_elsewhere_is_another_hosts(store: SqliteStore, tmp_path: Path) -> None:
    machines = [record for record in store.machines() if isinstance(record, Machine)]
    here = tmp_path / "vms"
    vetting.refuse_anothers(machines, here, tmp_path / "copy")
    (here / "z").mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be put back") as caught:
        vetting.refuse_anothers(machines, here, tmp_path / "copy")
    assert "another host" in caught.value.details
    (here / "a").mkdir()
    # What is not described may be its own.
    vetting.refuse_anothers(machines, here, tmp_path / "copy")
    (here / "a" / description.FILE).write_text(description.text_of(machines[0], ()))
    vetting.refuse_anothers(machines, here, tmp_path / "copy")
    with pytest.raises(StateError):
        vetting.refuse_anothers(machines[1:], here, tmp_path / "copy")
