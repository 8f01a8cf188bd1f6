"""What becomes of a machine whose engine has ended, for every end, policy, wish and state; and how often it is tried."""

from itertools import product

import pytest
from sites import Clock, FakeSite, end_engine, kinds, made, running, state

from vmm.errors import ConflictError, EngineError, NetworkError
from vmm.model.last_words import SILENT_MARK, is_off
from vmm.model.lifecycle import LIVE, is_waiting
from vmm.model.limits import HEALTHY_S, NOWHERE_S, RESTARTS_MOST, restart_delay_s
from vmm.model.machine import Machine, MachineState, Owner, RestartPolicy, Supervision
from vmm.model.value import replace
from vmm.operations.observe import view
from vmm.operations.settle import due_in_s, restart_waiting, settle
from vmm.operations.start import Mode, start
from vmm.operations.stop import stop

NO, ON_FAILURE, ALWAYS = RestartPolicy.NO, RestartPolicy.ON_FAILURE, RestartPolicy.ALWAYS
# How an engine ended: what is on the console, what is recorded where the machine is not started again, and a word of why.
ENDS = {
    "power-off": ("[  9.1] reboot: Power down\n", MachineState.STOPPED, "powered off"),
    "halt": ("[  9.1] reboot: System halted\n", MachineState.STOPPED, "powered off"),
    "reboot": ("[  9.1] reboot: Restarting system\n", MachineState.STOPPED, "rebooted"),
    "halt of 6.8": (
        "[  9.1] reboot: Power off not available: System halted instead\n",
        MachineState.STOPPED,
        "powered off",
    ),
    "the hook's power-off": (
        "vmm: the guest powers off\n[  9.1] reboot: Restarting system\n",
        MachineState.STOPPED,
        "powered off",
    ),
    "the hook's halt": ("vmm: the guest halts\n[  9.1] reboot: Restarting system\n", MachineState.STOPPED, "halted"),
    "stage-1": (
        "vmm: stage-1 FAILED: no disk /dev/vda\n[  9.1] reboot: Restarting system\n",
        MachineState.FAILED,
        "stage-1: no disk /dev/vda",
    ),
    "panic": ("Kernel panic - not syncing: no init\nreboot: Restarting system\n", MachineState.FAILED, "no init"),
    "crash": ("login: ", MachineState.FAILED, "last of the engine"),
    "out of memory": ("login: ", MachineState.FAILED, "--memory-limit"),
}
RESTARTED = {
    NO: {"reboot"},
    ON_FAILURE: {"reboot", "panic", "crash", "out of memory", "stage-1"},
    ALWAYS: set(ENDS),
}


def ended(site: FakeSite, end: str, name: str = "m") -> Machine:
    """End the engine of a machine this way; return what is recorded before anyone has noticed."""
    machine = site.store.machine(name)
    if end == "out of memory":
        site.processes.out_of_memory.add(machine.id)
    end_engine(site, name, console=ENDS[end][0])
    return machine


def waiting(site: FakeSite, name: str = "m", **changes: object) -> Machine:
    """Have a machine that waits for its restart."""
    running(site, name, restart=ON_FAILURE, **changes)
    ended(site, "crash", name)
    found = settle(site, name)
    assert found.waits
    site.log.clear()
    return found.machine


