"""A host whose networkd takes every link in hand: real systemd, real networkd, real machines."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_kernel
from hosts import LIBRARY, SMALL, sh, wait_for
from nspawn import Container, a_container

pytestmark = pytest.mark.system

TOP = Path(__file__).parents[2]
# As someone writes it who wants DHCP wherever a cable is plugged in.
CATCH_ALL = "[Match]\nName=*\n\n[Network]\nDHCP=yes\nLinkLocalAddressing=yes\nIPv6AcceptRA=yes\n"
TOLD = Path("etc/systemd/network/00-00-vmm.network")
TAP = "vmm-ac100002"


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    directory = tmp_path_factory.mktemp("managed")
    with a_container(directory) as made:
        data = made.root / "var/lib/vmm"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True)
        sh("cp", "-a", "--sparse=always", "--parents", "./bin", str(data), cwd=LIBRARY)
        shutil.copytree(TOP / "src", made.root / "opt/vmm", ignore=shutil.ignore_patterns("__pycache__"))
        for package in ("click", "tomlkit"):
            spec = importlib.util.find_spec(package)
            assert spec is not None
            assert spec.origin is not None
            shutil.copytree(Path(spec.origin).parent, made.root / "opt/vmm" / package)
        sites = made.run("/usr/bin/python3", "-c", "import site; print(site.getsitepackages()[-1])").stdout.strip()
        (made.root / sites.lstrip("/")).mkdir(parents=True, exist_ok=True)
        (made.root / sites.lstrip("/") / "vmm-test.pth").write_text("/opt/vmm\n")
        (made.root / "usr/local/bin/vmm").write_text('#!/bin/sh\nexec /usr/bin/python3 -I -m vmm "$@"\n')
        (made.root / "usr/local/bin/vmm").chmod(0o755)
        (made.root / "root/tiny.elf").write_bytes(tiny_kernel.build())
        (made.root / "etc/systemd/network/zz-all.network").write_text(CATCH_ALL)
        made.run("systemctl", "start", "systemd-networkd")
        yield made


def link(container: Container) -> str:
    return container.run("ip", "-d", "-o", "link", "show", TAP).stdout


def ipv6(container: Container) -> str:
    return container.run("cat", f"/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6").stdout.strip()


def check(container: Container) -> dict:
    done = container.run("vmm", "doctor", "--output", "json", check=False)
    return {row["name"]: row for row in json.loads(done.stdout)}["link managers"]


@pytest.mark.fault(50)
def test_networkd_is_told_to_leave_machines_links_alone(container: Container) -> None:
    container.run("mke2fs", "-q", "-t", "ext4", "/root/tiny.ext4", "256M")
    container.run("vmm", "image", "import", "/root/tiny.ext4", "--name", "tiny")
    container.run("vmm", "kernel", "import", "/root/tiny.elf", "--name", "tiny", "--no-stage1")
    assert (check(container)["status"], check(container)["fix"]) == ("warning", "sudo vmm setup")
    container.run("vmm", "setup", "--no-kernel", "--no-image")
    assert check(container)["status"] == "ok"
    container.run("vmm", "create", "m", *SMALL)
    container.run("vmm", "start", "m")
    wait_for(lambda: "unmanaged" in container.run("networkctl", "list", TAP).stdout, what="networkd's look at the tap")
    assert ("master vmm-br0" in link(container), "isolated on" in link(container)) == (True, True)
    assert ipv6(container) == "1"
    container.run("vmm", "stop", "m", "--force")


@pytest.mark.fault(41, 50)
def test_what_networkd_does_all_the_same_is_mended(container: Container) -> None:
    """As where its file was removed, or another comes before it."""
    (container.root / TOLD).unlink()
    container.run("networkctl", "reload")
    container.run("vmm", "start", "m")
    container.run("networkctl", "reconfigure", TAP)

    def told() -> list[str]:
        events = json.loads(container.run("vmm", "events", "--output", "json").stdout)
        return [event["detail"] for event in events if event["kind"] == "repaired"]

    wait_for(lambda: [what for what in told() if TAP in what], timeout=30, what="the supervisor's repair")
    wait_for(lambda: "master vmm-br0" in link(container) and "isolated on" in link(container), what="the tap's bridge")
    wait_for(lambda: ipv6(container) == "1", what="the end of IPv6 on the tap")
    # reconcile tells networkd again.
    container.run("vmm", "reconcile")
    assert (container.root / TOLD).exists()
    container.run("vmm", "delete", "m", "--force")


@pytest.mark.fault(50)
def test_what_was_laid_down_goes_with_teardown_and_nothing_else(container: Container) -> None:
    others = container.root / "etc/NetworkManager/conf.d"
    others.mkdir(parents=True, exist_ok=True)
    container.run("vmm", "setup", "--no-kernel", "--no-image")
    ours = others / "00-vmm.conf"
    assert "managed=0" in ours.read_text()
    container.run("vmm", "teardown")
    assert not ours.exists()
    assert not (container.root / TOLD).exists()
    assert (container.root / "etc/systemd/network/zz-all.network").read_text() == CATCH_ALL
    # What its administrator has put there is theirs.
    ours.write_text("[device-mine]\nmanaged=1\n")
    container.run("vmm", "teardown")
    assert ours.read_text() == "[device-mine]\nmanaged=1\n"
    shutil.rmtree(others.parent)
