"""What is someone else's on this host's network: a bridge, a tap, a table, and all of another data directory's vmm."""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hosts import LIBRARY, SMALL, Host, is_running, sh, wait_for

from conftest import add_tiny

pytestmark = pytest.mark.system

OTHER_NETWORK = ("subnet", "10.99.0.0/16", "gateway", "10.99.0.1", "bridge_name", "vmm-br9")


@pytest.fixture(scope="module")
def first(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    add_tiny(shared_host, tmp_path_factory.mktemp("tiny"))
    shared_host.vmm("create", "a", *SMALL)
    return shared_host


@pytest.fixture
def runs(first: Host) -> Iterator[int]:
    """The pid of the first vmm's machine, which must run on, on its tap and with its rules, through the test."""
    pid = first.start("a")
    first.vmm("port-forward", "add", "a", "7000:70")
    before = everything(first)
    yield pid
    assert is_running(pid)
    assert everything(first) == before
    first.vmm("port-forward", "remove", "a", "7000:70")
    first.vmm("stop", "--force", "a")


def everything(host: Host) -> tuple[str, str]:
    """Return the links and rules of a host."""
    links = json.loads(host.run("ip", "-j", "-d", "link").stdout)
    shown = sorted(f"{link['ifname']} {link.get('master')} {link.get('ifalias')}" for link in links)
    return "\n".join(shown), host.run("nft", "list", "ruleset").stdout


@contextlib.contextmanager
def unmarked(host: Host) -> Iterator[None]:
    """Have the host's links as the version before left them, and nobody who mends that."""
    watching = host.supervisors()
    for pid in watching:
        os.kill(pid, signal.SIGSTOP)
    for link in ("vmm-br0", "vmm-ac100002"):
        host.run("ip", "link", "set", link, "alias", "")
    try:
        yield
    finally:
        for pid in watching:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def another(first: Host, directory: Path, *config: str) -> Iterator[Host]:
    """Give a second data directory on the same host, with a machine of its own."""
    host = replace(first, data_dir=directory / "second")
    for part in ("bin", "images"):
        shutil.copytree(LIBRARY / part, host.data_dir / part, copy_function=os.link)
    for kind in ("rootfs", "kernels"):
        shutil.copytree(first.data_dir / "images" / kind / "tiny", host.data_dir / "images" / kind / "tiny")
    if config:
        host.vmm("config", "set", *config)
    host.vmm("create", "b", *SMALL)
    try:
        yield host
    finally:
        host.vmm("delete", "--all", "--force", check=False)
        wait_for(lambda: host.processes() == [], timeout=10)


@pytest.mark.fault(45)
@pytest.mark.parametrize("config", [(), OTHER_NETWORK], ids=["same network", "other network"])
def test_a_second_data_directory_is_refused_by_name_and_touches_nothing(
    first: Host, runs: int, tmp_path: Path, config: tuple[str, ...]
) -> None:
    with another(first, tmp_path, *config) as second:
        before = everything(first)
        for arguments in (["start", "b"], ["setup", "--no-kernel", "--no-image"]):
            said = second.fails(*arguments)
            assert "Another vmm has this host's network" in said
            assert str(first.data_dir) in said
            assert f"--data-dir {first.data_dir} teardown" in said
            assert everything(first) == before
        assert second.machine("b")["state"] == "failed"
        assert "Another vmm" in second.machine("b")["reason"]
        checks = {row["name"]: row for row in json.loads(second.vmm("doctor", "--output", "json", check=False).stdout)}
        assert checks["bridge"]["status"] == "failure"
        assert str(first.data_dir) in checks["bridge"]["detail"]
        second.vmm("port-forward", "add", "b", "7001:71", check=False)
        for arguments in (["reconcile"], ["stop", "b"], ["delete", "--force", "b"], ["reconcile"]):
            second.vmm(*arguments, check=False)
            assert everything(first) == before
        assert "Nothing of it was touched" in second.vmm("teardown").stderr
        assert everything(first) == before


@pytest.mark.fault(45)
def test_teardown_cuts_no_running_machine_off_unless_it_is_told_to(first: Host) -> None:
    pid = first.start("a")
    before = everything(first)
    said = first.fails("teardown")
    assert "Running: a." in said
    assert "stop --all" in said
    assert "teardown --force" in said
    assert everything(first) == before
    for pid_of in first.supervisors():
        os.kill(pid_of, signal.SIGSTOP)
    try:
        first.vmm("teardown", "--force")
        assert "vmm" not in everything(first)[0]
        assert is_running(pid)
    finally:
        for pid_of in first.supervisors():
            os.kill(pid_of, signal.SIGCONT)
    first.vmm("stop", "--force", "a")
    first.vmm("teardown")


@pytest.mark.fault(45)
def test_whoever_gave_the_network_up_does_not_keep_it(first: Host, tmp_path: Path) -> None:
    first.vmm("teardown")
    with another(first, tmp_path) as second:
        second.start("b")
        said = first.fails("start", "a")
        assert str(second.data_dir) in said
        second.vmm("stop", "--force", "b")
        # Nothing runs there, but it is there.
        assert str(second.data_dir) in first.fails("start", "a")
        moved = second.data_dir.with_name("moved")
        second.data_dir.rename(moved)
        # It took its id along: it is the same one still.
        replace(second, data_dir=moved).start("b")
        replace(second, data_dir=moved).vmm("stop", "--force", "b")
        wait_for(lambda: replace(second, data_dir=moved).processes() == [], timeout=10)
        wait_for(lambda: second.processes() == [], timeout=10)
        shutil.rmtree(moved)
        # Now nothing of it is left but what is in the kernel.
        first.start("a")
        first.vmm("stop", "--force", "a")
        assert str(moved) not in everything(first)[0]


@pytest.mark.fault(45)
def test_machines_of_a_data_directory_that_is_gone_keep_their_network(first: Host, tmp_path: Path) -> None:
    first.vmm("teardown")
    with another(first, tmp_path) as second:
        pid = second.start("b")
        away = tmp_path / "away"
        # The supervisor would end with the directory.
        second.data_dir.rename(away)
        before = everything(first)
        assert str(second.data_dir) in first.fails("start", "a")
        first.vmm("teardown")
        assert everything(first) == before
        assert is_running(pid)
        away.rename(second.data_dir)
        second.vmm("delete", "--force", "b")
        second.vmm("teardown")


@pytest.mark.fault(45)
def test_a_copy_of_a_data_directory_stops_nothing_of_the_one_it_was_copied_from(
    first: Host, runs: int, tmp_path: Path
) -> None:
    """Ids, units, engines are the same in both: nothing of it is acted on while the original is there."""
    copy = replace(first, data_dir=tmp_path / "copy")
    sh("cp", "-a", str(first.data_dir), str(copy.data_dir))
    before = everything(first)
    try:
        for arguments in (["stop", "--force", "a"], ["delete", "--force", "a"], ["start", "a"], ["reconcile"], ["teardown"],
                          ["set", "a", "--cpus", "2"], ["autostop"], ["autostart"], ["db", "restore", "--rebuild", "-f"]):  # fmt: skip
            said = copy.fails(*arguments)
            assert f"was copied from {first.data_dir}" in said, arguments
            assert everything(first) == before
        assert is_running(runs)
        checks = {
            check["name"]: check for check in json.loads(copy.vmm("doctor", "--output", "json", check=False).stdout)
        }
        assert str(first.data_dir) in checks["data directory"]["detail"]
    finally:
        wait_for(lambda: copy.processes() == [], what="the copy's supervisor to end")
        shutil.rmtree(copy.data_dir)


@pytest.mark.fault(45)
def test_a_copied_id_is_not_the_vmm_it_was_copied_from(first: Host, runs: int, tmp_path: Path) -> None:
    with another(first, tmp_path) as second:
        shutil.copy2(first.data_dir / "state" / "id", second.data_dir / "state" / "id")
        before = everything(first)
        assert str(first.data_dir) in second.fails("start", "b")
        second.vmm("delete", "--force", "b")
        second.vmm("teardown")
        assert everything(first) == before


@pytest.mark.fault(45)
@pytest.mark.parametrize("address", ["192.168.9.1/24", "172.16.0.1/16"])
def test_a_bridge_that_vmm_did_not_make_is_neither_taken_nor_deleted(first: Host, tmp_path: Path, address: str) -> None:
    first.vmm("teardown")
    first.run("ip", "link", "add", "lan0", "type", "bridge")
    first.run("ip", "address", "add", address, "dev", "lan0")
    first.run("ip", "link", "set", "lan0", "up")
    before = everything(first), first.run("ip", "-4", "address", "show", "dev", "lan0").stdout
    first.vmm("config", "set", "bridge_name", "lan0")
    try:
        for arguments in (["start", "a"], ["setup", "--no-kernel", "--no-image"]):
            said = first.fails(*arguments)
            assert "lan0 is not vmm's" in said
            assert "config set bridge_name vmm-br0" in said
        first.vmm("reconcile", check=False)
        assert "lan0 is not vmm's" in first.vmm("teardown").stderr
        assert (everything(first), first.run("ip", "-4", "address", "show", "dev", "lan0").stdout) == before
    finally:
        first.vmm("config", "set", "bridge_name", "vmm-br0")
        first.run("ip", "link", "delete", "lan0")


@pytest.mark.fault(45)
def test_a_link_in_the_place_of_a_tap_and_tables_of_someone_elses_stay(first: Host) -> None:
    first.run("ip", "link", "add", "vmm-ac100002", "type", "bridge")
    assert "vmm-ac100002 is not this vmm's" in first.fails("start", "a")
    first.vmm("stop", "a")
    first.vmm("reconcile", check=False)
    first.vmm("teardown")
    assert "vmm-ac100002" in first.links()
    first.run("ip", "link", "delete", "vmm-ac100002")
    first.run("nft", "add table ip vmm; add chain ip vmm mine; add rule ip vmm mine counter")
    before = first.run("nft", "list", "ruleset").stdout
    assert "is not vmm's" in first.fails("start", "a")
    first.vmm("stop", "a")
    assert "It was left alone" in first.vmm("teardown").stderr
    assert first.run("nft", "list", "ruleset").stdout == before
    first.run("nft", "delete table ip vmm")
    first.vmm("teardown")


@pytest.mark.fault(45)
def test_another_name_for_the_bridge_waits_until_no_machine_is_on_the_one_there_is(first: Host, runs: int) -> None:
    first.vmm("create", "c", *SMALL)
    assert "machines' bridge is vmm-br0" in first.fails("config", "set", "bridge_name", "vmm-br5")
    # By hand, past that.
    file = first.data_dir / "config" / "config.toml"
    written = file.read_text()
    file.write_text(re.sub(r"(?m)^bridge_name.*\n", "", written) + '\nbridge_name = "vmm-br5"\n')
    try:
        assert "machines' bridge is vmm-br0" in first.fails("start", "c")
    finally:
        file.write_text(written)
        first.vmm("delete", "--force", "c")


def test_an_empty_bridge_goes_when_the_machines_get_another(first: Host) -> None:
    first.start("a")
    first.vmm("stop", "--force", "a")
    first.vmm("config", "set", "bridge_name", "vmm-br5")
    try:
        first.start("a")
        links = everything(first)[0]
        assert "vmm-br5" in links
        assert "vmm-br0" not in links
        first.vmm("stop", "--force", "a")
        first.vmm("teardown")
    finally:
        first.vmm("config", "set", "bridge_name", "vmm-br0")


@pytest.mark.fault(18, 45)
def test_what_the_version_before_made_is_taken_over_with_its_machines(first: Host) -> None:
    """It left no marks: its bridge is known by its MAC and its ports, its taps by the machines that run."""
    pid = first.start("a")
    with unmarked(first):
        _is_taken_over(first, pid)
    first.vmm("delete", "--force", "c")
    first.vmm("stop", "--force", "a")


def _is_taken_over(first: Host, pid: int) -> None:
    rules = first.run("nft", "list", "ruleset").stdout
    before, changed = re.subn(r"\tchain of_\w+ \{\s*\}\n", "", rules)
    assert changed == 3  # families: ip, bridge, ip6
    first.run("nft", "-f", "-", input=f"flush ruleset\n{before}")
    assert "of_" not in first.run("nft", "list", "ruleset").stdout
    first.vmm("create", "c", *SMALL)
    first.start("c")
    links, now = everything(first)
    assert is_running(pid)
    assert len(re.findall(rf"vmm [0-9a-f]{{16}} {first.data_dir}$", links, re.MULTILINE)) == 3
    assert "chain of_" in now
    assert "172.16.0.2" in now


@pytest.mark.fault(45)
def test_unmarked_taps_of_machines_that_are_not_known_here_are_not_taken(first: Host, tmp_path: Path) -> None:
    """Two data directories of the version before: whoever comes to the other's host with this version is refused."""
    first.start("a")
    with unmarked(first), another(first, tmp_path) as second:
        before = everything(first)
        assert "does not know" in second.fails("start", "b")
        second.vmm("teardown", check=False)
        assert everything(first)[0] == before[0]
    first.vmm("stop", "--force", "a")


# Prints whose the tables are, 100 times, while one process makes them anew and another one makes and flushes them.
LOOKS = """
import subprocess, sys
from pathlib import Path
from vmm.model.network import Subnet
from vmm.network.firewall import Firewall
subnet = Subnet(cidr="10.1.0.0/16", gateway="10.1.0.1")
firewall = Firewall(bridge="vmm-br1", subnet=subnet, owner="of_0123456789abcdef")
enough, tables = Path(sys.argv[1], "enough"), Path(sys.argv[1], "tables")
tables.write_text(firewall._tables())
loop = f"until [ -e {enough} ]; do nft -f {tables}; %s; done"
loops = [subprocess.Popen(["sh", "-c", loop % also]) for also in ("true", "nft flush ruleset")]
print(*sorted({firewall.whose().name for _ in range(100)}))
enough.touch()
for each in loops:
    each.wait()
"""


def test_a_table_that_is_being_made_is_not_a_strangers(host: Host, tmp_path: Path) -> None:
    """nft lists it now and then as one without anything in it: a start beside a reconcile was refused for that."""
    # A host where nothing ran: another's supervisor would put its own tables back, and those are truly not ours.
    assert host.run(sys.executable, "-c", LOOKS, str(tmp_path), timeout=120).stdout.split() == ["NOBODYS", "OURS"]
    host.run("nft", "flush", "ruleset")