@pytest.mark.fault(4)
@pytest.mark.parametrize("auto_start", [True, False])
def test_no_policy_brings_back_after_a_reboot_of_the_host_what_is_not_to_start_by_itself(
    site: FakeSite, auto_start: bool
) -> None:
    running(site, restart=ALWAYS, auto_start=auto_start)
    site.processes.reboot()
    found = settle(site, "m")
    assert found.waits is auto_start
    assert is_waiting(found.machine) is auto_start
    if not auto_start:
        assert found.machine.state is MachineState.FAILED
        assert "the host was restarted" in (found.machine.reason or "")
        assert kinds(site)[-1] == "failed"


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    ("end", "policy", "wanted", "was"),
    list(product(ENDS, RestartPolicy, (True, False), (MachineState.RUNNING, MachineState.STARTING))),
)
def test_every_end_under_every_policy(
    site: FakeSite, end: str, policy: RestartPolicy, wanted: bool, was: MachineState
) -> None:
    """`starting` with an engine: the command that started it did not live to say that it runs."""
    running(site, restart=policy)
    site.store.record("m", was, process=site.store.machine("m").process, wanted=wanted)
    ended(site, end)
    found = settle(site, "m")
    machine = site.store.machine("m")
    assert found.machine == machine
    assert machine.process is None
    # Whatever becomes of it, nothing of the engine that was is left.
    assert site.network.taps == {}
    assert site.log == ["detach vmm-ac100002", "unlink socket", "clean up", "remove group"]
    if wanted and end in RESTARTED[policy]:
        assert found.waits
        assert is_waiting(machine)
        assert machine.wanted
        assert kinds(site)[-1] == ("rebooted" if end == "reboot" else "restarting")
    else:
        assert not found.waits
        assert machine.state is ENDS[end][1]
        # A power-off is its guest's will: a reboot of the host does not undo it.
        assert machine.wanted is (wanted and (ENDS[end][1] is MachineState.FAILED or end == "reboot"))
        assert kinds(site)[-1] == {"STOPPED": "ended", "FAILED": "failed"}[machine.state.name].replace(
            "ended", "rebooted" if end == "reboot" else "ended"
        )
    assert ENDS[end][2] in str(machine.reason)


@pytest.mark.parametrize(("end", "policy", "wanted"), list(product(ENDS, RestartPolicy, (True, False))))
def test_what_is_being_stopped_is_never_restarted(
    site: FakeSite, end: str, policy: RestartPolicy, wanted: bool
) -> None:
    """Wanted and being stopped: its host goes down."""
    running(site, restart=policy)
    site.store.record("m", MachineState.STOPPING, process=site.store.machine("m").process, wanted=wanted)
    ended(site, end)
    found = settle(site, "m")
    assert not found.waits
    assert found.machine.state not in LIVE
    assert "gave-up" not in kinds(site)


@pytest.mark.fault(1)
def test_a_stop_that_was_ended_after_the_engine_has_stopped_the_machine(site: FakeSite) -> None:
    """Its user asked for that, and it is so: that the engine was killed for it is no failure."""
    running(site)
    site.store.record("m", MachineState.STOPPING, process=site.store.machine("m").process, wanted=False)
    ended(site, "crash")
    assert state(site) is MachineState.STOPPED
    assert settle(site, "m").machine.state is MachineState.STOPPED


@pytest.mark.parametrize(("end", "policy"), list(product(ENDS, RestartPolicy)))
def test_what_a_supervisor_of_its_user_owns_is_its_supervisors_to_restart(
    site: FakeSite, end: str, policy: RestartPolicy
) -> None:
    """Who is told by the exit code of `start --foreground`; but a guest that reboots goes on."""
    made(site, restart=policy)
    start(site, "m", Mode(owner=Owner.FOREGROUND))
    ended(site, end)
    found = settle(site, "m")
    assert found.waits is (end == "reboot")
    if end != "reboot":
        assert found.machine.state is ENDS[end][1]


def test_a_supervisor_that_saw_the_want_of_memory_is_believed(site: FakeSite) -> None:
    """systemd has removed the unit's cgroup before anyone else could look into it."""
    running(site)
    ended(site, "crash")
    assert "--memory-limit" in str(settle(site, "m", out_of_memory=True).machine.reason)


def test_what_runs_or_stands_is_left_as_it_is(site: FakeSite) -> None:
    before = running(site, restart=ALWAYS)
    assert settle(site, "m").end is None
    assert site.store.machine("m") == before
    stop(site, "m", force=True)
    site.log.clear()
    before = site.store.machine("m")
    found = settle(site, "m")
    assert (found.end, found.waits, site.store.machine("m")) == (None, False, before)
    assert site.log == []


def test_an_end_is_settled_once(site: FakeSite) -> None:
    """Whoever comes second finds that it waits, and neither counts it again nor puts it off."""
    first = waiting(site)
    site.clock.sleep(0.5)
    second = settle(site, "m")
    assert (second.end, second.waits, second.machine) == (None, True, first)
    assert site.log == []


