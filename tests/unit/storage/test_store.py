import multiprocessing
import sqlite3
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from machines import a_spec

from vmm.errors import ConflictError, NotFoundError, StateError
from vmm.model.machine import MachineState, ProcessIdentity, UnreadableRecord
from vmm.model.network import PortForward, Protocol, checked_subnet
from vmm.model.value import replace
from vmm.storage import schema
from vmm.storage.store import SqliteStore

SUBNET = checked_subnet("172.16.0.0/16", "172.16.0.1")


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(path=tmp_path / "state" / "vmm.db", locks=tmp_path / "state" / "locks")


def add(store: SqliteStore, name: str, **changes: object):
    return store.add(a_spec(name, **changes), subnet=SUBNET, id=f"id-{name}", created_at="2026-01-01T00:00:00Z")


def forward(machine: str, host_port: int = 8080, **changes: object) -> PortForward:
    values: dict[str, object] = {
        "machine": machine,
        "protocol": Protocol.TCP,
        "host_port": host_port,
        "guest_port": 80,
        **changes,
    }
    return PortForward(**values)  # type: ignore[arg-type]


def test_a_machine_comes_back_as_it_went_in(store: SqliteStore) -> None:
    made = add(store, "m", labels={"a": "b"}, ssh_keys=("ssh-ed25519 AAAA x",), dns=("1.1.1.1",), auto_start=False)
    assert store.machine("m") == made
    assert store.machines() == [made]
    assert made.lease.address == "172.16.0.2"
    assert made.lease.mac == "06:00:ac:10:00:02"


def test_an_address_stays_with_its_machine_and_is_free_after_it(store: SqliteStore) -> None:
    first, second = add(store, "a"), add(store, "b")
    assert (first.lease.address, second.lease.address) == ("172.16.0.2", "172.16.0.3")
    store.record("a", MachineState.RUNNING, process=None)
    store.record("a", MachineState.STOPPED, process=None)
    assert store.machine("a").lease == first.lease
    store.remove("a")
    assert add(store, "c").lease.address == "172.16.0.2"


def test_record_keeps_what_it_is_not_told(store: SqliteStore) -> None:
    add(store, "m")
    process = ProcessIdentity(boot_id="b", pid=7, start_ticks=9, marker="/s")
    store.record("m", MachineState.RUNNING, process=process, wanted=True, started_at="2026-01-02T00:00:00Z")
    running = store.machine("m")
    assert (running.process, running.wanted, running.started_at) == (process, True, "2026-01-02T00:00:00Z")
    store.record("m", MachineState.FAILED, process=None, reason="why")
    failed = store.machine("m")
    assert (failed.wanted, failed.started_at, failed.reason, failed.process) == (
        True,
        "2026-01-02T00:00:00Z",
        "why",
        None,
    )


def test_a_name_is_taken_once(store: SqliteStore) -> None:
    add(store, "m")
    with pytest.raises(ConflictError, match="already"):
        add(store, "m")


def test_an_unknown_name_is_told_with_what_is_like_it(store: SqliteStore) -> None:
    add(store, "webserver")
    with pytest.raises(NotFoundError) as caught:
        store.machine("webservr")
    assert "webserver" in caught.value.details


def test_a_full_subnet_is_told(store: SqliteStore) -> None:
    tiny = checked_subnet("10.0.0.0/30", "10.0.0.1")
    store.add(a_spec("a"), subnet=tiny, id="1", created_at="t")
    with pytest.raises(ConflictError, match=r"10\.0\.0\.0/30"):
        store.add(a_spec("b"), subnet=tiny, id="2", created_at="t")


def test_a_port_belongs_to_one_machine(store: SqliteStore) -> None:
    add(store, "a")
    add(store, "b")
    store.add_forward(forward("a"))
    for clash in (forward("b"), forward("b", host_address="127.0.0.1"), forward("a")):
        with pytest.raises(ConflictError, match="8080/tcp"):
            store.add_forward(clash)
    store.add_forward(forward("b", protocol=Protocol.UDP))
    store.add_forward(forward("b", host_port=9090, host_address="127.0.0.1"))
    store.add_forward(forward("b", host_port=9090, host_address="127.0.0.2"))
    with pytest.raises(ConflictError):
        store.add_forward(forward("a", host_port=9090))


