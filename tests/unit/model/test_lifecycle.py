import pytest
from machines import a_machine

from vmm.errors import ConflictError
from vmm.model.lifecycle import LIVE, Verb, check_legal, is_needed
from vmm.model.machine import MachineState
from vmm.model.value import replace


@pytest.mark.parametrize("state", list(MachineState))
@pytest.mark.parametrize("verb", list(Verb))
def test_every_verb_has_an_answer_in_every_state(verb: Verb, state: MachineState) -> None:
    machine = replace(a_machine("m"), state=state)
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
    check_legal(Verb.DELETE, replace(a_machine("m"), state=MachineState.RUNNING), force=True)


def test_starting_what_runs_and_stopping_what_stands_is_done_already() -> None:
    assert not is_needed(Verb.START, MachineState.RUNNING)
    assert not is_needed(Verb.STOP, MachineState.STOPPED)
    assert not is_needed(Verb.STOP, MachineState.FAILED)
    assert is_needed(Verb.STOP, MachineState.RUNNING)
