"""What is wrong: with how a command ended, and with what the host shows."""

import json
import re

from failpoints import KILLED, Fault, Kind, Mode
from fault_runner import Ended

_SETS_OF_MACHINES = {"machines", "own", "ports", "ports_at", "senders"}
# A SIGTERM that comes before anything is begun ends the process by itself, which shells show as 143.
_CODES = {Mode.INT: {130}, Mode.TERM: {143, -15}}


def wrong_end(ended: Ended, fault: Fault, kind: Kind) -> list[str]:
    """Return what is wrong with how a command ended that met the fault."""
    if not ended.struck and kind is not Kind.START:
        return [f"the failpoint was never reached; {ended.words}"]
    if fault.mode is Mode.KILL:
        return [] if ended.code == KILLED else [f"it was killed and ended with {ended.words}"]
    if "Traceback" in ended.err:
        return [f"a trace: {_last_frame(ended.err)}"]
    wrong: list[str] = []
    if fault.mode in _CODES:
        # Nothing is left to be undone when all is done.
        allowed = _CODES[fault.mode] | ({0} if kind is Kind.END else set())
        return wrong if ended.code in allowed else [*wrong, f"{fault.mode.value}: {ended.words}"]
    told = "Error: " in ended.err and "To mend it: " in ended.err
    if ended.code not in (0, 1, 2) or (ended.code and not told):
        wrong.append(ended.words)
    return wrong


def _last_frame(trace: str) -> str:
    """Return what was raised, and the last line of vmm's own that it came from."""
    lines = trace.strip().splitlines()
    frames = [line.strip() for line in lines if "/vmm/" in line and line.strip().startswith("File ")]
    return f"{lines[-1]} from {re.sub(r'/.*/vmm/', '', frames[-1]) if frames else 'nowhere'}"


def host_part(inventory: dict) -> dict:
    """Return what is not in the data directory, which is put back before each trial in any case."""
    return {part: what for part, what in inventory.items() if part not in ("files", "rows")}


def differences(when: str, wanted: dict, seen: dict) -> list[str]:
    wrong: list[str] = []
    for part in wanted.keys() | seen.keys():
        one, other = wanted.get(part), seen.get(part)
        if one == other:
            continue
        if part == "machines":
            one, other = (
                {f"{row['name']}.{key}": value for row in rows for key, value in row.items()} for rows in (one, other)
            )
        if isinstance(one, dict) and isinstance(other, dict):
            keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
            # A directory stands for what is in it.
            keys = [key for key in keys if key.rpartition("/")[0] not in keys]
            wrong += [f"{when}: {part} {key}: {other.get(key)}, not {one.get(key)}" for key in keys]
        elif part == "rules":
            wrong.append(f"{when}: {_rules_differ(str(one), str(other))}")
        else:
            wrong.append(f"{when}: {part}: {other}, not {one}")
    return wrong


def _rules_differ(wanted: str, seen: str) -> str:
    one, other = ({json.dumps(item) for item in json.loads(text)} for text in (wanted, seen))
    return f"rules: has {sorted(other - one)}, not {sorted(one - other)}"


def orphans(left: dict) -> list[str]:
    """Return what must not be there when every machine was deleted."""
    wrong = [f"left: {path}" for path in left["files"] if is_temporary(path)]
    below = ("vms/", "sockets/", "jails/firecracker/", "state/locks/", "logs/")
    wrong += [f"left: {path}" for path in left["files"] if path.startswith(below) and path != "logs/supervisor.log"]
    wrong += [f"left: the link {link}" for link in left["links"] if link != "vmm-br0"]
    wrong += [f"left: {count} rows in {table}" for table, count in left["rows"].items() if count]
    wrong += [f"left: the mount {point}" for point in left["mounts"]]
    wrong += [f"left: the cgroup {path}" for path in left["cgroups"]]
    return wrong + [f"left: elements in {name} of the firewall" for name in _of_machines(left["rules"])]


def _of_machines(rules: str) -> list[str]:
    """Return the sets and maps with elements that are some machine's; others say what the host is."""
    sets = [item.get("set") or item.get("map") or {} for item in json.loads(rules or "[]")]
    return [found["name"] for found in sets if found.get("elem") and found["name"] in _SETS_OF_MACHINES]


def is_temporary(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return (hidden and path != "ssh/.lock") or path.startswith("staging/")


def is_supervisor(argv: list[str]) -> bool:
    return argv[-1] == "supervise"