def test_forwards_go_with_their_machine(store: SqliteStore) -> None:
    add(store, "a")
    store.add_forward(forward("a"))
    assert store.forwards("a") == store.forwards() == [forward("a")]
    store.remove("a")
    assert store.forwards() == []


def test_a_record_that_cannot_be_read_is_listed_and_hides_no_other(store: SqliteStore) -> None:
    add(store, "bad")
    good = add(store, "good")
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE machines SET state = 'molten' WHERE name = 'bad'")
    connection.close()
    bad, other = store.machines()
    assert isinstance(bad, UnreadableRecord)
    assert bad.name == "bad"
    assert "molten" in bad.problem
    assert other == good
    with pytest.raises(StateError, match="bad"):
        store.machine("bad")


def test_a_newer_schema_is_refused_and_left_alone(store: SqliteStore) -> None:
    add(store, "m")
    with sqlite3.connect(store.path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    before = store.path.read_bytes()
    for act in (store.machines, lambda: add(store, "n")):
        with pytest.raises(StateError, match="newer vmm"):
            act()
    assert store.path.read_bytes() == before


def test_a_damaged_database_is_told(store: SqliteStore) -> None:
    add(store, "m")
    store.path.write_bytes(b"not a database at all" * 500)
    with pytest.raises(StateError, match="damaged"):
        store.machines()


def test_looking_makes_nothing(store: SqliteStore) -> None:
    assert store.machines() == []
    assert not store.path.exists()
    assert replace(store, read_only=True).forwards() == []


def test_a_reader_needs_no_right_to_write(store: SqliteStore) -> None:
    made = add(store, "m")
    store.path.chmod(0o444)
    assert replace(store, read_only=True).machines() == [made]


def test_replace_spec_changes_only_the_spec(store: SqliteStore) -> None:
    made = add(store, "m")
    store.replace_spec("m", replace(made.spec, cpus=4, labels={"x": "y"}))
    assert store.machine("m") == replace(made, spec=replace(made.spec, cpus=4, labels={"x": "y"}))


def test_users_of(store: SqliteStore) -> None:
    add(store, "a", image="i", kernel="k")
    add(store, "b", image="j", kernel="k")
    assert list(store.users_of(image="i")) == ["a"]
    assert list(store.users_of(kernel="k")) == ["a", "b"]
    assert list(store.users_of(image="z")) == []


def _add_many(path: str, number: int, queue: "multiprocessing.Queue[str]") -> None:
    store = SqliteStore(path=Path(path) / "vmm.db", locks=Path(path) / "locks")
    try:
        for index in range(5):
            add(store, f"m{number}-{index}")
        queue.put("")
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent must see it
        queue.put(repr(error))


def test_twenty_processes_at_once_get_leases_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=_add_many, args=(str(tmp_path), number, queue)) for number in range(20)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [""] * len(workers)
    for worker in workers:
        worker.join()
    machines = SqliteStore(path=tmp_path / "vmm.db", locks=tmp_path / "locks").machines()
    assert len(machines) == 100
    assert len({IPv4Address(machine.lease.address) for machine in machines}) == 100


def test_a_lock_is_held_by_one(store: SqliteStore) -> None:
    with store.lock("m"), pytest.raises(ConflictError, match="'m'"), store.lock("m", timeout_s=0.05):
        pass
    with store.lock("m", timeout_s=0.05):
        pass


def test_the_database_is_not_writable_by_others_under_any_umask(store: SqliteStore) -> None:
    import os

    old = os.umask(0)
    try:
        add(store, "m")
        with store.lock("m"):
            pass
    finally:
        os.umask(old)
    assert store.path.stat().st_mode & 0o777 == 0o644
    assert store.path.parent.stat().st_mode & 0o777 == 0o755
    assert (store.locks / "m").stat().st_mode & 0o777 == 0o600