@pytest.mark.fault(1)
@pytest.mark.parametrize(("policy", "waits"), [(NO, False), (ON_FAILURE, True), (ALWAYS, True)])
def test_a_start_that_was_killed_before_its_engine_is_a_failure(
    site: FakeSite, policy: RestartPolicy, waits: bool
) -> None:
    made(site, restart=policy)
    site.store.record("m", MachineState.STARTING, process=site.processes.this_process(), wanted=True)
    assert settle(site, "m").end is None  # its command lives, and is at it
    site.processes.command += 1
    found = settle(site, "m")
    assert found.waits is waits
    assert "was ended before it was done" in str(found.machine.reason)


@pytest.mark.fault(1)
def test_an_engine_that_nobody_recorded_is_recorded(site: FakeSite) -> None:
    """A start that was killed just after it had its engine: it runs, and its next end is one that is noticed."""
    machine = made(site)
    site.store.record("m", MachineState.STARTING, process=site.processes.this_process(), wanted=True)
    site.processes.command += 1
    engine = site.processes.exec(f"/{machine.id}.sock")
    found = settle(site, "m")
    assert (found.end, found.machine.state) == (None, MachineState.RUNNING)
    assert site.store.machine("m").process == engine
    assert site.store.machine("m").state is MachineState.RUNNING


@pytest.mark.fault(17)
def test_an_engine_other_than_the_recorded_one_is_not_cut_off(site: FakeSite) -> None:
    """A database of yesterday, put back by hand: the engine that it knows is gone, and another one runs."""
    machine = running(site, restart=ALWAYS)
    ended(site, "crash")
    engine = site.processes.exec(f"/{machine.id}.sock")
    found = settle(site, "m")
    assert not found.waits
    assert site.store.machine("m").process == engine
    assert site.network.taps.keys() == {machine.lease.tap}


# How often, and when


def test_each_restart_waits_twice_as_long_until_it_is_given_up(site: FakeSite, clock: Clock) -> None:
    running(site, restart=ON_FAILURE)
    waited: list[float] = []
    while True:
        ended(site, "crash")
        found = settle(site, "m")
        if not found.waits:
            break
        assert found.machine.supervision.restarts == len(waited) + 1
        before = clock.wall
        assert restart_waiting(site, "m", owner=None).state is MachineState.RUNNING
        waited.append(clock.wall - before)
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert len(waited) == RESTARTS_MOST
    assert kinds(site)[-1] == "gave-up"
    assert found.machine.state is MachineState.FAILED
    assert "10 restarts in a row were in vain" in str(found.machine.reason)
    # Whoever starts it again has it tried anew.
    assert start(site, "m").machine.supervision.restarts == 0
    ended(site, "crash")
    assert settle(site, "m").machine.supervision.restarts == 1


@pytest.mark.parametrize(("ran_s", "restarts"), [(HEALTHY_S, 1), (HEALTHY_S - 1, 6)])
def test_a_machine_that_was_well_again_counts_anew(site: FakeSite, clock: Clock, ran_s: float, restarts: int) -> None:
    waiting(site)
    owner = Supervision(owner=Owner.SUPERVISOR, restarts=5, due_at=0)
    site.store.record("m", MachineState.STARTING, process=None, supervision=owner)
    restart_waiting(site, "m", owner=None)
    assert site.store.machine("m").supervision.restarts == 5
    clock.sleep(ran_s)
    ended(site, "panic")
    assert settle(site, "m").machine.supervision.restarts == restarts


def test_a_guests_reboot_is_not_counted_but_those_of_one_that_does_nothing_else_are(
    site: FakeSite, clock: Clock
) -> None:
    running(site)
    for _ in range(RESTARTS_MOST + 5):
        clock.sleep(NOWHERE_S)
        ended(site, "reboot")
        found = settle(site, "m")
        assert (found.machine.supervision.restarts, due_in_s(found.machine)) == (0, 0)
        restart_waiting(site, "m", owner=None)
    for number in range(1, RESTARTS_MOST + 1):
        ended(site, "reboot")
        found = settle(site, "m")
        assert found.waits
        assert (found.machine.supervision.restarts, due_in_s(found.machine)) == (number, restart_delay_s(number - 1))
        assert site.store.events("m")[-1].detail == f"the guest rebooted; restart {number} of {RESTARTS_MOST}"
        restart_waiting(site, "m", owner=None)
    ended(site, "reboot")
    found = settle(site, "m")
    assert not found.waits
    assert found.machine.state is MachineState.FAILED
    assert found.machine.reason == f"{RESTARTS_MOST} restarts in a row were in vain; the guest rebooted"
    assert kinds(site)[-1] == "gave-up"


