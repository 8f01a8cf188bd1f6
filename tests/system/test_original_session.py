"""The README of vmm's predecessor, typed as it stands there, and the page for those who come from it."""

import re
import shlex
from pathlib import Path

import pytest
from hosts import Host, wait_for

pytestmark = pytest.mark.system

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "coming-from-the-original.md"
# "Basic Usage", word for word.
BASIC = """
vmm config init
sudo vmm image pull
sudo vmm create myvm --cpus 2 --memory 1024
sudo vmm start myvm
vmm list
ping 172.16.0.2
sudo vmm stop myvm
sudo vmm delete myvm
"""
# One ICMP echo request, as ping sends it: minimal hosts have no ping. It prints nothing unless the answer came.
PING = """
import socket, struct, sys
body = b"from a test."
total = sum(struct.unpack("!10H", struct.pack("!BBHHH", 8, 0, 0, 7, 1) + body))
total = (total & 0xFFFF) + (total >> 16)
packet = struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, 7, 1) + body
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as wire:
    wire.settimeout(1)
    wire.sendto(packet, (sys.argv[1], 0))
    while True:
        answer, (sender, _) = wire.recvfrom(2048)
        if sender == sys.argv[1] and answer[20] == 0 and answer.endswith(body):
            print("answered")
            break
"""


def typed(host: Host, line: str) -> str:
    """Type a line of the README's, as root, who needs no sudo; it must end with 0. Returns what it said."""
    words = shlex.split(line)
    if words[0] == "sudo":
        words = words[1:]
    if words[0] == "ping":
        # ping goes on until the guest answers.
        ping = ("/usr/bin/env", "python3", "-c", PING, words[1])
        return str(wait_for(lambda: host.run(*ping, check=False).stdout, timeout=120, what=line))
    assert words[0] == "vmm", line
    done = host.vmm(*words[1:])
    return done.stdout + done.stderr


def lines_of_the_page() -> list[str]:
    """Return what the page says can be typed as before."""
    found = re.search(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return [line.partition("  #")[0].rstrip() for line in found[1].splitlines()]


def test_the_basic_session_as_it_is_typed(host: Host) -> None:
    said = {}
    for line in BASIC.strip().splitlines():
        said[line] = typed(host, line)
        if line.startswith("vmm config init"):
            assert (host.data_dir / "config" / "config.toml").is_file()
        if "image pull" in line:
            # The library has both: there is no way to a mirror from here.
            assert "The image default is here already" in said[line]
            assert "The kernel default is here" in said[line]
        if " stop " in line:
            assert host.machine("myvm")["state"] == "stopped"
    row = next(line for line in said["vmm list"].splitlines() if line.startswith("myvm"))
    assert row.split()[1:5] == ["running", "172.16.0.2", "2", "1024M"]
    assert said["ping 172.16.0.2"] == "answered\n"
    assert host.json("list") == []
    assert not (host.data_dir / "vms" / "myvm").exists()


def test_what_the_page_says_is_typed_as_before(host: Host) -> None:
    lines = lines_of_the_page()
    assert set(BASIC.strip().splitlines()) - {"ping 172.16.0.2"} <= set(lines)
    for line in lines:
        said = typed(host, line)
        if line == "vmm port-forward list myvm":
            assert "8080" in said
    assert host.json("list") == []


def test_what_the_original_left_in_the_data_directory_stays(host: Host) -> None:
    """Its machines' disks lie where this vmm's would: a machine of that name is refused, and never takes them along."""
    machines = host.data_dir / "vms"
    (machines / "myvm").mkdir(parents=True)
    disk, said = machines / "myvm" / "rootfs.ext4", machines / "myvm.json"
    disk.write_bytes(b"precious")
    said.write_text('{"name": "myvm", "state": "stopped"}')
    for arguments in (["create", "myvm"], ["run", "myvm", "--", "true"]):
        error = host.fails(*arguments)
        assert "holds files already, which are not vmm's" in error
        assert f"In {machines / 'myvm'}: 'rootfs.ext4'" in error
    host.vmm("create", "other")
    host.vmm("reconcile")
    host.vmm("delete", "other")
    host.vmm("delete", "--all", "--force")
    assert (disk.read_bytes(), said.exists()) == (b"precious", True)
    # As the error says, and the page.
    disk.rename(host.data_dir / "rootfs.ext4")
    (machines / "myvm").rmdir()
    said.unlink()
    host.vmm("create", "myvm")
    host.vmm("delete", "myvm")
