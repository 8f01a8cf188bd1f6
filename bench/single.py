"""One command on one machine: listings, create, and the start of a machine while no other runs."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import floors
from floors import Floor
from ground import PYTHON, Bench
from hosts import VMM
from rows import Act, Row, Series, Target, compared, in_turn

from vmm.config import DEFAULTS, SUBNET
from vmm.model.machine import EngineName, MachineSpec
from vmm.storage.store import SqliteStore

FIRST = "m000"
BARE = "bare"


def a_database(data: Path, count: int) -> Path:
    """Fill a data directory with `count` machines, as `create` records them; return it."""
    store = SqliteStore(path=data / "state" / "vmm.db", locks=data / "state" / "locks")
    values = {"cpus": 1, "memory_mib": 512, "disk_mib": 1024, "image": DEFAULTS.image, "kernel": DEFAULTS.kernel}
    first = MachineSpec(name="machine-00000", engine=EngineName.FIRECRACKER, labels={"project": "bench"}, **values)
    store.add(first, subnet=SUBNET, id="0" * 32, created_at="2026-01-01T00:00:00Z")
    connection = sqlite3.connect(store.path)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(machines)")]
    copied = [column for column in columns if column not in ("name", "id", "address", "mac", "tap")]
    listed = ", ".join(copied)
    with connection:
        for number in range(1, count):
            connection.execute(
                f"INSERT INTO machines (name, id, address, mac, tap, {listed})"
                f" SELECT ?, ?, address + ?, ?, ?, {listed} FROM machines WHERE name = 'machine-00000'",
                (f"machine-{number:05}", f"{number:032x}", number, f"mac{number}", f"tap{number}"),
            )
    connection.close()
    return data


def listings(bench: Bench) -> Iterator[Row]:
    version = Act([PYTHON, "-c", "pass"]), Act([*VMM, "--version"])
    yield compared("vmm --version", Target(ratio=3), bench.runs, floor=version[0], ours=version[1])
    floor = Act(["env", "A=b", PYTHON, "-c", "import click, sqlite3, json, dataclasses, pathlib"])
    targets = {0: Target(), 1000: Target(ratio=1.3, most_ms=100), 10000: Target(most_ms=250)}
    for count, target in targets.items():
        data = bench.directory / f"list-{count}"
        data.mkdir()
        if count:
            a_database(data, count)
        ours = Act(["env", f"VMM_DATA_DIR={data}", *VMM, "list"])
        yield compared(f"vmm list, {count:,} machines", target, bench.runs, floor=floor, ours=ours)


def create(bench: Bench) -> Row:
    image = bench.data / "images" / "rootfs" / "large" / "rootfs.ext4"
    copy = bench.directory / "copy.ext4"
    floor = f"cp --reflink=auto --sparse=always {image} {copy} && {PYTHON} -c pass"
    ours = bench.vmm("create", "c", "--kernel", "tiny", "--image", "large", "--engine", "firecracker")
    return compared(
        "vmm create, 1 GB image with 300 MB of data",
        Target(ratio=1.3),
        bench.runs,
        floor=Act([*bench.host.prefix, "sh", "-ec", floor], copy.unlink),
        ours=Act(ours, lambda: bench.host.vmm("delete", "c")),
    )


def make_floors(bench: Bench, guests: int) -> tuple[Floor, Floor]:
    """Make the machines that are started first, and return the floors with and without a jail: as vmm configures them.

    The jailed floor is made for so many guests.
    """
    bench.create([FIRST])
    bench.create([BARE], "--no-jail")
    bench.host.vmm("start", FIRST, BARE)
    inside = next((bench.data / "jails").glob("*/*/root/config.json")).read_text()
    outside = (bench.data / "vms" / BARE / "engine.json").read_text()
    bench.stop()
    return floors.jailed(bench, json.loads(inside), guests=guests), floors.bare(bench, json.loads(outside))


def start_first(bench: Bench, jailed: Floor, bare: Floor) -> dict[str, Series]:
    """Time starts while nothing else runs: with and without a jail, by hand and by vmm, in turn."""
    return in_turn(
        {
            "bare floor": Act(bare.one(), bare.put_back),
            "bare": Act(bench.vmm("start", BARE), lambda: bench.stop(BARE)),
            "jailed floor": Act(jailed.one(), jailed.put_back),
            "jailed": Act(bench.vmm("start", FIRST), lambda: bench.stop(FIRST)),
        },
        bench.runs,
    )


def start_again(bench: Bench) -> Series:
    """Time the jailed start once more, alone."""
    return in_turn({"jailed": Act(bench.vmm("start", FIRST), lambda: bench.stop(FIRST))}, bench.runs)["jailed"]
