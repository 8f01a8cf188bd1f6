import pytest
from machines import a_machine

from vmm.errors import ConflictError
from vmm.model.lifecycle import LIVE, Verb, check_legal, is_needed
from vmm.model.machine import Machine, MachineState, ProcessIdentity
from vmm.model.value import replace

PROCESS = ProcessIdentity(boot_id="boot", pid=1, start_ticks=1, marker="/m.sock")


def a_machine_that_is(state: MachineState) -> Machine:
    """A machine in a state, with an engine where that state has one."""
    return replace(a_machine("m"), state=state, process=PROCESS if state in LIVE else None)


@pytest.mark.parametrize("state", list(MachineState))
@pytest.mark.parametrize("verb", list(Verb))
def test_every_verb_has_an_answer_in_every_state(verb: Verb, state: MachineState) -> None:
    machine = a_machine_that_is(state)
    is_needed(verb, state)
    refused = {
        Verb.START: state is MachineState.PAUSED,
        Verb.STOP: False,
        Verb.DELETE: state in LIVE,
        Verb.SET: state in LIVE,
        Verb.SSH: state is not MachineState.RUNNING,
    }[verb]
    if refused:
        with pytest.raises(ConflictError) as caught:
            check_legal(verb, machine)
        assert state in caught.value.details
        assert "vmm" in caught.value.resolution
    else:
        check_legal(verb, machine)


def test_force_deletes_what_runs() -> None:
    check_legal(Verb.DELETE, a_machine_that_is(MachineState.RUNNING), force=True)


@pytest.mark.parametrize("verb", [Verb.START, Verb.STOP, Verb.DELETE, Verb.SET])
def test_what_only_waits_for_its_restart_has_no_engine_that_could_be_in_the_way(verb: Verb) -> None:
    check_legal(verb, replace(a_machine("m"), state=MachineState.STARTING, process=None))


def test_starting_what_runs_and_stopping_what_stands_is_done_already() -> None:
    assert not is_needed(Verb.START, MachineState.RUNNING)
    assert not is_needed(Verb.STOP, MachineState.STOPPED)
    assert not is_needed(Verb.STOP, MachineState.FAILED)
    assert is_needed(Verb.STOP, MachineState.RUNNING)
