"""kill -9 inside SQLite's own commit: at every system call that touches the database or its journal."""

import os
import re
import subprocess
import sys
import time
from collections import Counter

from fault_trial import Result, Trials
from fault_verbs import Verb

_CALLS = "openat,pwrite64,fsync,fdatasync,ftruncate,unlink"


def run(trials: Trials, verb: Verb) -> Result:
    """Try the verb, killed at every such call; failpoints cannot get there, so strace does it."""
    began, before = time.monotonic(), trials.runner.count
    result = Result(verb=verb.title, mode="kill -9 inside a commit")
    clean, wrong = trials.clean(verb)
    if wrong:
        result.wrong["without a fault"] = wrong
    calls = _calls(trials, verb)
    for call, count in calls.items():
        for number in range(1, count + 1):
            engine = trials.prepare(verb)
            code, _ = _traced(trials, verb, "-e", f"inject={call}:signal=KILL:when={number}")
            wrong = [] if code == -9 else [f"it was not killed, and ended with {code}"]
            if wrong := wrong + trials.after(verb, code, engine, clean):
                result.wrong[f"{call} #{number}"] = wrong
    result.boundaries = calls.total()
    result.seconds, result.commands = time.monotonic() - began, trials.runner.count - before
    return result


def _calls(trials: Trials, verb: Verb) -> Counter[str]:
    """Run the verb without a fault and count its calls."""
    trials.prepare(verb)
    code, log = _traced(trials, verb)
    assert code == 0, log
    calls = Counter(re.findall(r"^[0-9]+ +([a-z0-9]+)\(", log, re.MULTILINE))
    assert calls["pwrite64"] > 1, log
    assert calls["unlink"] == 1, log
    return calls


def _traced(trials: Trials, verb: Verb, *more: str) -> tuple[int, str]:
    """Run the verb under strace, seeing only the database's files; return its exit code and strace's log."""
    database = str(trials.ground.root / "state" / "vmm.db")
    log = os.memfd_create("strace")
    try:
        argv = ["strace", "-f", "-qq", "-o", f"/proc/{os.getpid()}/fd/{log}", "-e", f"trace={_CALLS}"]
        argv += [
            "-P",
            database,
            "-P",
            f"{database}-journal",
            *more,
            sys.executable,
            "-m",
            "vmm",
            *trials.arguments(verb),
        ]
        done = subprocess.run(argv, capture_output=True, check=False)
        return done.returncode, os.pread(log, 1 << 20, 0).decode()
    finally:
        os.close(log)
