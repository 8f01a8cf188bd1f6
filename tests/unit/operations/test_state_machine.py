"""Every verb in any order, ended in the middle at any step, on a host that is rebooted and guests that go as they like.

Hypothesis drives the operations against the simplest model of what a user is owed: what they last asked for of each
machine. What must hold after every step is said in the invariants; what must hold after a reconcile, in `reconciled`.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sites import Clock, FakeSite, Killed

from vmm.errors import ConflictError, EngineError, NotFoundError, VmmError
from vmm.model.lifecycle import LIVE, is_waiting
from vmm.model.limits import RESTARTS_MOST
from vmm.model.machine import Machine, MachineState, ProcessIdentity, RestartPolicy
from vmm.model.network import PortForward, Protocol
from vmm.operations.change import Changes, change
from vmm.operations.create import CreateRequest, create
from vmm.operations.forwards import add_forward, remove_forward
from vmm.operations.host_boot import autostart, autostop
from vmm.operations.observe import observed
from vmm.operations.reconcile import reconcile
from vmm.operations.settle import restart_waiting, settle
from vmm.operations.start import start
from vmm.operations.stop import delete, stop

NAMES = st.sampled_from(["a", "b"])
# Of those that there are, and of those that have an engine.
KNOWN = st.runner().flatmap(lambda self: st.sampled_from(sorted(self.wanted)))
LIVING = st.runner().flatmap(lambda self: st.sampled_from(self.living()))
POLICIES = st.sampled_from(list(RestartPolicy))
PORTS = st.sampled_from([8080, 8081])
# The longest command has eleven steps.
STEPS = st.integers(0, 11)
DEATHS = st.sampled_from([Killed, KeyboardInterrupt])
# The last words on a console, by how the engine ended; and under which policy that is followed by a restart.
ENDS = {
    "crash": "login: ",
    "power-off": "reboot: Power down",
    "reboot": "reboot: Restarting system",
    "panic": "Kernel panic - not syncing: no init",
}
RESTARTED = {
    RestartPolicy.NO: {"reboot"},
    RestartPolicy.ON_FAILURE: {"reboot", "crash", "panic"},
    RestartPolicy.ALWAYS: set(ENDS),
}


# What a verb asks for: that the machine runs, or not.
ASKED = {"start": True, "stop": False, "kill": False, "delete": False}


def is_ended(*verbs: str, lives: bool | None = None):
    """Return the rule that one of these commands is ended before one of its steps, on a machine that lives or not."""

    def names(self) -> list[str]:
        return [name for name in sorted(self.wanted) if lives is None or self.lives(name) is lives]

    chosen = st.runner().flatmap(lambda self: st.sampled_from(names(self)))

    @precondition(names)
    @rule(
        verb=st.sampled_from(verbs), name=chosen, policy=POLICIES, port=PORTS, step=STEPS, death=DEATHS,
        reconciled=st.booleans(),
    )  # fmt: skip
    def is_ended(self, verb, name, policy, port, step, death, reconciled):
        self.end(verb, name, policy, port, step, death)
        if reconciled:
            self.reconciled()

    return is_ended


def forward(name: str, port: int) -> PortForward:
    return PortForward(machine=name, protocol=Protocol.TCP, host_port=port, guest_port=80)


class Operations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        # In memory where there is such a place: thousands of small writes are nothing to wait for.
        self._directory = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        clock = Clock()
        clock.install(self._patch)
        self.site = FakeSite(Path(self._directory.name), clock)
        self._records: dict[str, Machine] = {}
        self._seen = -1  # after how many writes
        self.wanted: dict[str, bool] = {}  # what the user last asked for, of every machine that there is

    def teardown(self) -> None:
        self._patch.undo()
        self._directory.cleanup()

    # How the tests see the host

    def records(self) -> dict[str, Machine]:
        if self._seen != self.site.log.writes:
            self._records = {m.name: m for m in self.site.store.machines() if isinstance(m, Machine)}
            self._seen = self.site.log.writes
        return self._records

    def engines(self, machine: Machine) -> list[ProcessIdentity]:
        markers = self.site.the_engine.markers(machine_id=machine.id, socket=self.site.files.socket(machine.name))
        return [process for process in self.site.processes.running.values() if process.marker in markers]

    def lives(self, name: str) -> bool:
        return bool(self.engines(self.records()[name]))

    def living(self) -> list[str]:
        return [name for name, machine in sorted(self.records().items()) if self.engines(machine)]

    def has_lost_its_disk(self, name: str) -> bool:
        return not self.site.files.is_made(name) and self.records()[name].started_at is not None

    # How the user's commands run

    def command(self, act: Callable[[], object]) -> object:
        try:
            return act()
        finally:
            self.site.log.go_on()
            self.site.processes.command += 1

    def ended(self, step: int, death: type[BaseException], act: Callable[[], object]) -> bool:
        """Run a command that is ended before this step of it; return whether it came that far."""
        self.site.log.end_at(step, death())
        try:
            act()
        except (Killed, KeyboardInterrupt):
            assert self.site.log.go_on(), "nobody ended it"
            return True
        except VmmError:
            # Refused, or failed, before that.
            assert not self.site.log.go_on(), "an end was taken for an error"
            return False
        finally:
            self.site.processes.command += 1
        assert not self.site.log.go_on(), "an end was passed over"
        return False

    def verbs(self, name: str, policy: RestartPolicy, port: int) -> dict[str, Callable[[], object]]:
        return {
            "create": lambda: create(self.site, CreateRequest(name=name, restart=policy)),
            "start": lambda: start(self.site, name),
            "stop": lambda: stop(self.site, name, timeout_s=1.0),
            "kill": lambda: stop(self.site, name, force=True),
            "quit": lambda: stop(self.site, name, force=True, keep_wanted=True),
            "delete": lambda: delete(self.site, name, force=True),
            "set": lambda: change(self.site, name, Changes(restart=policy)),
            "forward": lambda: add_forward(self.site, forward(name, port)),
            "unforward": lambda: remove_forward(self.site, forward(name, port)),
            "settle": lambda: self.supervise(name),
            "reconcile": lambda: reconcile(self.site),
        }

    def supervise(self, name: str) -> None:
        if settle(self.site, name).waits:
            restart_waiting(self.site, name, owner=None)

    @initialize(policies=st.tuples(POLICIES, POLICIES), runs=st.booleans())
    def there_are_machines(self, policies: tuple[RestartPolicy, RestartPolicy], runs: bool) -> None:
        for name, policy in zip("ab", policies, strict=True):
            self.create(name, policy)
        self.start("a")
        if runs:
            self.start("b")

    # Rules: what the user does

    @rule(name=NAMES, policy=POLICIES)
    def create(self, name: str, policy: RestartPolicy) -> None:
        there = self.records().get(name)
        act = self.verbs(name, policy, 0)["create"]
        if there is not None and (self.site.files.is_made(name) or there.state is not MachineState.CREATED):
            with pytest.raises(ConflictError):
                self.command(act)
            return
        self.command(act)
        self.wanted[name] = False
        assert self.records()[name].spec.restart is policy

    @rule(name=NAMES)
    def start(self, name: str) -> None:
        if name not in self.wanted:
            with pytest.raises(NotFoundError):
                self.command(lambda: start(self.site, name))
        elif not self.lives(name) and self.has_lost_its_disk(name):
            # Half deleted: no disk is made anew under a machine that ran.
            with pytest.raises(EngineError, match="lost its disk"):
                self.command(lambda: start(self.site, name))
            assert not self.lives(name)
        else:
            self.command(lambda: start(self.site, name))
            assert self.lives(name)
            assert self.records()[name].state is MachineState.RUNNING
            self.wanted[name] = True

    @precondition(lambda self: self.wanted)
    @rule(name=KNOWN, force=st.booleans(), obeys=st.booleans())
    def stop(self, name: str, force: bool, obeys: bool) -> None:
        self.site.guest.obeys = obeys
        self.command(lambda: stop(self.site, name, force=force, timeout_s=1.0))
        assert not self.lives(name)
        assert self.records()[name].state not in LIVE
        self.wanted[name] = False

    @precondition(lambda self: self.wanted)
    @rule(name=KNOWN, force=st.booleans())
    def delete(self, name: str, force: bool) -> None:
        if self.lives(name) and not force:
            with pytest.raises(ConflictError):
                self.command(lambda: delete(self.site, name))
            return
        machine = self.records()[name]
        self.command(lambda: delete(self.site, name, force=force))
        assert self.engines(machine) == []
        assert machine.lease.tap not in self.site.network.taps
        del self.wanted[name]

    @precondition(lambda self: self.wanted)
    @rule(name=KNOWN, policy=POLICIES)
    def set(self, name: str, policy: RestartPolicy) -> None:
        self.command(lambda: change(self.site, name, Changes(restart=policy)))
        assert self.records()[name].spec.restart is policy

    @precondition(lambda self: self.wanted)
    @rule(name=KNOWN, port=PORTS)
    def forward(self, name: str, port: int) -> None:
        taken = {known.host_port: known for known in self.site.store.forwards()}
        if port in taken:
            with pytest.raises(ConflictError):
                self.command(lambda: add_forward(self.site, forward(name, port)))
            self.command(lambda: remove_forward(self.site, taken[port]))
            assert port not in {known.host_port for _, known in self.site.network.ports}, "it is open still"
        else:
            self.command(lambda: add_forward(self.site, forward(name, port)))
            if self.lives(name) and observed(self.site, self.records()[name]).state is MachineState.RUNNING:
                assert (self.records()[name].lease.address, forward(name, port)) in self.site.network.ports

    # Rules: what happens to the user

    @precondition(lambda self: self.living())
    @rule(name=LIVING, how=st.sampled_from(list(ENDS)), settled=st.booleans(), restart=st.booleans())
    def an_engine_ends(self, name: str, how: str, settled: bool, restart: bool) -> None:
        self.site.files.consoles[name] = ENDS[how]
        self.site.processes.end(self.engines(self.records()[name])[0])
        if settled:
            self.settle(name, restart=restart)

    @rule(
        what=st.sampled_from(["time passes", "is flushed", "crashes", "goes down", "starts what ran", "is reconciled"])
    )
    def the_host(self, what: str) -> None:
        match what:
            case "time passes":
                self.site.clock.sleep(700)
            case "is flushed":
                self.site.network.flush()
            case "goes down":
                self.go_down()
            case "crashes":
                self.site.processes.reboot()
                self.site.network.taps.clear()
                self.site.network.flush()
            case "starts what ran":
                self.start_what_ran()
            case _:
                self.reconciled()

    @precondition(lambda self: self.wanted)
    @rule(name=KNOWN, restart=st.booleans())
    def the_supervisor_settles(self, name: str, restart: bool) -> None:
        self.settle(name, restart=restart)

    def settle(self, name: str, *, restart: bool) -> None:
        before, lived = self.records()[name], self.lives(name)
        found = self.command(lambda: settle(self.site, name))
        waits = self.is_owed_a_restart(before, lived)
        assert found.waits is waits  # type: ignore[attr-defined]
        assert self.lives(name) is lived, "settling neither starts nor ends anything"
        self.account_for_power_off(before, lived, waits)
        if waits and restart:
            if self.has_lost_its_disk(name):
                with pytest.raises(EngineError):
                    self.command(lambda: restart_waiting(self.site, name, owner=None))
            else:
                self.command(lambda: restart_waiting(self.site, name, owner=None))
                assert self.lives(name)
        elif not waits and not lived:
            with pytest.raises(ConflictError, match="does not wait"):
                self.command(lambda: restart_waiting(self.site, name, owner=None))
            assert not self.lives(name), "what is not to run was started"

    def is_owed_a_restart(self, before: Machine, lived: bool) -> bool:
        if is_waiting(before):
            return True
        if lived or before.state not in LIVE or before.state is MachineState.STOPPING or not before.wanted:
            return False
        how = self.how(before)
        counted = before.supervision.restarts < RESTARTS_MOST or how == "reboot"
        return how in RESTARTED[before.spec.restart] and counted

    def how(self, before: Machine) -> str:
        """Return how a machine that is recorded as live came to have no engine."""
        if before.process is None or not before.process.marker:
            return "crash"  # of the command that was about to start it
        words = self.site.files.consoles.get(before.name, "")
        return next((how for how, said in ENDS.items() if said == words), "crash")

    def account_for_power_off(self, before: Machine, lived: bool, waits: bool) -> None:
        """Note that a guest which has powered off is not wanted any more, unless it is always to run."""
        ended = not lived and before.state in LIVE and not is_waiting(before)
        if ended and before.state is not MachineState.STOPPING and self.how(before) == "power-off" and not waits:
            self.wanted[before.name] = False

    def go_down(self) -> None:
        """Have every machine stopped because the host goes down: that is nobody's wish."""
        self.site.guest.obeys = True
        outcomes = self.command(lambda: autostop(self.site, timeout_s=1.0))
        assert all(outcome.error is None for outcome in outcomes)  # type: ignore[attr-defined]
        assert not self.site.processes.running

    def start_what_ran(self) -> None:
        records = self.records()
        owed = [
            name
            for name, machine in records.items()
            if machine.wanted and not self.lives(name) and not is_waiting(machine) and not self.has_lost_its_disk(name)
        ]
        outcomes = self.command(lambda: autostart(self.site))
        started = {outcome.name for outcome in outcomes if outcome.error is None}  # type: ignore[attr-defined]
        assert started == set(owed)
        assert all(self.lives(name) for name in owed)

    # Rules: what ends commands

    start_is_ended = is_ended("start", lives=False)
    stop_is_ended = is_ended("stop", "kill", "quit", "delete", lives=True)
    settle_is_ended = is_ended("settle", "delete", lives=False)
    another_is_ended = is_ended("create", "set", "forward", "unforward", "reconcile")

    def end(
        self, verb: str, name: str, policy: RestartPolicy, port: int, step: int, death: type[BaseException]
    ) -> bool:
        """End a command before one of its steps, and see to it that what it leaves is before or after."""
        before = self.records()
        lived = {known: self.lives(known) for known in before}
        self.site.guest.obeys = False
        was_ended = self.ended(step, death, self.verbs(name, policy, port)[verb])
        after = self.records()
        asked = ASKED.get(verb)
        for known in after.keys() - before.keys():
            assert (known, verb, after[known].wanted) == (name, "create", False)
            self.wanted[known] = False
        for gone in before.keys() - after.keys():
            # What was half made by a `create` that was ended is made anew by the next.
            assert (gone, verb) in ((name, "delete"), (name, "create"))
            del self.wanted[gone]
        for known in after.keys() & before.keys():
            concerned = known == name or verb == "reconcile"
            self.hold(verb if concerned else "", before[known], lived[known], after[known])
        if not was_ended and name in after and asked is not None and self.lives(name) is asked:
            assert after[name].wanted is asked
        return was_ended

    def hold(self, verb: str, before: Machine, lived: bool, after: Machine) -> None:
        """Assert what a command that was ended leaves of a machine: what it was, or what it was to be."""
        name, lives = after.name, self.lives(after.name)
        if verb in ("settle", "reconcile"):
            waits = self.is_owed_a_restart(before, lived)
            assert lives is lived or (verb == "settle" and waits), "what is not to run was started, or what runs ended"
            if after.wanted is not before.wanted:
                self.account_for_power_off(before, lived, waits)
        elif verb not in ASKED:
            assert lives is lived or verb == "quit"
            assert after.wanted is before.wanted
        elif after.wanted is ASKED[verb]:
            self.wanted[name] = ASKED[verb]
        if lived and not lives and verb != "quit":
            assert not after.wanted, "the wish is recorded before the engine is ended"
        if lives and not lived:
            assert after.wanted, "the wish is recorded before the engine is started"

    def reconciled(self) -> None:
        for machine in self.records().values():
            self.account_for_power_off(
                machine, self.lives(machine.name), self.is_owed_a_restart(machine, self.lives(machine.name))
            )
        self.command(lambda: reconcile(self.site))
        records = self.records()
        living = {name for name in records if self.lives(name)}
        for name, machine in records.items():
            assert observed(self.site, machine) == machine, "what is recorded is what is"
            assert (machine.state in LIVE and not is_waiting(machine)) is (name in living)
        site = self.site
        ids = {records[name].id for name in living}
        assert set(site.network.taps) == {records[name].lease.tap for name in living}
        assert site.network.rules == {
            records[name].lease.address: frozenset(site.store.forwards(name)) for name in living
        }
        assert site.the_engine.jails == site.processes.groups == ids
        assert site.the_engine.sockets == {site.files.socket(name) for name in living}
        assert all(not repair.done for repair in self.command(lambda: reconcile(site))), "told twice, it had more to do"  # type: ignore[attr-defined]

    # What holds at any time

    @invariant()
    def what_is_shown_is_what_is(self) -> None:
        for name, machine in self.records().items():
            engines = self.engines(machine)
            assert len(engines) <= 1, "two engines on one disk"
            shown = observed(self.site, machine)
            assert (shown.state in (MachineState.RUNNING, MachineState.STOPPING)) is bool(engines), (name, shown)
            if engines:
                assert shown.process == engines[0]
                assert machine.lease.tap in self.site.network.taps

    @invariant()
    def nobody_is_unknown(self) -> None:
        records = self.records()
        assert records.keys() == self.wanted.keys()
        assert self.site.files.made <= records.keys(), "a disk that nobody knows"
        known = [process for machine in records.values() for process in self.engines(machine)]
        assert sorted(process.pid for process in known) == sorted(self.site.processes.running)

    @invariant()
    def what_is_wanted_is_what_was_asked_for(self) -> None:
        assert {name: machine.wanted for name, machine in self.records().items()} == self.wanted

    @invariant()
    def nothing_is_shared(self) -> None:
        leases = [machine.lease for machine in self.records().values()]
        for part in ("address", "mac", "tap"):
            assert len({getattr(lease, part) for lease in leases}) == len(leases)
        ports = [(known.protocol, known.host_port) for known in self.site.store.forwards()]
        assert len(set(ports)) == len(ports)

    # All of it at once, for a test that goes through every step by itself

    def finish(self, verb: str) -> None:
        """Give a command again that was ended: now it does what it is for."""
        again: dict[str, Callable[[], object]] = {
            "start": lambda: self.start("a"),
            "stop": lambda: self.stop("a", force=False, obeys=True),
            "quit": self.go_down,
            "delete": lambda: self.delete("a", force=True) if "a" in self.wanted else None,
            "set": lambda: self.set("a", RestartPolicy.ALWAYS),
            "settle": lambda: self.settle("a", restart=True),
            "reconcile": self.reconciled,
            "forward": lambda: self.with_forward(8081),
            "unforward": lambda: self.without_forward(8080),
        }
        again[verb]()

    def with_forward(self, port: int) -> None:
        if forward("a", port) not in self.site.store.forwards():
            self.command(lambda: add_forward(self.site, forward("a", port)))

    def without_forward(self, port: int) -> None:
        if forward("a", port) in self.site.store.forwards():
            self.command(lambda: remove_forward(self.site, forward("a", port)))
        assert port not in {known.host_port for _, known in self.site.network.ports}, "it is open still"

    def hold_all(self) -> None:
        self.what_is_shown_is_what_is()
        self.nobody_is_unknown()
        self.what_is_wanted_is_what_was_asked_for()
        self.nothing_is_shared()

    def become(self, was: str) -> None:
        """Have the machine `a`, in one of the states that a command can find it in."""
        self.create("a", RestartPolicy.ON_FAILURE)
        add_forward(self.site, forward("a", 8080))
        if was == "created":
            return
        self.start("a")
        if was in ("stopped", "half started"):
            self.stop("a", force=True, obeys=False)
            if was == "half started":
                # Killed when it had an engine of which nobody had heard.
                assert self.end("start", "a", RestartPolicy.NO, 0, 6, Killed)
                assert self.lives("a")
        elif was == "half stopped":
            assert self.end("stop", "a", RestartPolicy.NO, 0, 1, Killed)
        elif was != "running":
            self.site.files.consoles["a"] = ENDS["crash"]
            self.site.processes.running.clear()
        if was == "waiting":
            settle(self.site, "a")


