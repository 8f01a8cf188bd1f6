"""What guests need of their host: each fact is a question, asked in one place for whoever wants to know.

`doctor`, `setup`, `start`, `reconcile` and the supervisor ask the same ones (`vmm.app.facts` lists them), so that they
cannot give different answers. What was not looked at is never called ok.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

from vmm import TYPE_CHECKING
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable


class Moment(IntEnum):
    """When a fact is asked; each moment asks what the ones before it ask as well."""

    START = 1  # beside the start of a machine: what takes microseconds, or runs beside the engine's own start
    WATCH = 2  # by the supervisor, every few seconds while machines run
    LOOK = 3  # when someone wants to know: doctor, setup, reconcile


class Standing(StrEnum):
    OK = "ok"
    NOT_OK = "not-ok"
    UNSEEN = "unseen"  # it could not be looked at: `proof` says why


class Answer(Value):
    """What a fact's question came to. `proof` is what was seen; `fix` the command that mends it, where one does.

    `fatal`: no machine can run like this. `mended`: it was not ok, and is now.
    """

    name: str
    standing: Standing
    proof: str
    fix: str = ""
    fatal: bool = False
    mended: bool = False


class Fact(Value):
    """One thing that guests need. `ask` never changes the host; `mend` makes it so, where vmm can."""

    name: str
    question: str
    first: Moment
    ask: Callable[[], Answer]
    mend: Callable[[], None] | None = None


def ok(name: str, proof: str) -> Answer:
    return Answer(name=name, standing=Standing.OK, proof=proof)


def not_ok(name: str, proof: str, fix: str, *, fatal: bool = False) -> Answer:
    return Answer(name=name, standing=Standing.NOT_OK, proof=proof, fix=fix, fatal=fatal)


def unseen(name: str, why: str, fix: str) -> Answer:
    return Answer(name=name, standing=Standing.UNSEEN, proof=why, fix=fix)
