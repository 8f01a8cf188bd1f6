import contextlib
import multiprocessing
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from machines import a_spec

from vmm.errors import ConflictError, NotFoundError, StateError
from vmm.model.event import EventKind, Happening
from vmm.model.machine import (
    UNATTENDED,
    Limits,
    MachineState,
    Owner,
    ProcessIdentity,
    RestartPolicy,
    Supervision,
    UnreadableRecord,
)
from vmm.model.network import PortForward, Protocol, checked_subnet
from vmm.model.value import replace
from vmm.storage import events, schema
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
    limits = Limits(cpus=1.5, memory_mib=64, io_read_bps=10 * 1024**2)
    made = add(
        store, "m", labels={"a": "b"}, ssh_keys=("ssh-ed25519 AAAA x",), dns=("1.1.1.1",), auto_start=False,
        jail=False, limits=limits, restart=RestartPolicy.ON_FAILURE,
    )  # fmt: skip
    assert made.spec.limits == limits
    assert made.supervision == UNATTENDED
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


def test_a_write_waits_for_others_as_long_as_they_commit(store: SqliteStore) -> None:
    store.note_once("made")
    begun = threading.Event()

    def commit_again_and_again() -> None:
        with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
            for number in range(100):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO notes VALUES (?, '')", (f"other-{number}",))
                begun.set()
                time.sleep(0.01)
                connection.execute("COMMIT")

    with ThreadPoolExecutor() as pool:
        others = pool.submit(commit_again_and_again)
        assert begun.wait(10)
        with contextlib.closing(sqlite3.connect(store.path, isolation_level=None, timeout=0.5)) as connection:
            schema.begin(connection, str(store.path))
            connection.execute("ROLLBACK")
        others.result()


def test_one_that_holds_the_database_is_told(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.note_once("made")
    monkeypatch.setattr("vmm.storage.opening.BUSY_S", 0.2)
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError, match="in use"):
            store.note_once("mine")


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
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.path.parent.stat().st_mode & 0o777 == 0o755
    assert (store.locks / "m").stat().st_mode & 0o777 == 0o600


# Who looks after a machine, and what it may have


ME = ProcessIdentity(boot_id="b", pid=1, start_ticks=1, marker="")


def test_supervision_is_kept_until_it_is_told_anew(store: SqliteStore) -> None:
    add(store, "m")
    told = Supervision(owner=Owner.UNIT, restarts=3, due_at=1_800_000_000)
    store.record("m", MachineState.STARTING, process=None, supervision=told)
    store.record("m", MachineState.RUNNING, process=ME)
    assert store.machine("m").supervision == told


def test_a_start_begins_anew_whatever_was_recorded(store: SqliteStore) -> None:
    add(store, "m")
    store.record("m", MachineState.FAILED, process=None, reason="why", wanted=False)
    told = Supervision(owner=Owner.FOREGROUND, restarts=2, due_at=99)
    assert store.admit("m", process=ME, supervision=told, host_mib=None) == 0
    machine = store.machine("m")
    assert (machine.state, machine.wanted, machine.process, machine.reason) == (MachineState.STARTING, True, ME, None)
    assert machine.supervision == Supervision(owner=Owner.FOREGROUND, restarts=2, due_at=0)


@pytest.mark.parametrize("state", list(MachineState))
def test_what_may_have_an_engine_has_its_memory(store: SqliteStore, state: MachineState) -> None:
    add(store, "other", memory_mib=700)
    add(store, "m", memory_mib=500)
    store.record("other", state, process=None)
    live = state.value in ("starting", "running", "paused", "stopping")
    assert store.admit("m", process=ME, supervision=UNATTENDED, host_mib=1000) == (200 if live else 0)
    assert store.machine("m").state is (MachineState.CREATED if live else MachineState.STARTING)


def test_a_machines_own_memory_counts_once(store: SqliteStore) -> None:
    add(store, "m", memory_mib=500)
    for _ in range(2):
        assert store.admit("m", process=ME, supervision=UNATTENDED, host_mib=500) == 0
    assert store.admit("m", process=ME, supervision=UNATTENDED, host_mib=499) == 1


@pytest.mark.fault(2)
def test_of_many_starts_at_once_as_many_are_admitted_as_fit(store: SqliteStore) -> None:
    names = [f"m{number}" for number in range(6)]
    for name in names:
        add(store, name, memory_mib=500)

    def admit(name: str) -> int:
        return store.admit(name, process=ME, supervision=UNATTENDED, host_mib=1300)

    with ThreadPoolExecutor(len(names)) as pool:
        lacking = sorted(pool.map(admit, names))
    assert lacking == [0, 0, 200, 200, 200, 200]
    states = [store.machine(name).state for name in names]
    assert states.count(MachineState.STARTING) == 2


def test_any_live(store: SqliteStore) -> None:
    assert not store.any_live()
    add(store, "m")
    assert not store.any_live()
    store.record("m", MachineState.STOPPING, process=None)
    assert store.any_live()
    store.record("m", MachineState.STOPPED, process=None)
    assert not store.any_live()


# Events and notes


def happening(detail: str = "") -> Happening:
    return Happening(kind=EventKind.CHANGED, detail=detail)


