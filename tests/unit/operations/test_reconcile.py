"""Each kind of thing that reconcile finds, and what it does about it; told twice, it has nothing more to do."""

import sqlite3

import pytest
from sites import FakeSite, end_engine, kinds, made, running

from vmm.errors import HostError, NetworkError
from vmm.model.facts import not_ok
from vmm.model.lifecycle import is_waiting
from vmm.model.machine import MachineState, RestartPolicy
from vmm.model.network import PortForward, Protocol
from vmm.operations.forwards import add_forward
from vmm.operations.observe import observed
from vmm.operations.reconcile import Repair, _trouble, _words, reconcile  # pyright: ignore[reportPrivateUsage]
from vmm.operations.settle import settle
from vmm.operations.start import start
from vmm.operations.stop import stop


def forward(name: str, port: int) -> PortForward:
    return PortForward(machine=name, protocol=Protocol.TCP, host_port=port, guest_port=80)


def told(repairs: tuple[Repair, ...]) -> list[tuple[str, str, bool]]:
    return [(repair.subject, repair.what, repair.done) for repair in repairs]


def records(site: FakeSite) -> list[object]:
    return list(site.store.machines())


def test_where_all_is_as_it_is_remembered_nothing_is_done(site: FakeSite) -> None:
    running(site, "runs", restart=RestartPolicy.ALWAYS)
    running(site, "waits", restart=RestartPolicy.ALWAYS)
    end_engine(site, "waits")
    settle(site, "waits")
    running(site, "stands")
    stop(site, "stands", force=True)
    made(site, "new")
    site.log.clear()
    before = records(site)
    assert reconcile(site) == ()
    assert records(site) == before
    assert site.log == ["sweep", "supervisor"]