def test_a_second_reboot_soon_after_a_start_of_its_users_is_none_of_a_loop(site: FakeSite) -> None:
    running(site)
    ended(site, "reboot")
    found = settle(site, "m")
    assert (found.machine.supervision.restarts, due_in_s(found.machine)) == (0, 2.0)


@pytest.mark.fault(46)
@pytest.mark.parametrize("policy", RestartPolicy)
def test_a_guest_of_which_nothing_was_heard_is_reset_once_under_every_policy(
    site: FakeSite, policy: RestartPolicy
) -> None:
    running(site, restart=policy)
    for number in (1, 2):
        end_engine(site, "m", console=SILENT_MARK.format(name="m", why="nothing was heard of it for 60 s"))
        found = settle(site, "m")
        waits = number == 1 or policy is not NO
        assert found.waits is waits
        assert kinds(site)[-1] == ("reset" if waits else "failed")
        assert "nothing was heard of it for 60 s" in str(found.machine.reason)
        assert found.machine.supervision.restarts == (number if waits else 1)
        if waits:
            restart_waiting(site, "m", owner=None)


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    ("set_to", "left"), [(0, 4.0), (+2, 2.0), (+4, 0.0), (+5000, 0.0), (-100, 104.0), (-117, 0.0), (-(10**9), 0.0)]
)
def test_a_clock_that_is_set_puts_no_restart_off(site: FakeSite, clock: Clock, set_to: float, left: float) -> None:
    machine = waiting(site)
    due = Supervision(owner=Owner.SUPERVISOR, restarts=3, due_at=int(clock.wall) + 4)
    clock.wall += set_to
    assert due_in_s(replace(machine, supervision=due)) == left


@pytest.mark.fault(32)
def test_a_clock_that_is_set_back_makes_no_machine_well(site: FakeSite, clock: Clock) -> None:
    running(site, restart=ALWAYS)
    clock.wall -= 10**6
    ended(site, "crash")
    assert settle(site, "m").machine.supervision.restarts == 1
    # One that is set forward makes it well, and brings an hour of tries: no more than that.
    restart_waiting(site, "m", owner=None)
    clock.wall += 10**6
    ended(site, "crash")
    assert settle(site, "m").machine.supervision.restarts == 1


# restart_waiting


def test_a_restart_comes_when_it_is_due(site: FakeSite, clock: Clock) -> None:
    machine = waiting(site)
    assert due_in_s(machine) == 1.0
    started = restart_waiting(site, "m", owner=Owner.UNIT)
    assert clock.wall == machine.supervision.due_at
    assert (started.state, started.supervision) == (
        MachineState.RUNNING,
        Supervision(owner=Owner.UNIT, restarts=1, due_at=0),
    )
    assert kinds(site)[-2:] == ["restarting", "started"]
    assert site.store.events("m")[-1].detail.endswith("restart 1")


def test_a_restart_that_is_due_comes_at_once(site: FakeSite, clock: Clock) -> None:
    waiting(site)
    clock.sleep(30)
    before = clock.wall
    assert restart_waiting(site, "m", owner=None).state is MachineState.RUNNING
    assert clock.wall == before


