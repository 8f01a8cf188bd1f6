"""What someone wants inside a guest: a shell, or a command, and what becomes of its words on the way."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.errors import UsageError
from vmm.model.value import Value

if TYPE_CHECKING:
    from pathlib import Path


class Session(Value):
    """A shell (no `words`) or a command, as `user` of the guest.

    `terminal`: whether it gets one; None leaves it to ssh, which gives a shell one. `has_input`: it reads our input.
    `identity`: a private key of the user's, offered alone.
    """

    user: str = "root"
    words: tuple[str, ...] = ()
    terminal: bool | None = None
    has_input: bool = True
    identity: Path | None = None


def remote_line(words: tuple[str, ...]) -> str:
    """Return the one line that a guest's login shell gets of a command; the rule of `ssh`, `exec` and `run`.

    One word is a line for that shell, as with ssh. Several are a program and its words, each of which arrives as it is
    here: spaces, quotes, newlines and all.

    Raises:
        UsageError: there is nothing in it, which a shell would call done.
    """
    first = words[0] if words else ""
    if not first.strip():
        raise UsageError(
            "The command for the guest is empty.",
            details=f"Its words are {list(words)!r}: a variable that is not set, perhaps.",
            resolution="Give a command behind --, or none at all for a shell.",
        )
    if len(words) > 1:
        # Each in quotes, whatever is in it: `A=b` is no assignment then, `if` no beginning of a statement.
        return " ".join(_quoted(word) for word in words)
    # The shell takes a line that begins so for options of its own.
    return f" {first}" if first[0] in "-+" else first


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\"'\"'") + "'"
