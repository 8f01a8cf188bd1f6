"""Machines as units of systemd, and the verbs on one that waits for its restart."""

import pytest
from sites import FakeSite, end_engine, kinds, made, running, state

from vmm.errors import ConflictError, EngineError, HostError
from vmm.model.lifecycle import is_waiting
from vmm.model.machine import Machine, MachineState, Owner, RestartPolicy
from vmm.operations.change import Changes, change
from vmm.operations.host_boot import autostart, autostop
from vmm.operations.observe import view
from vmm.operations.settle import restart_waiting, settle
from vmm.operations.ssh import ssh_command
from vmm.operations.start import Mode, Wait, start
from vmm.operations.stop import StopMethod, delete, stop


def waiting(site: FakeSite, name: str = "m", **changes: object) -> Machine:
    running(site, name, restart=RestartPolicy.ALWAYS, **changes)
    end_engine(site, name, console="login: ")
    machine = settle(site, name).machine
    assert is_waiting(machine)
    site.log.clear()
    return machine


# Units


def test_systemd_is_asked_for_a_start_while_nobody_holds_the_machines_lock(site: FakeSite) -> None:
    """The unit's own command takes it; it would wait a minute for the one that waits for it."""
    site.with_units()
    made(site)
    site.log.clear()
    machine = start(site, "m").machine
    assert site.log[0] == "unit start m"
    assert site.log.count("spawn") == 1
    assert (machine.state, machine.supervision.owner) == (MachineState.RUNNING, Owner.UNIT)
    assert site.store.machine("m") == machine


def test_what_runs_is_not_asked_for_again(site: FakeSite) -> None:
    site.with_units()
    running(site)
    assert start(site, "m").already
    assert "unit start m" not in site.log


def test_what_kept_the_unit_from_it_is_what_the_user_sees(site: FakeSite) -> None:
    units = site.with_units()
    made(site)
    units.fails = EngineError("no guest", details="-", resolution="-")
    site.log.clear()
    with pytest.raises(EngineError, match="no guest"):
        start(site, "m")
    assert site.log == ["unit start m"]


def test_the_units_own_command_has_the_say_about_memory(site: FakeSite) -> None:
    site.with_units()
    site.memory = 600
    running(site, "a")
    made(site, "b")
    with pytest.raises(ConflictError, match="memory"):
        start(site, "b")
    assert start(site, "b", Mode(overcommit=True)).machine.state is MachineState.RUNNING


def test_a_start_that_waits_for_ssh_waits_outside_of_the_unit(site: FakeSite) -> None:
    site.with_units()
    made(site)
    start(site, "m", Mode(wait=Wait.SSH))
    assert site.log[-1] == "await ssh"
    assert site.log.count("await ssh") == 1


@pytest.mark.parametrize("owner", [Owner.FOREGROUND, Owner.SUPERVISOR])
def test_who_names_an_owner_asks_no_unit(site: FakeSite, owner: Owner) -> None:
    site.with_units()
    made(site)
    assert start(site, "m", Mode(owner=owner)).machine.supervision.owner is owner
    assert "unit start m" not in site.log
    stop(site, "m", force=True)
    assert "unit stop m" not in site.log


@pytest.mark.parametrize("how", ["stop", "delete", "stop what waits", "delete what waits", "stop again"])
def test_a_machines_unit_ends_with_it(site: FakeSite, how: str) -> None:
    site.with_units()
    (waiting if "waits" in how else running)(site)
    if how == "stop again":
        stop(site, "m", force=True)
        site.log.clear()
    (delete if "delete" in how else stop)(site, "m", force=True)
    # At the very end: what systemd runs when the unit ends finds that all is done.
    assert site.log[-1] == "unit stop m"


def test_a_host_that_goes_down_is_told_of_the_unit_and_not_waited_for(site: FakeSite) -> None:
    site.with_units()
    running(site)
    autostop(site)
    assert site.log[-1] == "unit stop m without waiting"


def test_a_stop_from_within_the_unit_does_not_wait_for_the_unit_that_waits_for_it(site: FakeSite) -> None:
    site.with_units()
    running(site)
    assert stop(site, "m", in_unit=True).machine.state is MachineState.STOPPED
    assert not [entry for entry in site.log if entry.startswith("unit stop")]
    # Nor for a command that is at work on the machine, and may be waiting for the unit.
    running(site, "n")
    with site.store.lock("n"), pytest.raises(ConflictError):
        stop(site, "n", in_unit=True)
    assert state(site, "n") is MachineState.RUNNING


