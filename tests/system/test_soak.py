"""500 machines come and go, and the host is as it was: no descriptor, tap, rule, cgroup, file or memory is lost."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from frames import inside
from hosts import Host, wait_for

from vmm.app import HostSite, open_site
from vmm.host import cgroups
from vmm.operations.create import CreateRequest, create
from vmm.operations.start import start
from vmm.operations.stop import delete

pytestmark = pytest.mark.system

CYCLES, WARM_UP = 500, 10


@pytest.fixture
def site(tiny: Host) -> Iterator[HostSite]:
    with inside(tiny.namespace):
        yield open_site(data_dir=tiny.data_dir)


def cycle(site: HostSite, number: int) -> str:
    name = f"m{number % 7}"
    machine = create(
        site, CreateRequest(name=name, kernel="tiny", image="tiny", disk_mib=256, memory_mib=128, engine="firecracker")
    )
    start(site, name)
    delete(site, name, force=True)
    return machine.id


def inventory(host: Host) -> dict[str, object]:
    paths = [path for path in host.data_dir.rglob("*") if path.suffix not in (".log", ".pyc")]
    return {
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
        "links": host.run("ip", "-o", "link").stdout.count("\n"),
        "rules": host.run("nft", "list", "ruleset").stdout,
        "files": sorted(str(path.relative_to(host.data_dir)) for path in paths),
    }


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.fault(37)
def test_five_hundred_machines_leave_nothing(tiny: Host, site: HostSite) -> None:
    for number in range(WARM_UP):
        cycle(site, number)
    gc.collect()
    before, memory = inventory(tiny), resident_mib()
    ids = {cycle(site, number) for number in range(CYCLES)}
    gc.collect()
    after = inventory(tiny)
    for key, value in before.items():
        assert after[key] == value, key
    assert ids.isdisjoint(cgroups.names())
    assert resident_mib() - memory < 20
    # Bounded too: what is remembered of them.
    assert (tiny.data_dir / "state" / "vmm.db").stat().st_size < 4 << 20
    assert len(site.store.events(most=10_000)) <= 10_000
    wait_for(lambda: tiny.processes() == [], timeout=10, what="the supervisor's end")
