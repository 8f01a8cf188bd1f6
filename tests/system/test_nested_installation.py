"""vmm put on a Debian 13 server for good, with whole guests on Firecracker; systemd-networkd and -resolved are there."""

import json

import nested_image
import pytest
from nested import OFFLINE, Nested, whole
from nested_image import CHECKOUT, HOME

pytestmark = [pytest.mark.system, whole]


def check(nested: Nested, name: str) -> dict:
    return next(check for check in nested.json("doctor") if check["name"] == name)


def console(nested: Nested, name: str) -> str:
    return nested.vmm("console", name, "--full").stdout


def test_installed_as_its_page_says(nested_13: Nested) -> None:
    nested_13.run("rm", "-rf", str(HOME), "/usr/local/bin/vmm")
    said = nested_13.run(*OFFLINE, f"{CHECKOUT}/scripts/install", timeout=900).stdout
    assert "is installed" in said
    nested_13.cool()
    assert nested_13.shell(". /etc/os-release; echo $VERSION_ID") == "13"
    assert nested_13.vmm("--version").stdout.startswith("vmm ")
    assert nested_13.shell("systemctl is-enabled vmm; systemctl is-active vmm").split() == ["enabled", "active"]
    assert check(nested_13, "systemd")["status"] == "ok"
    assert check(nested_13, "kvm")["status"] == "ok"
    assert "auto chooses firecracker" in check(nested_13, "engine")["detail"]


def test_a_guest_gets_the_resolver_behind_resolveds_stub(nested_13: Nested) -> None:
    assert "127.0.0.53" in nested_13.shell("cat /etc/resolv.conf")
    nested_13.vmm("create", "web")
    nested_13.start("web")
    assert nested_13.guest("web", "grep -v ^# /etc/resolv.conf").splitlines()[0] == "nameserver 192.0.2.2"


def test_networkd_leaves_its_links_alone(nested_13: Nested) -> None:
    tap = nested_13.machine("web")["tap_device"]
    assert nested_13.shell("systemctl is-active systemd-networkd") == "active"
    before = nested_13.shell(f"ip -o link show {tap}")
    assert "master vmm-br0" in before
    nested_13.shell("networkctl reload; systemctl restart systemd-networkd; sleep 3")
    assert nested_13.shell(f"ip -o link show {tap}") == before
    links = {
        link["Name"]: link["AdministrativeState"]
        for link in json.loads(nested_13.shell("networkctl list --json=short"))["Interfaces"]
    }
    assert {links[tap], links["vmm-br0"]} == {"unmanaged"}
    assert links["eth0"] == "configured"
    assert nested_13.guest("web", "hostname") == "web"


@pytest.mark.fault(4)
def test_a_reboot_in_a_default_installation_shuts_its_guests_down_and_brings_them_back(nested_13: Nested) -> None:
    nested_13.vmm("create", "down")
    nested_13.vmm("port-forward", "add", "web", "2222:22")
    nested_13.guest("web", "echo unsynced > /root/note")
    nested_13.reboot()
    # By the hook at the very end of its shutdown, and by its kernel where that got to say it.
    ends = console(nested_13, "web").rpartition("=== vmm: web boots at")[0].splitlines()[-3:]
    assert any("reboot: " in line or line.startswith("vmm: the guest ") for line in ends), ends
    kinds = [kind for kind, _ in nested_13.events("web")]
    assert kinds[-2:] == ["stopped", "started"], kinds
    assert ("stopped", "shut down by the guest") in nested_13.events("web")
    # Nobody was asked to start it.
    nested_13.wait_state("web", "running")
    assert nested_13.state("down") == "created"
    nested_13.start("web")
    assert nested_13.guest("web", "cat /root/note") == "unsynced"
    banner = "import socket; print(socket.create_connection(('172.16.0.2', 2222), 20).recv(4).decode())"
    assert nested_13.host.run("python3", "-c", banner).stdout == "SSH-\n"


@pytest.mark.fault(4)
def test_after_the_plug_was_pulled_they_come_back(nested_13: Nested) -> None:
    nested_13.guest("web", "echo synced > /root/note; sync")
    nested_13.shell("sync")
    nested_13.pull_the_plug()
    nested_13.wait_state("web", "running")
    nested_13.start("web")
    assert nested_13.guest("web", "cat /root/note") == "synced"
    assert nested_13.shell("systemctl is-active vmm") == "active"
    nested_13.vmm("stop", "web")


def test_the_demo_works(nested_13: Nested) -> None:
    """From a checkout, as README says; what it would fetch is there."""
    data = "/var/lib/vmm-demo"
    nested_13.shell(f"mkdir -p {data} && cp -a --sparse=always /var/lib/vmm/bin /var/lib/vmm/images {data}")
    said = nested_13.run(*OFFLINE, f"{CHECKOUT}/scripts/demo", timeout=900).stdout
    print(said)
    assert "All of it worked." in said
    assert "hello from inside the guest" in said
    assert "hello from the outside world" in said
    assert "shut down by the guest" in said
    # Its machine ran on the engine that the tool is for.
    assert "auto chooses firecracker" in said
    assert nested_13.shell("ip netns list; ls -d /run/netns/vmm-demo 2>/dev/null; true") == ""


def test_uninstalled(nested_13: Nested) -> None:
    nested_13.start("web")
    said = nested_13.run(f"{CHECKOUT}/scripts/uninstall", "--keep-data", timeout=600).stdout
    assert "its data is kept" in said
    left = nested_13.shell(f"ls -d {HOME} /usr/local/bin/vmm /etc/systemd/system/vmm.service 2>/dev/null; true")
    assert left == ""
    assert "vmm" not in nested_13.shell("ip -o link; nft list ruleset; systemctl list-units --plain --no-legend 'vmm*'")
    assert nested_13.shell("pgrep -x firecracker; true") == ""
    assert nested_13.shell("test -e /var/lib/vmm/vms/web/disk.ext4 && echo kept") == "kept"
    nested_13.run(f"{CHECKOUT}/scripts/uninstall", "--purge", timeout=600)
    assert nested_13.shell("ls -d /var/lib/vmm 2>/dev/null; true") == ""
    assert nested_image.DEBIAN_13.suite == "trixie"