# In what state each verb is ended at each of its steps.
STATES = {
    "start": ["created", "stopped", "waiting", "half started", "half stopped"],
    "stop": ["running", "gone", "half started", "half stopped"],
    "quit": ["running"],
    "delete": ["created", "running", "waiting"],
    "set": ["stopped"],
    "forward": ["running"],
    "unforward": ["gone"],
    "settle": ["gone", "waiting", "half started"],
    "reconcile": ["gone", "half stopped"],
}


@pytest.mark.fault(1, 31)
@pytest.mark.parametrize(("verb", "was"), [(verb, was) for verb, states in STATES.items() for was in states])
def test_a_command_that_is_ended_before_any_of_its_steps(verb: str, was: str) -> None:
    """What is shown is true after every step of every verb, and the next command finishes or undoes it."""
    deaths = [(Killed, "the same again"), (Killed, "reconcile")]
    if verb in ("start", "delete"):
        # What cleans up behind itself.
        deaths.append((KeyboardInterrupt, "the same again"))
    for death, then in deaths:
        for step in itertools.count():
            host = Operations()
            try:
                host.become(was)
                host.hold_all()
                if not host.end(verb, "a", RestartPolicy.ALWAYS, 8080 if verb == "unforward" else 8081, step, death):
                    break
                host.hold_all()
                if then == "reconcile":
                    host.site.network.flush()
                    host.reconciled()
                    host.hold_all()
                host.finish(verb)
                host.hold_all()
                host.reconciled()
            finally:
                host.teardown()
        assert step > 0, "it has no step"


@pytest.mark.fault(1, 2, 4, 13)
def test_any_order_of_anything() -> None:
    run_state_machine_as_test(
        Operations,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
