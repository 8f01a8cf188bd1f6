"""Many machines at once: fifty started and stopped together, a hundred that run, five hundred that are remembered."""

import statistics
from dataclasses import dataclass

from floors import Floor
from ground import Bench
from hosts import VMM
from rows import Act, Row, Series, Target, compared, in_turn
from single import FIRST, a_database

TOGETHER = 50
MOST = 100
REMEMBERED = 500
STOP_TIMEOUT_S = 5
# What a command may take besides: it starts, asks, and takes back what fifty machines had of the host.
_STOP_MOST_S = STOP_TIMEOUT_S + 0.5


def names(first: int, count: int) -> list[str]:
    return [f"m{number:03}" for number in range(first, first + count)]


@dataclass(frozen=True)
class Together:
    """Fifty machines started and stopped by one command each; `stop_one` is the stop of a single one."""

    rows: list[Row]
    stop_one: Series

    def words(self) -> str:
        together = statistics.median(self.rows[1].ours) / 1000
        one = statistics.median(self.stop_one) / 1000
        return (
            f"No tiny guest shuts down, so each has its whole timeout of {STOP_TIMEOUT_S} s: the stop of {TOGETHER}"
            f" took {together:.2f} s, {together - STOP_TIMEOUT_S:.2f} s over it; the stop of one took {one:.2f} s."
        )


def together(bench: Bench, floor: Floor) -> Together:
    """Start and stop fifty machines, which must be all there are."""
    stop = ("stop", "--all", "--timeout", str(STOP_TIMEOUT_S))
    series = in_turn(
        {
            "start floor": Act(floor.start_all(TOGETHER)),
            "stop floor": Act(floor.stop_all(TOGETHER, timeout_s=STOP_TIMEOUT_S)),
            "start": Act(bench.vmm("start", "--all"), bench.quiet),
            "stop": Act(bench.vmm(*stop), bench.quiet),
            "start one": Act(bench.vmm("start", FIRST), bench.quiet),
            "stop one": Act(bench.vmm("stop", FIRST, "--timeout", str(STOP_TIMEOUT_S)), bench.quiet),
        },
        bench.rounds,
        warm=0,
    )
    target = Target(most_ms=_STOP_MOST_S * 1000)
    found = [
        Row(f"vmm start --all, {TOGETHER} machines", series["start floor"], series["start"]),
        Row(f"vmm stop --all --timeout {STOP_TIMEOUT_S}, {TOGETHER}", series["stop floor"], series["stop"], target),
    ]
    return Together(found, series["stop one"])


def start_last(bench: Bench, floor: Floor) -> dict[str, Series]:
    """Time the start of the last machine while all others run, by hand and by vmm."""
    last = names(MOST - 1, 1)[0]
    acts = {
        "floor": Act(floor.one(), floor.put_back),
        "ours": Act(bench.vmm("start", last), lambda: bench.stop(last)),
    }
    return in_turn(acts, bench.runs)


def reconcile(bench: Bench) -> Row:
    """Time a reconcile that finds nothing to do, against the looks that it takes, by hand."""
    # A host's network has one data directory; bridge and tables are looked at too.
    bench.host.vmm("teardown")
    data = a_database(bench.directory / "reconcile", REMEMBERED)
    for number in range(REMEMBERED):
        disk = data / "vms" / f"machine-{number:05}" / "disk.ext4"
        disk.parent.mkdir(parents=True)
        with disk.open("wb") as stream:
            stream.truncate(1 << 30)
    vmm = ["env", f"VMM_DATA_DIR={data}", *VMM]
    bench.host.run(*vmm, "setup", "--no-kernel", "--no-image", "--no-firecracker")
    ours = [*bench.host.prefix, *vmm, "reconcile"]
    said = bench.host.run(*vmm, "reconcile").stdout
    if said != "All is as it is remembered.\n":
        raise SystemExit(f"There was something to reconcile: {said}")
    looks = f"nft -j list ruleset; ps -e -o pid,args; ls {data}/vms/*"
    return compared(
        f"vmm reconcile, {REMEMBERED} machines, nothing to do",
        Target(most_ms=1000),
        bench.runs,
        floor=Act([*bench.host.prefix, "sh", "-ec", looks]),
        ours=Act(ours),
    )