def test_one_that_was_stopped_meanwhile_stays_so(site: FakeSite, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(site)
    sleep = clock.sleep

    def meanwhile(seconds: float) -> None:
        sleep(seconds)
        stop(site, "m")

    monkeypatch.setattr(clock, "sleep", meanwhile)
    with pytest.raises(ConflictError, match="does not wait"):
        restart_waiting(site, "m", owner=None)
    machine = site.store.machine("m")
    assert (machine.state, machine.wanted) == (MachineState.STOPPED, False)
    assert "spawn" not in site.log


def test_one_that_was_started_meanwhile_is_left_to_whoever_did(
    site: FakeSite, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start by hand that failed is its user's to judge: nothing is tried again in their back."""
    waiting(site)
    sleep = clock.sleep

    def meanwhile(seconds: float) -> None:
        sleep(seconds)
        site.the_engine.fails = EngineError("no guest", details="-", resolution="-")
        with pytest.raises(EngineError):
            start(site, "m")

    monkeypatch.setattr(clock, "sleep", meanwhile)
    with pytest.raises(ConflictError, match="does not wait"):
        restart_waiting(site, "m", owner=None)
    machine = site.store.machine("m")
    assert machine.state is MachineState.FAILED
    assert str(machine.reason).startswith("no guest")


FAILURES = {
    "no engine": ("fails_to_spawn", EngineError("no engine", details="-", resolution="-")),
    "no guest": ("fails", EngineError("no guest", details="-", resolution="-")),
    "no network": ("network", NetworkError("no bridge", details="-", resolution="-")),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_restart_that_fails_is_another_end(site: FakeSite, clock: Clock, what: str) -> None:
    """However long the machine ran before: what did not come up is not well, and is given up one day."""
    running(site, restart=ON_FAILURE)
    clock.sleep(2 * HEALTHY_S)
    ended(site, "crash")
    settle(site, "m")
    where, error = FAILURES[what]
    setattr(*((site.network, "fails") if where == "network" else (site.the_engine, where)), error)
    waited: list[float] = []
    while is_waiting(site.store.machine("m")):
        assert len(waited) <= RESTARTS_MOST, "it is tried without end"
        before = clock.wall
        with pytest.raises(type(error)):
            restart_waiting(site, "m", owner=None)
        waited.append(clock.wall - before)
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    machine = site.store.machine("m")
    assert machine.state is MachineState.FAILED
    assert error.brief in str(machine.reason)
    assert kinds(site)[-1] == "gave-up"
    assert site.processes.running == {}


def test_a_restart_that_fails_once_is_followed_by_one_that_works(site: FakeSite) -> None:
    waiting(site)
    site.the_engine.fails = EngineError("no guest", details="-", resolution="-")
    with pytest.raises(EngineError):
        restart_waiting(site, "m", owner=None)
    assert is_waiting(site.store.machine("m"))
    assert site.store.machine("m").supervision.restarts == 2
    site.the_engine.fails = None
    assert restart_waiting(site, "m", owner=None).supervision.restarts == 2


@pytest.mark.parametrize("has", ["run", "stopped", "failed", "created"])
def test_what_does_not_wait_is_not_restarted(site: FakeSite, has: str) -> None:
    made(site)
    if has != "created":
        start(site, "m")
    if has == "stopped":
        stop(site, "m", force=True)
    if has == "failed":
        ended(site, "crash")
        settle(site, "m")
    site.log.clear()
    before = site.store.machine("m")
    with pytest.raises(ConflictError, match="does not wait for a restart") as caught:
        start(site, "m", Mode(again=True))
    assert before.state in caught.value.details
    assert site.store.machine("m") == before
    assert site.log == []


# The end of a console


@pytest.mark.parametrize(
    ("words", "off"),
    [
        ("[1.0] reboot: Power down", True),
        ("localhost login: [1.0] reboot: Power off not available: System halted instead\r\n", True),
        ("[1.0] reboot: Power down\n\n", True),
        ("[1.0] reboot: System halted\r\n", True),
        ("[1.0] reboot: Power down\nlogin:", False),
        ("[1.0] reboot: Power down and up", False),
        ("reboot: Restarting system", False),
        ("", False),
    ],
)
def test_a_guest_is_off_when_that_was_its_last_word(words: str, off: bool) -> None:
    assert is_off(words) is off


def test_looking_at_an_end_writes_nothing(site: FakeSite) -> None:
    before = running(site, restart=ALWAYS)
    ended(site, "crash")
    site.log.clear()
    assert view(site, "m").machine.state is MachineState.FAILED
    assert site.store.machine("m") == before
    assert site.log == []