@pytest.mark.fault(30)
def test_a_machine_that_nobody_can_look_after_runs_on_and_that_is_said(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(site, "m")

    def fail() -> None:
        raise HostError("vmm's supervisor cannot be started.", details="No room.", resolution="Make room.")

    monkeypatch.setattr(site, "ensure_supervisor", fail)
    (repair,) = reconcile(site)
    assert (repair.subject, repair.done) == ("host", False)
    assert "No room." in repair.what
    started = start(site, "m")
    assert "Nobody looks after the machine" in started.warnings[0]


def test_where_nothing_runs_no_supervisor_is_needed(site: FakeSite) -> None:
    made(site)
    site.log.clear()
    assert reconcile(site) == ()
    assert site.log == ["sweep"]


@pytest.mark.fault(13)
def test_an_engine_that_is_gone(site: FakeSite) -> None:
    running(site, "plain")
    running(site, "policy", restart=RestartPolicy.ON_FAILURE)
    for name in ("plain", "policy"):
        end_engine(site, name, console="login: ")
    (plain, policy) = told(reconcile(site))
    assert plain[0] == "plain"
    assert plain[1].startswith("it was recorded as running; its engine (pid 42) is gone")
    assert policy[1].endswith("restart 1 of 10; it is started again")
    assert plain[2]
    assert policy[2]
    assert site.store.machine("plain").state is MachineState.FAILED
    assert is_waiting(site.store.machine("policy"))
    assert (site.network.taps, site.network.rules) == ({}, {})
    # The one that waits needs someone to start it.
    assert site.log[-1] == "supervisor"
    assert reconcile(site) == ()


@pytest.mark.fault(17)
@pytest.mark.parametrize("was", [MachineState.STOPPED, MachineState.FAILED, MachineState.CREATED])
@pytest.mark.parametrize("jailed", [True, False])
def test_an_engine_of_a_machine_that_is_recorded_as_standing(site: FakeSite, was: MachineState, jailed: bool) -> None:
    running(site, jail=jailed)
    engine = site.store.machine("m").process
    site.store.record("m", was, process=None, wanted=False)
    (repair,) = reconcile(site)
    assert (repair.subject, repair.done) == ("m", True)
    assert repair.what == f"its engine runs (pid 42), and was recorded as {was}"
    machine = site.store.machine("m")
    assert (machine.state, machine.process, machine.wanted) == (MachineState.RUNNING, engine, True)
    assert site.network.taps.keys() == {machine.lease.tap}
    assert kinds(site)[-1] == "repaired"
    assert reconcile(site) == ()


@pytest.mark.fault(1)
def test_an_engine_whose_start_was_killed(site: FakeSite) -> None:
    machine = made(site)
    site.store.record("m", MachineState.STARTING, process=site.processes.this_process(), wanted=True)
    with site.network.attaching(machine.lease, ()):
        pass
    assert reconcile(site) == ()  # its command lives, and is at it
    site.processes.command += 1
    engine = site.processes.exec(f"/{machine.id}.sock")
    (repair,) = reconcile(site)
    assert (repair.subject, repair.done) == ("m", True)
    assert "was recorded as starting" in repair.what
    mended = site.store.machine("m")
    assert (mended.state, mended.process) == (MachineState.RUNNING, engine)
    assert reconcile(site) == ()


@pytest.mark.fault(17)
def test_an_engine_other_than_the_recorded_one(site: FakeSite) -> None:
    machine = running(site)
    end_engine(site)
    engine = site.processes.exec(f"/{machine.id}.sock")
    (repair,) = reconcile(site)
    assert (repair.subject, repair.done) == ("m", True)
    assert site.store.machine("m").process == engine
    assert site.network.taps.keys() == {machine.lease.tap}
    assert reconcile(site) == ()


def test_a_disk_that_is_gone_is_its_users_to_put_back(site: FakeSite) -> None:
    running(site, "ran")
    stop(site, "ran", force=True)
    made(site, "new")
    site.files.made.clear()
    before = records(site)
    ((_, new, new_done), (_, ran, ran_done)) = told(reconcile(site))
    assert new == "its creation was interrupted; finish it: vmm start new, or vmm delete new"
    assert ran.startswith("its disk is gone (")
    assert ran.endswith("); put it back, or: vmm delete ran")
    assert not new_done
    assert not ran_done
    assert records(site) == before


def test_a_record_that_cannot_be_read_is_told_and_hides_no_other(site: FakeSite) -> None:
    made(site, "bad")
    running(site, "gone")
    end_engine(site, "gone")
    with sqlite3.connect(site.store.path) as connection:
        connection.execute("UPDATE machines SET state = 'molten' WHERE name = 'bad'")
    connection.close()
    bad, gone = reconcile(site)
    assert (bad.subject, bad.done) == ("bad", False)
    assert "molten" in bad.what
    assert (gone.subject, gone.done) == ("gone", True)


def test_what_cannot_be_mended_keeps_nothing_else_from_it(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    first = running(site, "a")
    running(site, "b")
    for name in ("a", "b"):
        end_engine(site, name)
    detach = site.network.detach

    def refuse(lease, forwards):
        if lease == first.lease:
            raise NetworkError("The link cannot be removed.", details="busy", resolution="-")
        detach(lease, forwards)

    monkeypatch.setattr(site.network, "detach", refuse)
    a, b = reconcile(site)[:2]
    assert (a.subject, a.what, a.done) == ("a", "The link cannot be removed. busy To mend it: -", False)
    assert (b.subject, b.done) == ("b", True)
    assert site.store.machine("b").state is MachineState.FAILED


@pytest.mark.parametrize("what", ["jail", "cgroup", "socket", "tap", "jail and cgroup and socket and tap"])
def test_what_stands_of_a_machine_that_does_not_goes_and_nothing_else(site: FakeSite, what: str) -> None:
    stands, runs = made(site, "stands"), running(site, "runs")
    known = {
        "jail": (site.the_engine.jails, stands.id, "0" * 32),
        "cgroup": (site.processes.groups, stands.id, "0" * 32),
        "socket": (site.the_engine.sockets, site.files.socket("stands"), site.files.socket("other")),
    }
    for kind in what.split(" and "):
        if kind == "tap":
            site.network.taps |= {stands.lease.tap: 0, "vmm-0a000001": 0}
        else:
            where, own, others = known[kind]
            where |= {own, others}  # type: ignore[arg-type]
    assert told(reconcile(site)) == [("stands", f"{what} of its own were left", True)]
    # What is of no machine here may be another data directory's; what is of one that runs is in use.
    assert site.network.taps.keys() - {"vmm-0a000001"} == {runs.lease.tap}
    for where, own, _ in known.values():
        assert own not in where
    assert runs.id in site.the_engine.jails & site.processes.groups
    assert site.files.socket("runs") in site.the_engine.sockets
    assert reconcile(site) == ()


def test_a_machine_that_another_command_works_on_is_left_to_it(site: FakeSite) -> None:
    running(site, "a")
    running(site, "b")
    for name in ("a", "b"):
        end_engine(site, name)
    with site.store.lock("a"):
        assert [repair.subject for repair in reconcile(site)] == ["b"]
    assert site.store.machine("a").state is MachineState.RUNNING
    assert [repair.subject for repair in reconcile(site)] == ["a"]


@pytest.mark.fault(2)
def test_what_another_command_does_to_a_machine_meanwhile_is_no_difference(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stopped", "forwarded", "stays"):
        running(site, name)
    differences = site.network.differences

    def meanwhile(attached: list) -> list[str]:
        if site.store.machine("stopped").state is MachineState.RUNNING:
            stop(site, "stopped", force=True)
            add_forward(site, forward("forwarded", 8080))
            running(site, "new")
        return differences(attached)

    monkeypatch.setattr(site.network, "differences", meanwhile)
    assert reconcile(site) == ()
    assert reconcile(site) == ()


@pytest.mark.fault(29)
def test_rules_that_someone_removed(site: FakeSite) -> None:
    for name, port in (("a", 8080), ("b", 8081), ("c", 8082)):
        running(site, name)
        add_forward(site, forward(name, port))
    stop(site, "c", force=True)
    site.network.flush()
    site.network.admitted.add("172.16.9.9")
    found = sorted(told(reconcile(site)))
    assert found == [
        ("network", "172.16.0.2 was not in machines", True),
        ("network", "172.16.0.3 was not in machines", True),
        ("network", "172.16.9.9 was left in machines", True),
        ("network", "8080 of 172.16.0.2 was not in ports", True),
        ("network", "8081 of 172.16.0.3 was not in ports", True),
    ]
    assert site.network.rules == {
        "172.16.0.2": frozenset({forward("a", 8080)}),
        "172.16.0.3": frozenset({forward("b", 8081)}),
    }
    assert site.log.count("restore network") == 1
    assert reconcile(site) == ()


def test_what_waits_has_no_rules_until_it_is_started(site: FakeSite) -> None:
    running(site, restart=RestartPolicy.ALWAYS)
    end_engine(site)
    settle(site, "m")
    assert site.network.rules == {}
    assert reconcile(site) == ()
    # Also where the whole firewall is rendered anew.
    site.network.admitted.add("172.16.9.9")
    assert len(reconcile(site)) == 1
    assert site.network.rules == {}


def test_what_was_swept_is_told(site: FakeSite) -> None:
    running(site)
    site.left = [("gone", "a jail of its was left"), ("staging", "the working directory x-1-00000000 was left")]
    assert told(reconcile(site)) == [(subject, what, True) for subject, what in (
        ("gone", "a jail of its was left"), ("staging", "the working directory x-1-00000000 was left")
    )]  # fmt: skip


@pytest.mark.fault(4)
def test_a_host_that_was_rebooted(site: FakeSite) -> None:
    """No process, tap or rule is left, and pids begin anew: a foreign process may have any of those recorded."""
    running(site, "plain")
    running(site, "policy", restart=RestartPolicy.ON_FAILURE)
    running(site, "stopping")
    site.store.record("stopping", MachineState.STOPPING, process=site.store.machine("stopping").process, wanted=False)
    made(site, "new")
    site.processes.reboot()
    site.network.taps.clear()
    site.network.flush()
    foreign = [site.processes.exec("/usr/bin/someone-else") for _ in range(5)]
    assert {process.pid for process in foreign} >= {42, 43, 44}
    found = reconcile(site)
    assert [repair.subject for repair in found] == ["plain", "policy", "stopping"]
    assert all(repair.done for repair in found)
    assert is_waiting(site.store.machine("policy"))
    assert [site.store.machine(name).wanted for name in ("plain", "policy", "stopping")] == [True, True, False]
    assert list(site.processes.running.values()) == foreign
    assert not [entry for entry in site.log if entry.startswith("kill")]
    assert reconcile(site) == ()


def test_after_it_records_and_host_agree(site: FakeSite) -> None:
    for name in ("a", "b", "c", "d"):
        made(site, name, restart=RestartPolicy.ALWAYS if name > "b" else RestartPolicy.NO)
        start(site, name)
    end_engine(site, "a", console="reboot: Power down")
    end_engine(site, "c", console="Kernel panic - not syncing: x")
    site.store.record("d", MachineState.STOPPED, process=None)
    reconcile(site)
    for record in site.store.machines():
        assert observed(site, record) == record
    assert [record.state.value for record in site.store.machines()] == ["stopped", "running", "starting", "running"]


def test_reconcile_does_not_lead_to_itself_and_says_what_to_do() -> None:
    assert _words(not_ok("rules", "one is gone", "sudo vmm reconcile")) == "rules: one is gone"
    assert _words(not_ok("x", "p", "sudo modprobe y")) == "x: p; sudo modprobe y"
    error = HostError("It failed.", details="So.", resolution="Do this.")
    assert _trouble(error) == "It failed. So. To mend it: Do this."