def test_a_unit_that_cannot_be_ended_keeps_nobody_from_anything(site: FakeSite) -> None:
    units = site.with_units()
    running(site)
    units.fails = HostError("systemd is deaf", details="-", resolution="-")
    assert stop(site, "m", force=True).method is StopMethod.KILLED
    assert state(site) is MachineState.STOPPED
    delete(site, "m")
    assert site.store.machines() == []


def test_a_restart_of_vmms_own_goes_to_systemd_too(site: FakeSite) -> None:
    """systemd has lost the unit, and vmm's supervisor lost patience."""
    site.with_units()
    waiting(site)
    machine = restart_waiting(site, "m", owner=None)
    assert (machine.state, machine.supervision.owner) == (MachineState.RUNNING, Owner.UNIT)
    assert site.log[0] == "unit start m"


# What waits for its restart


def test_it_is_seen_as_starting_and_says_why(site: FakeSite) -> None:
    before = waiting(site)
    machine = view(site, "m").machine
    assert machine == before
    assert machine.state is MachineState.STARTING
    assert str(machine.reason).endswith("restart 1 of 10; it is started again")


@pytest.mark.parametrize("force", [False, True])
def test_stop_ends_the_waiting(site: FakeSite, force: bool) -> None:
    waiting(site)
    stopped = stop(site, "m", force=force)
    assert stopped.machine.state is MachineState.STOPPED
    assert not stopped.machine.wanted
    assert stopped.machine.reason is None
    assert not [entry for entry in site.log if entry.startswith(("kill", "ask", "button"))]
    assert kinds(site)[-1] == "stopped"
    # A stop that is given once more says nothing new.
    assert stop(site, "m").method is StopMethod.ALREADY
    assert kinds(site).count("stopped") == 1


def test_a_host_that_goes_down_keeps_its_wish(site: FakeSite) -> None:
    waiting(site)
    assert [(outcome.name, outcome.error) for outcome in autostop(site)] == [("m", None)]
    machine = site.store.machine("m")
    assert (machine.state, machine.wanted) == (MachineState.STOPPED, True)
    site.processes.reboot()
    assert [(outcome.name, outcome.error) for outcome in autostart(site)] == [("m", None)]
    assert state(site) is MachineState.RUNNING


def test_delete_needs_no_force(site: FakeSite) -> None:
    waiting(site)
    delete(site, "m")
    assert site.store.machines() == []
    assert not [entry for entry in site.log if entry.startswith("kill")]
    assert [event.kind for event in site.store.events("m")][-1] == "deleted"


def test_set_changes_it_and_it_goes_on_waiting(site: FakeSite) -> None:
    before = waiting(site)
    changed = change(site, "m", Changes(memory_mib=1024))
    assert changed.spec.memory_mib == 1024
    assert is_waiting(changed)
    assert changed.supervision == before.supervision
    restart_waiting(site, "m", owner=None)
    assert site.the_engine.plans[-1].memory_mib == 1024


def test_ssh_does_not_reach_it(site: FakeSite) -> None:
    waiting(site)
    with pytest.raises(ConflictError, match="cannot be reached"):
        ssh_command(site, "m")


def test_whoever_starts_it_need_not_wait(site: FakeSite) -> None:
    waiting(site)
    before = site.clock.wall
    started = start(site, "m")
    assert (started.already, started.machine.state) == (False, MachineState.RUNNING)
    assert started.machine.supervision.restarts == 0
    assert site.clock.wall == before


def test_force_of_a_delete_is_recorded_before_the_engine_is_ended(site: FakeSite) -> None:
    """Whatever then becomes of the command, nobody starts again what its user wants gone."""
    running(site, restart=RestartPolicy.ALWAYS)
    seen: list[Machine] = []
    kill = site.processes.kill

    def look(process: object) -> None:
        seen.append(site.store.machine("m"))
        kill(process)  # type: ignore[arg-type]

    site.processes.kill = look  # type: ignore[method-assign]
    delete(site, "m", force=True)
    assert [(machine.state, machine.wanted) for machine in seen] == [(MachineState.STOPPING, False)]
