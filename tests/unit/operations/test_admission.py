"""What a start is let in for and with: the host's memory, confinement, warnings; and a disk that is full on the way."""

from pathlib import Path

import pytest
from sites import FakeSite, end_engine, made, running, state

from vmm.errors import ConflictError, NetworkError, StateError, UsageError
from vmm.model.machine import Limits, MachineState, Owner, ProcessIdentity, RestartPolicy, Supervision
from vmm.operations.change import Changes, change
from vmm.operations.host_boot import autostart
from vmm.operations.settle import restart_waiting, settle
from vmm.operations.start import Mode, start
from vmm.operations.stop import delete, stop

# Memory


def test_memory_that_the_host_has_not_is_refused(site: FakeSite) -> None:
    site.memory = 1200
    running(site, "a")
    running(site, "b", memory_mib=600)
    made(site, "c", memory_mib=128)
    site.log.clear()
    with pytest.raises(ConflictError, match="has not the memory for the machine 'c'") as caught:
        start(site, "c")
    assert caught.value.details == "It wants 128 MiB; those that run have 1112 of the host's 1200 MiB."
    assert "--overcommit" in caught.value.resolution
    # Nothing was begun, and nothing is wished for.
    machine = site.store.machine("c")
    assert (machine.state, machine.wanted, machine.process) == (MachineState.CREATED, False, None)
    assert site.log == []


@pytest.mark.parametrize(("memory", "fits"), [(1024, True), (1023, False)])
def test_what_fits_to_the_last_mib_is_admitted(site: FakeSite, memory: int, fits: bool) -> None:
    site.memory = memory
    running(site, "a")
    made(site, "b")
    if fits:
        assert start(site, "b").machine.state is MachineState.RUNNING
    else:
        with pytest.raises(ConflictError):
            start(site, "b")


def test_what_stands_takes_no_memory(site: FakeSite) -> None:
    site.memory = 1024
    for name in ("stopped", "failed", "created"):
        made(site, name)
    start(site, "stopped")
    stop(site, "stopped", force=True)
    start(site, "failed")
    end_engine(site, "failed")
    settle(site, "failed")
    running(site, "a")
    made(site, "b")
    assert start(site, "b").machine.state is MachineState.RUNNING


def test_records_of_engines_that_are_gone_do_not_count(site: FakeSite) -> None:
    """Nobody has noticed yet: the row still says that it runs."""
    site.memory = 1024
    for name in ("gone", "here"):
        running(site, name)
    end_engine(site, "gone")
    made(site, "new")
    assert start(site, "new").machine.state is MachineState.RUNNING
    made(site, "more")
    with pytest.raises(ConflictError) as caught:
        start(site, "more")
    assert "have 1024 of the host's 1024 MiB" in caught.value.details


def test_what_waits_for_its_restart_keeps_its_memory(site: FakeSite) -> None:
    site.memory = 1024
    running(site, "waits", restart=RestartPolicy.ALWAYS)
    end_engine(site, "waits")
    assert settle(site, "waits").waits
    running(site, "a")
    made(site, "b")
    with pytest.raises(ConflictError):
        start(site, "b")
    # Its own place is there for it.
    assert restart_waiting(site, "waits", owner=None).state is MachineState.RUNNING


def test_overcommit_starts_all_the_same(site: FakeSite) -> None:
    site.memory = 600
    running(site, "a")
    made(site, "b")
    assert start(site, "b", Mode(overcommit=True)).machine.state is MachineState.RUNNING
    # Nobody is there to say it again when the host comes up, or when a machine is restarted.
    site.processes.reboot()
    assert [(outcome.name, outcome.error) for outcome in autostart(site)] == [("a", None), ("b", None)]
    change(site, "b", Changes(restart=RestartPolicy.ALWAYS))
    end_engine(site, "b")
    settle(site, "b")
    assert restart_waiting(site, "b", owner=None).state is MachineState.RUNNING