def test_events_are_remembered_in_order_and_outlive_their_machine(store: SqliteStore) -> None:
    made = add(store, "m")
    add(store, "n")
    store.replace_spec("m", replace(made.spec, cpus=2), event=happening("cpus"))
    store.record("m", MachineState.RUNNING, process=None, event=Happening(kind=EventKind.STARTED, detail="qemu"))
    store.record("m", MachineState.STOPPED, process=None)  # nothing that is worth it
    store.remove("m", event=Happening(kind=EventKind.DELETED))
    assert [(event.machine, event.kind.value, event.detail) for event in store.events()] == [
        ("m", "created", "qemu, from default"),
        ("n", "created", "qemu, from default"),
        ("m", "changed", "cpus"),
        ("m", "started", "qemu"),
        ("m", "deleted", ""),
    ]
    mine = store.events("m")
    assert [event.kind.value for event in mine] == ["created", "changed", "started", "deleted"]
    assert [event.id for event in mine] == sorted({event.id for event in mine})
    assert store.events("m", after=mine[1].id) == mine[2:]
    assert store.events("m", most=1) == mine[-1:]
    assert store.events("m", after=mine[-1].id) == []
    assert store.events("nosuch") == []


def test_an_id_is_never_given_twice(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows asks for what came after the last id they saw."""
    monkeypatch.setattr(events, "MOST_EVENTS", 1)
    add(store, "a")
    first = store.events()[-1].id
    add(store, "b")
    with sqlite3.connect(store.path) as connection:
        connection.execute("DELETE FROM events")
    connection.close()
    add(store, "c")
    assert store.events()[-1].id == first + 2


@pytest.mark.fault(22)
def test_events_are_bounded_the_newest_kept(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_EVENTS", 20)
    spec = add(store, "m").spec
    for number in range(50):
        store.replace_spec("m", spec, event=happening(f"{number} " + "x" * 10_000))
    found = store.events()
    assert [int(event.detail.split()[0]) for event in found] == list(range(30, 50))
    assert {len(event.detail) for event in found} == {500}


def test_what_could_not_be_recorded_has_not_happened(store: SqliteStore) -> None:
    add(store, "m")
    with pytest.raises(ConflictError):
        add(store, "m")
    assert [event.kind for event in store.events("m")] == [EventKind.CREATED]


def test_a_note_is_new_once(store: SqliteStore) -> None:
    assert store.note_once("warned: a")
    assert not store.note_once("warned: a")
    assert store.note_once("warned: b")
    assert not replace(store, read_only=True).note_once("warned: b")


# The schema of the version before


@pytest.mark.fault(17, 18)
def test_a_database_of_the_version_before_is_brought_up_and_its_machines_run_on(store: SqliteStore) -> None:
    """Version 1 had no jails, limits, policies or events: what it knew runs on, and is confined at its next start."""
    store.path.parent.mkdir(parents=True)
    connection = sqlite3.connect(store.path, isolation_level=None)
    for statement in schema._MIGRATIONS[1].split(";\n"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(
        "INSERT INTO machines VALUES ('m', 'id-m', 2, 512, 1024, 'default', 'default', 'qemu', 1, '{\"a\": \"b\"}', '[]',"
        " '[]', 2886729730, '06:00:ac:10:00:02', 'vmm-ac100002', 'running', 1, '2026-01-01T00:00:00Z',"
        " '2026-01-02T00:00:00Z', 'b', 42, 7, '/d/m.sock', NULL)"
    )
    connection.execute("INSERT INTO forwards VALUES ('m', 'tcp', '0.0.0.0', 8080, 80)")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    before = store.path.read_bytes()
    # Whoever may only read sees it as it will be, and changes nothing.
    seen = replace(store, read_only=True).machine("m")
    assert store.path.read_bytes() == before
    machine = store.machine("m")
    assert machine == seen
    assert machine.process == ProcessIdentity(boot_id="b", pid=42, start_ticks=7, marker="/d/m.sock")
    assert (machine.state, machine.wanted, machine.lease.address) == (MachineState.RUNNING, True, "172.16.0.2")
    assert (machine.spec.jail, machine.spec.limits, machine.spec.restart) == (True, Limits(), RestartPolicy.NO)
    assert machine.supervision == UNATTENDED
    assert store.forwards() == [forward("m")]
    assert store.events() == []
    # A copy of it as it was is kept.
    copies = [path for path in (store.path.parent / "backups").iterdir() if path.read_bytes()[:6] == b"SQLite"]
    assert len(copies) == 1


def test_a_policy_that_this_vmm_does_not_know_makes_a_record_unreadable(store: SqliteStore) -> None:
    for name in ("a", "b", "c"):
        add(store, name)
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE machines SET restart = 'sometimes' WHERE name = 'a'")
        connection.execute("UPDATE machines SET owner = 'nobody' WHERE name = 'b'")
        connection.execute("UPDATE machines SET limits = '{\"speed\": 1}' WHERE name = 'c'")
    connection.close()
    found = store.machines()
    assert [type(record) for record in found] == [UnreadableRecord] * 3
    assert "sometimes" in found[0].problem  # type: ignore[union-attr]
    assert "nobody" in found[1].problem  # type: ignore[union-attr]
    assert "speed" in found[2].problem  # type: ignore[union-attr]


@pytest.mark.fault(17)
def test_an_event_of_a_newer_vmm_is_shown_by_the_name_that_it_gave_it(store: SqliteStore) -> None:
    store.add(a_spec("m"), subnet=SUBNET, id="1", created_at="2026-01-01T00:00:00Z")
    with sqlite3.connect(store.path) as connection:
        connection.execute("INSERT INTO events (at, machine, kind, detail) VALUES ('x', 'm', 'migr\x1bated', 'there')")
    connection.close()
    kind = store.events("m")[-1].kind
    assert str(kind).startswith("migr")
    assert "\x1b" not in kind
