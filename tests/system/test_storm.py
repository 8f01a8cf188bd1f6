"""A storm: 16 processes give commands on 40 machines for two minutes, and everything is true at the end."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hosts import Host, wait_for

pytestmark = pytest.mark.system

SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")
WORKERS, MACHINES, SECONDS, LEAST_VERBS = 16, 40, 120, 200
# What a command may answer to what another did a moment before.
FAIR = (
    "There is no machine",
    "already",
    "It is running",
    "It is starting",
    "It is stopping",
    "has no forward",
    "is in use",
    "Another vmm command is working on",
    "does not wait for a restart",
    "ended at its start",
)


@dataclass
class Worker:
    host: Host
    random: random.Random
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def work(self, until: float) -> "Worker":
        while time.monotonic() < until:
            arguments = self._verb()
            began = time.monotonic()
            try:
                said = self.host.vmm(*arguments, check=False, timeout=90)
            except subprocess.TimeoutExpired:
                self.wrong.append(f"{arguments}: no end within 90 s")
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.done[arguments[0]] += 1
            if said.returncode == 1 and "Error: " in said.stderr and any(words in said.stderr for words in FAIR):
                continue
            if said.returncode != 0 or "Traceback" in said.stderr:
                self.wrong.append(f"{arguments}: {said.returncode}\n{said.stdout}{said.stderr}")
        return self

    def _verb(self) -> tuple[str, ...]:
        name = f"m{self.random.randrange(MACHINES)}"
        port = f"{9000 + self.random.randrange(60)}:80"
        verbs: list[tuple[int, tuple[str, ...]]] = [
            (6, ("create", name, *SMALL)),
            (6, ("start", name)),
            (3, ("stop", name, "--force")),
            (1, ("stop", name, "--timeout", "0.2")),
            (2, ("restart", name, "--force")),
            (3, ("delete", "--force", name)),
            (1, ("set", name, "--memory", str(self.random.choice((128, 192, 256))))),
            (1, ("set", name, "--label", f"k={self.random.randrange(9)}")),
            (2, ("port-forward", "add", name, port)),
            (1, ("port-forward", "remove", name, port)),
            (1, ("list", "--output", "json")),
            (1, ("show", name)),
            (1, ("events", "-n", "5")),
            (1, ("reconcile",)),
        ]
        return self.random.choices([verb for _, verb in verbs], [weight for weight, _ in verbs])[0]


def engines(host: Host) -> dict[str, int]:
    """Return the engines that run in this host's jails: machine id -> pid."""
    found: dict[str, int] = {}
    known = {row["id"] for row in host.json("list")} | {path.name for path in host.data_dir.glob("jails/*/*")}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        for word in words:
            machine = word.decode(errors="replace").removeprefix("/").removesuffix(".sock")
            if word.endswith(b".sock") and machine in known and words[0].endswith(b"firecracker"):
                assert machine not in found, f"two engines of {machine}"
                found[machine] = int(entry.name)
    return found


@pytest.mark.fault(2)
def test_a_storm_of_commands_leaves_nothing_untrue(tiny: Host) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}", file=sys.stderr)
    until = time.monotonic() + SECONDS
    with ThreadPoolExecutor(WORKERS) as pool:
        workers = list(pool.map(lambda n: Worker(tiny, random.Random(seed + n)).work(until), range(WORKERS)))
    done = sum((worker.done for worker in workers), Counter[str]())
    print(
        f"{sum(done.values())} verbs, the slowest {max(w.slowest_s for w in workers):.1f} s: {dict(done)}",
        file=sys.stderr,
    )
    wrong = [words for worker in workers for words in worker.wrong]
    assert not wrong, "\n".join(wrong[:10])
    assert sum(done.values()) >= LEAST_VERBS

    # Whatever is remembered is so, and whatever runs is remembered.
    rows = tiny.json("list")
    for key in ("id", "ip_address", "mac_address", "tap_device"):
        assert len({row[key] for row in rows}) == len(rows), key
    assert {row["state"] for row in rows} <= {"created", "running", "stopped", "failed"}
    running = {row["id"]: row["pid"] for row in rows if row["state"] == "running"}
    assert engines(tiny) == running
    ports = [(f["host_port"], f["protocol"]) for row in rows for f in row["port_forwards"]]
    assert len(set(ports)) == len(ports)
    links = tiny.run("ip", "-o", "link").stdout
    assert {row["tap_device"] for row in rows if row["tap_device"] in links} == {
        row["tap_device"] for row in rows if row["state"] == "running"
    }
    # No record was lost: the last that happened to a name is what there is of it.
    last: dict[str, str] = {}
    for event in tiny.json("events", "-n", "10000"):
        if event["kind"] in ("created", "deleted"):
            last[event["machine"]] = event["kind"]
    assert {name for name, kind in last.items() if kind == "created"} == {row["name"] for row in rows}
    assert {path.name for path in (tiny.data_dir / "vms").iterdir()} == {row["name"] for row in rows}
    assert json.loads(tiny.vmm("reconcile", "--output", "json").stdout) == []
    tiny.vmm("delete", "--all", "--force")
    wait_for(lambda: engines(tiny) == {}, what="the end of every engine")
