"""The truth table: every verb, with every fault, at every boundary of its work; nothing is sampled.

After each fault a listing must tell the truth, the verb must work when it is repeated and end as if nothing had been,
and when all is deleted nothing may be left. How: tests/support/failpoints.py and fault_trial.py.
"""

from collections.abc import Iterator

import pytest
from failpoints import Mode
from fault_trial import Result
from fault_verbs import VERBS
from fault_workers import Cell, Table, a_table

pytestmark = pytest.mark.system

# Most of a verb's time goes by in the kernel, where the processors are free for another.
_WORKERS = 4
_ROWS = {
    Mode.KILL: (1,),
    Mode.INT: (31,),
    Mode.TERM: (31,),
    Mode.EIO: (11,),
    Mode.ENOSPC: (11, 19),
    Mode.EROFS: (19,),
    Mode.EMFILE: (30,),
    Mode.READ_ONLY: (19,),
    Mode.HELD: (2,),
}
_CELLS = [
    pytest.param(verb.title, mode.name, marks=pytest.mark.fault(*_ROWS[mode]), id=f"{verb.title}-{mode.value}")
    for verb in VERBS
    for mode in Mode
    # A verb whose table begins in its middle has begun by then: what holds it up from the first is in its other row.
    if verb.since is None or mode not in (Mode.READ_ONLY, Mode.HELD)
]
_SET, _CREATE = "set --memory", "create"


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """The cells of the tests that were chosen, being tried from now on."""
    cells: list[Cell] = []
    for item in request.session.items:
        if item.module is request.module:
            callspec = getattr(item, "callspec", None)
            cells += (
                [(callspec.params["verb"], callspec.params["mode"])] if callspec else _OTHERS.get(item.originalname, [])
            )
    with a_table(cells, tmp_path_factory.mktemp("truth"), workers=_WORKERS) as made:
        yield made


@pytest.mark.parametrize(("verb", "mode"), _CELLS)
def test_the_truth_is_told_and_the_verb_can_be_repeated(table: Table, verb: str, mode: str) -> None:
    result = table.result(verb, mode)
    assert result.boundaries
    if verb.startswith("stop") and mode == "EROFS":
        # The machine was ended, and nothing could be written any more, not even that it was wished: it shows as failed,
        # its engine gone, and a failed machine stays so until it is started.
        for key, texts in list(result.wrong.items()):
            if all(".state: failed, not stopped" in text or ".reason: its engine" in text for text in texts):
                del result.wrong[key]
    assert not result.wrong, _told(result)


@pytest.mark.fault(1, 12)
@pytest.mark.parametrize(("verb", "mode"), [(_SET, "COMMIT")])
def test_a_kill_inside_a_commit_loses_nothing(table: Table, verb: str, mode: str) -> None:
    result = table.result(verb, mode)
    assert result.boundaries > 20
    assert not result.wrong, _told(result)


def test_the_table_sees_what_is_wrong(table: Table) -> None:
    """Each of these is done behind vmm's back after a fault; a table that did not see it would prove nothing."""
    found = table.answer(_SET, "SABOTAGE")
    assert found.pop("nothing") == []
    for what, word in {
        "a process": "a process of no machine",
        "a tap": "links vmm-ac10ffff",
        "rules": "rules",
        "a routing rule": "routing",
        "another's stamp": "is_00000000",
        "an engine": "list says stopped (None), its engines are",
        "a lost row": "repeated",
        "no boundary": "the failpoint was never reached",
    }.items():
        assert any(word in text for text in found[what]), (what, found[what])


_OTHERS = {"test_the_table_sees_what_is_wrong": [(_SET, "SABOTAGE")]}


def _told(result: Result) -> str:
    count = len(result.wrong.keys() - {"without a fault"})
    lines = [f"{result.verb}, {result.mode}: {count} of {result.boundaries} boundaries"]
    for key, wrong in result.wrong.items():
        lines += [f"* {key}", *(f"    {text}" for text in wrong)]
    return "\n".join(lines)
