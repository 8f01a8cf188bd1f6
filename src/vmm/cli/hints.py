"""Commands in hints, as who reads them can give them: with sudo where that is needed, for the data directory at hand.

Errors are written in many places, which know neither who reads them nor what was given on the command line.
"""

from __future__ import annotations

import os
import re
import shlex

# Every command that only root can give to the end; of a group, those of its commands. `ssh` and `exec` want vmm's own
# key, `console` a log that others have no business in.
ROOTS: dict[str, frozenset[str] | None] = {
    "setup": None, "run": None, "create": None, "start": None, "stop": None, "restart": None, "delete": None,
    "set": None,
    "ssh": None, "exec": None, "console": None, "reconcile": None, "autostart": None, "autostop": None, "settle": None,
    "supervise": None, "mend-network": None, "teardown": None, "rm": None,
    "port-forward": frozenset({"add", "remove"}),
    "image": frozenset({"pull", "import", "delete"}),
    "kernel": frozenset({"pull", "import", "delete"}),
    "db": frozenset({"backup", "restore"}),
    "config": frozenset({"init", "set"}),
}  # fmt: skip
OTHERS = frozenset({"doctor", "list", "ls", "show", "events", "completion", "version", "help"})

_COMMAND = re.compile(r"(?<![\w./-])(sudo )?vmm (?=([a-z][a-z-]*)(?: ([a-z][a-z-]*))?)")
_SUDO = re.compile(r"(?<![\w./-])sudo (?=\S)")
# The options that say which vmm was meant, as they were given on this command line.
_given: dict[str, str] = {}


def remember(option: str, value: str) -> None:
    """Note an option that a command in a hint must have too."""
    _given[option] = value


def fit(text: str, *, root: bool | None = None) -> str:
    """Return a text with each command of vmm's in it as it is to be given here."""
    root = _has_root_shell() if root is None else root
    options = _options(root=root)

    def fitted(found: re.Match[str]) -> str:
        sudo, verb, second = found[1] or "", found[2], found[3] or ""
        if verb not in ROOTS and verb not in OTHERS:
            return found[0]
        if not root and not sudo and _needs_root(verb, second):
            sudo = "sudo "
        return f"{sudo}vmm {options}"

    text = _COMMAND.sub(fitted, text)
    return _SUDO.sub("", text) if root else text


def _has_root_shell() -> bool:
    """Whether the next command too is root's without sudo: `sudo vmm ...` was typed in a shell that is not."""
    return os.geteuid() == 0 and os.environ.get("SUDO_UID") in (None, "0")


def _needs_root(verb: str, second: str) -> bool:
    below = ROOTS.get(verb, frozenset())
    return below is None or second in below


def _options(*, root: bool) -> str:
    given = dict(_given)
    if not root:
        # sudo keeps none of these.
        for option, variable in (("--data-dir", "VMM_DATA_DIR"), ("--config", "VMM_CONFIG")):
            if os.environ.get(variable):
                given.setdefault(option, os.environ[variable])
    return "".join(f"{option} {shlex.quote(value)} " for option, value in given.items())