@pytest.mark.fault(2)
def test_two_starts_cannot_both_take_what_is_left(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a record is stale: while the one counts without it, the other is let in."""
    site.memory = 1600
    running(site, "stale", memory_mib=1000)
    end_engine(site, "stale")
    for name in ("a", "b"):
        made(site, name, memory_mib=900)
    stale = site.store.machine("stale").process
    asked: list[ProcessIdentity] = []
    look = site.processes.is_alive

    def is_alive(process: ProcessIdentity) -> bool:
        if process == stale and not asked:
            asked.append(process)
            start(site, "b")
        return look(process)

    monkeypatch.setattr(site.processes, "is_alive", is_alive)
    with pytest.raises(ConflictError, match="memory"):
        start(site, "a")
    assert asked
    assert [state(site, name) for name in ("a", "b")] == [MachineState.CREATED, MachineState.RUNNING]


def test_a_start_is_recorded_as_asked_for_and_by_whom(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """What outlives the command is recorded before it is made: here it looks at its own row on the way."""
    made(site)
    seen = []
    spawn = site.the_engine.spawn

    def look(plan):
        seen.append(site.store.machine("m"))
        return spawn(plan)

    monkeypatch.setattr(site.the_engine, "spawn", look)
    start(site, "m", Mode(owner=Owner.FOREGROUND))
    (machine,) = seen
    assert (machine.state, machine.wanted) == (MachineState.STARTING, True)
    assert machine.process == site.processes.this_process()
    assert machine.supervision == Supervision(owner=Owner.FOREGROUND, restarts=0, due_at=0)


# Confinement


@pytest.mark.parametrize(
    ("owner", "limits", "own_group"),
    [
        (None, Limits(), True),
        (None, Limits(cpus=1.5), True),
        (Owner.UNIT, Limits(cpus=1.5), False),  # the unit has its limits
        (Owner.FOREGROUND, Limits(), False),  # its supervisor ends it by its own cgroup
        (Owner.FOREGROUND, Limits(pids=64), True),
    ],
)
def test_who_gets_a_cgroup_of_its_own(site: FakeSite, owner: Owner | None, limits: Limits, own_group: bool) -> None:
    made(site, limits=limits)
    start(site, "m", Mode(owner=owner))
    (plan,) = site.the_engine.plans
    assert (plan.cgroup, plan.limits) == (own_group, limits)


def test_a_machine_is_jailed_unless_it_was_said_otherwise(site: FakeSite) -> None:
    site.socket_group = 999
    made(site)
    start(site, "m")
    made(site, "open", jail=False)
    start(site, "open")
    confined, loose = site.the_engine.plans
    assert (confined.uid, confined.jails, confined.socket_group) == (100_002, site.jails, 999)
    assert (loose.uid, loose.jails, loose.socket_group) == (0, None, 999)
    # Nobody but the engine's own user may open its tap.
    assert site.network.taps == {"vmm-ac100002": 100_002, "vmm-ac100003": 0}


def test_a_range_of_users_without_a_place_refuses_the_machine(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(machine: object) -> int:
        raise ConflictError("The range of user ids has no place.", details="-", resolution="-")

    monkeypatch.setattr(site, "uid_of", full)
    with pytest.raises(ConflictError, match="no place"):
        made(site)
    assert site.store.machines() == []
    assert site.log == ["remove m"]


def test_limits_and_policy_are_set_and_taken_off(site: FakeSite) -> None:
    made(site, limits=Limits(cpus=1.5, pids=64), restart=RestartPolicy.ALWAYS)
    changed = change(site, "m", Changes(limits={"cpus": None, "memory_mib": 64}, jail=False))
    assert changed.spec.limits == Limits(pids=64, memory_mib=64)
    assert not changed.spec.jail
    assert changed.spec.restart is RestartPolicy.ALWAYS
    assert site.store.events("m")[-1].detail == "jail, limits"
    for wrong in (Changes(limits={"cpus": 0.01}), Changes(limits={"pids": 7})):
        with pytest.raises(UsageError):
            change(site, "m", wrong)
    with pytest.raises(UsageError):
        made(site, "n", limits=Limits(memory_mib=1))
    assert site.store.machine("m") == changed


def test_the_policy_may_be_changed_while_it_runs_and_confinement_not(site: FakeSite) -> None:
    running(site)
    assert change(site, "m", Changes(restart=RestartPolicy.ALWAYS)).spec.restart is RestartPolicy.ALWAYS
    for held in (Changes(jail=False), Changes(limits={"cpus": 1.0})):
        with pytest.raises(ConflictError, match="cannot be changed"):
            change(site, "m", held)


# Warnings


def test_holes_are_said_once_a_host(site: FakeSite) -> None:
    site.the_engine.known_holes = ("Firecracker 1.0.0 has CVE-1.", "Firecracker 1.0.0 has CVE-2.")
    for name in ("a", "b"):
        made(site, name)
    first = start(site, "a").warnings
    assert [warning.split(" Get")[0] for warning in first] == list(site.the_engine.known_holes)
    assert all("vmm setup --force" in warning for warning in first)
    assert start(site, "b").warnings == ()
    stop(site, "a", force=True)
    assert start(site, "a").warnings == ()
    # Another release has other holes.
    stop(site, "a", force=True)
    site.the_engine.known_holes = ("Firecracker 2.0.0 has CVE-3.",)
    assert len(start(site, "a").warnings) == 1


def test_no_jail_is_said_at_every_start(site: FakeSite) -> None:
    made(site, jail=False)
    for _ in range(2):
        (warning,) = start(site, "m").warnings
        assert "m runs WITHOUT A JAIL" in warning
        assert "vmm set m --jail" in warning
        assert start(site, "m").warnings == ()  # it runs already
        stop(site, "m", force=True)


# A full disk on the way


@pytest.mark.fault(11, 19)
def test_a_warning_that_cannot_be_noted_keeps_no_machine_from_running(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(site)

    def holes() -> tuple[str, ...]:
        site.disk_is_full.add("now")
        return ("a hole.",)

    monkeypatch.setattr(site.the_engine, "holes", holes)
    assert start(site, "m").machine.state is MachineState.RUNNING


@pytest.mark.fault(11, 19)
def test_a_disk_that_fills_when_the_machine_runs_ends_nothing(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    made(site)
    monkeypatch.setattr(
        site.the_engine, "await_running", lambda plan, process, *, timeout_s: site.disk_is_full.add("now")
    )
    start(site, "m")
    assert state(site) is MachineState.RUNNING
    assert "kill 42" not in site.log
    site.processes.command += 1
    assert state(site) is MachineState.RUNNING
    site.disk_is_full.clear()
    assert start(site, "m").already
    assert site.store.machine("m").state is MachineState.RUNNING


@pytest.mark.fault(11, 19)
def test_a_disk_that_is_full_before_leaves_all_as_it_was(site: FakeSite) -> None:
    before = made(site)
    site.log.clear()
    site.disk_is_full.add("now")
    with pytest.raises(StateError, match="disk is full"):
        start(site, "m")
    assert site.log == []
    assert site.store.machine("m") == before


@pytest.mark.fault(11, 19)
def test_an_engine_that_cannot_be_recorded_is_ended(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would find it: what is recorded is only that someone is about to start it."""
    made(site)
    spawn = site.the_engine.spawn

    def fill(plan):
        site.disk_is_full.add("now")
        return spawn(plan)

    monkeypatch.setattr(site.the_engine, "spawn", fill)
    with pytest.raises(StateError, match="disk is full"):
        start(site, "m")
    assert site.processes.running == {}
    assert site.network.taps == {}
    site.processes.command += 1
    assert state(site) is MachineState.FAILED
    monkeypatch.undo()
    site.disk_is_full.clear()
    assert start(site, "m").machine.state is MachineState.RUNNING


@pytest.mark.fault(17)
@pytest.mark.parametrize("recorded", [MachineState.FAILED, MachineState.STOPPED, MachineState.RUNNING])
def test_an_engine_that_runs_all_along_is_not_taken_for_one_of_a_start_that_failed(
    site: FakeSite, recorded: MachineState
) -> None:
    """A database that was put back does not know of it; its tap is in use, and that is how the start fails."""
    machine = running(site)
    end_engine(site)
    engine = site.processes.exec(f"/{machine.id}.sock")
    process = machine.process if recorded is MachineState.RUNNING else None
    site.store.record("m", recorded, process=process, wanted=False)
    site.network.fails = NetworkError("The tap is in use.", details="-", resolution="-")
    with pytest.raises(NetworkError, match="in use"):
        start(site, "m")
    assert list(site.processes.running.values()) == [engine]
    assert site.network.taps.keys() == {machine.lease.tap}
    found = site.store.machine("m")
    assert (found.state, found.process, found.wanted) == (MachineState.RUNNING, engine, True)


@pytest.mark.fault(11, 19)
def test_a_full_disk_keeps_no_machine_from_being_stopped(site: FakeSite) -> None:
    running(site)
    site.disk_is_full.add("now")
    with pytest.raises(StateError, match="disk is full"):
        stop(site, "m", force=True)
    assert site.processes.running == {}
    assert state(site) is MachineState.FAILED
    with pytest.raises(StateError):
        delete(site, "m")
    assert site.files.made == set()
    site.disk_is_full.clear()
    delete(site, "m")
    assert site.store.machines() == []


def test_the_paths_of_a_plan_are_the_machines_own(site: FakeSite, tmp_path: Path) -> None:
    machine = running(site)
    (plan,) = site.the_engine.plans
    assert (plan.id, plan.name, plan.tap, plan.mac) == (machine.id, "m", machine.lease.tap, machine.lease.mac)
    assert (plan.disks[0].path, plan.socket) == (tmp_path / "m" / "disk", tmp_path / "m.sock")
