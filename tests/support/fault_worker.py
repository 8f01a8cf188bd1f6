"""One process that tries faults: on a ground of its own, told by lines on stdin what to try, and answering on stdout.

python fault_worker.py NAMESPACE DIRECTORY LIBRARY
"""

import contextlib
import dataclasses
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import fault_commit
import fault_family
import fault_ground
import fault_mounts
import fault_runner
import fault_stock
import fault_trial
import fault_verbs
from failpoints import Fault, Kind, Mode


def main() -> None:
    namespace, directory, library = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    # What anything prints must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.chdir("/")
    fault_mounts.enter(namespace, directory / "data")
    fault_family.take_in_orphans()
    ground = fault_ground.Ground(directory / "data", directory / "kept")
    name = f"m{os.getpid()}"
    fault_runner.import_vmm()
    runner = fault_runner.Runner(str(ground.root), {name: "NAME", str(directory): "HERE"})
    trials = fault_trial.Trials(ground, runner, fault_stock.stock(directory / "files", library), name)
    with ground.a_neighbour():
        try:
            for line in sys.stdin:
                answers.write(json.dumps(_answer(trials, json.loads(line))) + "\n")
                answers.flush()
        finally:
            fault_mounts.lift(str(ground.root))
            ground.sweep()


def _answer(trials: fault_trial.Trials, asked: dict) -> object:
    verb = next(verb for verb in fault_verbs.VERBS if verb.title == asked["verb"])
    if asked["mode"] == "COMMIT":
        return dataclasses.asdict(fault_commit.run(trials, verb))
    if asked["mode"] == "SABOTAGE":
        return _sabotaged(trials, verb)
    return dataclasses.asdict(trials.run(verb, Mode[asked["mode"]]))


def _sabotaged(trials: fault_trial.Trials, verb: fault_verbs.Verb) -> dict[str, list[str]]:
    """Do what vmm must never do, after a fault; return what is found wrong each time."""
    clean, _ = trials.clean(verb)
    key, kind = clean.boundaries[0]
    found = {
        what: trials.trial(verb, Fault(Mode.KILL, key), kind, clean, meddle=act) for what, act in _MEDDLING.items()
    }
    found["no boundary"] = trials.trial(verb, Fault(Mode.KILL, "mkdir nowhere"), Kind.FILE, clean)
    return found


def _leave_a_process(trials: fault_trial.Trials) -> None:
    subprocess.Popen([f"{trials.ground.root}/none", "30"], executable="/bin/sleep", start_new_session=True)


def _leave_a_tap(_trials: fault_trial.Trials) -> None:
    subprocess.run(["ip", "tuntap", "add", "vmm-ac10ffff", "mode", "tap"], check=True)


def _leave_a_file(trials: fault_trial.Trials) -> None:
    (trials.ground.root / "bin" / ".firecracker.0123456789ab").touch()


def _leave_rules(_trials: fault_trial.Trials) -> None:
    subprocess.run(["nft", "add", "table", "ip", "other"], check=True)


def _leave_a_routing_rule(_trials: fault_trial.Trials) -> None:
    subprocess.run(["ip", "rule", "add", "pref", "7", "iif", "lo", "blackhole"], check=True)


def _change_the_stamp(trials: fault_trial.Trials) -> None:
    # As tables of another configuration have it.
    found = re.search(r'"(is_[0-9a-f]{8})"', trials.ground.network.rules())
    assert found, trials.ground.network.rules()
    commands = f"delete set ip vmm {found[1]}\nadd set ip vmm is_00000000 {{ type mark; elements = {{ 0 }}; }}\n"
    subprocess.run(["nft", "-f", "-"], input=commands, text=True, check=True)


def _leave_an_engine(trials: fault_trial.Trials) -> None:
    (identity,) = trials.ground.ids_now()
    subprocess.Popen([identity, "30"], executable="/bin/sleep", start_new_session=True)


def _lose_the_row(trials: fault_trial.Trials) -> None:
    with contextlib.closing(sqlite3.connect(trials.ground.root / "state" / "vmm.db")) as connection:
        connection.execute("DELETE FROM machines")
        connection.commit()


_MEDDLING = {
    "nothing": None,
    "a process": _leave_a_process,
    "a tap": _leave_a_tap,
    "a file": _leave_a_file,
    "rules": _leave_rules,
    "a routing rule": _leave_a_routing_rule,
    "another's stamp": _change_the_stamp,
    "an engine": _leave_an_engine,
    "a lost row": _lose_the_row,
}


if __name__ == "__main__":
    main()
