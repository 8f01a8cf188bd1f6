"""Measures vmm against a floor: the same work done by hand in shell with the same tools, in turn, in one run.

sudo .venv/bin/python bench/run.py [--runs N] [--only WORD] [--write docs/performance.md]

Each row is a whole process, from exec to its end. A run of the floor and a run of vmm alternate, so that a host that is
slow for a while is slow for both; the ratio is the median of the pairs' ratios.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests" / "support"))

import tiny_kernel  # noqa: E402  # of the tests' support, found by the line above

from vmm.config import DEFAULTS, SUBNET  # noqa: E402
from vmm.model.machine import EngineName, MachineSpec  # noqa: E402
from vmm.storage.store import SqliteStore  # noqa: E402

PYTHON = sys.executable
VMM = str(Path(sys.executable).with_name("vmm"))
NAMESPACE = "vmmbench"
MARK = "<!-- the table below is written by bench/run.py -->"


def nothing() -> None:
    pass


@dataclass
class Case:
    """One comparison. `floor` and `ours` are argument lists; `between` puts things back after each of them."""

    name: str
    target: str
    floor: list[str]
    ours: list[str]
    after_floor: Callable[[], None] = nothing
    after_ours: Callable[[], None] = nothing


@dataclass
class Row:
    name: str
    target: str
    floor_ms: float
    ours_ms: float
    ratio: float
    spread: str


@dataclass
class Bench:
    """A data directory and a network namespace of its own."""

    directory: Path
    firecracker: Path

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def inside(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{NAMESPACE}", *argv]

    def run(self, *argv: str) -> None:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{shlex.join(argv)}\n{done.stdout}{done.stderr}")

    def vmm(self, *arguments: str) -> None:
        self.run(*self.inside(VMM, *arguments))


def timed(argv: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{shlex.join(argv)} failed: {done.stderr.decode()}")
    return took * 1000


def measure(case: Case, runs: int) -> Row:
    pairs: list[tuple[float, float]] = []
    # One pair more, first, to warm every cache.
    for _ in range(runs + 1):
        floor = timed(case.floor)
        case.after_floor()
        ours = timed(case.ours)
        case.after_ours()
        pairs.append((floor, ours))
    pairs = pairs[1:]
    ratios = sorted(ours / floor for floor, ours in pairs)
    return Row(
        name=case.name,
        target=case.target,
        floor_ms=statistics.median(floor for floor, _ in pairs),
        ours_ms=statistics.median(ours for _, ours in pairs),
        ratio=statistics.median(ratios),
        spread=f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
    )


def a_database(bench: Bench, count: int) -> Path:
    """Fill a data directory with `count` machines, as `create` records them; return it."""
    data = bench.directory / f"list-{count}"
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


def command_line_cases(bench: Bench) -> Iterator[Case]:
    yield Case("vmm --version", "at most 3", [PYTHON, "-c", "pass"], [VMM, "--version"])
    floor = [PYTHON, "-c", "import click, sqlite3, json, dataclasses, pathlib"]
    for count, target in ((0, ""), (1000, "at most 1.3, 100 ms"), (10000, "at most 250 ms")):
        data = a_database(bench, count) if count else bench.directory / "list-0"
        data.mkdir(exist_ok=True)
        ours = ["env", f"VMM_DATA_DIR={data}", VMM, "list"]
        yield Case(f"vmm list, {count:,} machines", target, ["env", "A=b", *floor], ours)


def a_host(bench: Bench) -> None:
    """Make the namespace, the bridge, the engine, the tiny kernel and two images."""
    bench.run("ip", "netns", "add", NAMESPACE)
    bench.run("ip", "-n", NAMESPACE, "link", "set", "lo", "up")
    (bench.data / "bin").mkdir(parents=True)
    shutil.copy(bench.firecracker, bench.data / "bin" / "firecracker")
    kernel = bench.directory / "tiny.elf"
    kernel.write_bytes(tiny_kernel.build())
    bench.vmm("kernel", "import", str(kernel), "--name", "tiny", "--no-stage1")
    small, large = bench.directory / "small.ext4", bench.directory / "large.ext4"
    bench.run("mke2fs", "-q", "-t", "ext4", str(small), "256M")
    filling = bench.directory / "filling"
    filling.mkdir()
    (filling / "data").write_bytes(os.urandom(1 << 20) * 300)
    bench.run("mke2fs", "-q", "-t", "ext4", "-d", str(filling), str(large), "1G")
    for image in (small, large):
        bench.vmm("image", "import", str(image), "--name", image.stem)
        image.unlink()
    shutil.rmtree(filling)


# What `vmm start` does, as one would write it by hand: a tap on the bridge, a rule's element, Firecracker with a
# configuration, and asking it until it says Running.
FLOOR_START = """
ip tuntap add {tap} mode tap vnet_hdr
ip link set {tap} master vmm-br0
ip link set {tap} up
nft add element bridge vmm senders '{{ {tap} . 06:00:ac:10:00:fe . 172.16.0.254 }}'
rm -f {socket}
cat >{config} <<'END'
{content}
END
{firecracker} --id floor --api-sock {socket} --config-file {config} </dev/null >{log} 2>&1 &
echo $! >{pid}
until curl -s --unix-socket {socket} http://localhost/ 2>/dev/null | grep -q '"Running"'; do sleep 0.001; done
"""


def start_case(bench: Bench) -> Case:
    bench.vmm(
        "create",
        "m",
        "--kernel",
        "tiny",
        "--image",
        "small",
        "--disk",
        "256",
        "--memory",
        "128",
        "--engine",
        "firecracker",
    )
    bench.vmm("start", "m")
    config = json.loads((bench.data / "vms" / "m" / "engine.json").read_text())
    bench.vmm("stop", "m", "--force")
    tap = "vmm-ac1000fe"
    config["network-interfaces"][0].update(host_dev_name=tap, guest_mac="06:00:ac:10:00:fe")
    names = {name: str(bench.directory / f"floor.{name}") for name in ("socket", "log", "pid")}
    script = FLOOR_START.format(
        tap=tap,
        firecracker=bench.data / "bin" / "firecracker",
        config=bench.directory / "floor.json",
        content=json.dumps(config),
        **names,
    )

    def put_back() -> None:
        os.kill(int(Path(names["pid"]).read_text()), signal.SIGKILL)
        bench.run(*bench.inside("ip", "link", "del", tap))
        bench.run(
            *bench.inside("nft", f"delete element bridge vmm senders {{ {tap} . 06:00:ac:10:00:fe . 172.16.0.254 }}")
        )

    return Case(
        "vmm start, Firecracker, a tiny guest",
        "at most 2.5",
        bench.inside("sh", "-ec", script),
        bench.inside(VMM, "start", "m"),
        after_floor=put_back,
        after_ours=lambda: bench.vmm("stop", "m", "--force"),
    )


def create_case(bench: Bench) -> Case:
    image = bench.data / "images" / "rootfs" / "large" / "rootfs.ext4"
    copy = bench.directory / "copy.ext4"
    floor = f"cp --reflink=auto --sparse=always {image} {copy} && {PYTHON} -c pass"
    create = [VMM, "create", "c", "--kernel", "tiny", "--image", "large", "--engine", "firecracker"]
    return Case(
        "vmm create, 1 GB image with 300 MB of data",
        "at most 1.3",
        ["nsenter", f"--net=/run/netns/{NAMESPACE}", "sh", "-ec", floor],
        bench.inside(*create),
        after_floor=copy.unlink,
        after_ours=lambda: bench.vmm("delete", "c"),
    )


def residents(bench: Bench) -> str:
    """Return what stays in memory for one running machine besides its engine."""
    bench.vmm("start", "m")
    lines = subprocess.run(
        ["ps", "-e", "-o", "rss=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    ours = [line for line in lines if str(bench.directory) in line and "bench/run.py" not in line]
    bench.vmm("stop", "m", "--force")
    engines = [line for line in ours if "--api-sock" in line]
    return f"Processes that stay for a running machine: {len(engines)} engine, {len(ours) - len(engines)} of vmm's."


@contextlib.contextmanager
def a_bench() -> Iterator[Bench]:
    found = [
        TOP / ".venv/vmm-test/bin/firecracker",
        Path("/var/lib/vmm/bin/firecracker"),
        Path("/var/lib/vmm-demo/bin/firecracker"),
    ]
    firecracker = next((path for path in found if path.exists()), None)
    if firecracker is None:
        raise SystemExit("There is no Firecracker here; run scripts/test or scripts/demo first.")
    directory = Path(tempfile.mkdtemp(prefix="vmmbench-", dir="/var/tmp"))
    bench = Bench(directory, firecracker)
    os.environ["VMM_DATA_DIR"] = str(bench.data)
    try:
        yield bench
    finally:
        subprocess.run(bench.inside(VMM, "-q", "delete", "--all", "--force"), check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False, capture_output=True)
        shutil.rmtree(directory)


def as_table(rows: list[Row]) -> str:
    head = "| what | floor, ms | vmm, ms | ratio | least to most | target |\n|---|---:|---:|---:|---|---|\n"
    return head + "".join(
        f"| {row.name} | {row.floor_ms:.1f} | {row.ours_ms:.1f} | **{row.ratio:.2f}** | {row.spread} | {row.target} |\n"
        for row in rows
    )


def compiled() -> None:
    """Compile what is measured, as installing does: a checkout that was edited since would be compiled at every run."""
    subprocess.run([PYTHON, "-m", "compileall", "-q", str(TOP / "src")], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--only", default="", help="only what has this word in its name")
    parser.add_argument("--write", type=Path, help="keep the table in this document")
    given = parser.parse_args()
    if os.geteuid():
        raise SystemExit("It makes links and runs machines: run it as root.")
    compiled()
    with a_bench() as bench:
        rows = [measure(case, given.runs) for case in command_line_cases(bench) if given.only in case.name]
        a_host(bench)
        start = start_case(bench)
        rows += [measure(case, given.runs) for case in (start, create_case(bench)) if given.only in case.name]
        memory = residents(bench)
    table = f"{as_table(rows)}\n{memory}\n"
    print(table)
    if given.write:
        words = given.write.read_text(encoding="utf-8").partition(MARK)[0]
        when = time.strftime("%Y-%m-%d")
        command = f"sudo {shlex.join(['.venv/bin/python', 'bench/run.py', *sys.argv[1:]])}"
        cpus = os.cpu_count()
        facts = (
            f"Made on {when} by `{command}`, {cpus} CPUs, Python {sys.version.split()[0]}, {given.runs} pairs a row.\n"
        )
        given.write.write_text(f"{words}{MARK}\n\n{facts}\n{table}", encoding="utf-8")


if __name__ == "__main__":
    main()
