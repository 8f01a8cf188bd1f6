"""What a guest boots through: archives that the kernel's own format reader takes, facts that cannot become commands."""

import base64
import re
import subprocess
from pathlib import Path

import pytest

from vmm.errors import UsageError
from vmm.guest import stage1
from vmm.guest.cpio import Archive
from vmm.guest.facts import Facts, facts_archive, write_initrd
from vmm.guest.keys import ManagedKey, checked_public_key, make_key


def unpacked(data: bytes, directory: Path) -> Path:
    """Unpack with busybox's cpio, which reads the kernel's format."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["busybox", "cpio", "-idm"], input=data, cwd=directory, check=True, capture_output=True)
    return directory


def some_facts(**changes: object) -> Facts:
    values: dict[str, object] = {
        "hostname": "dev_1.x", "machine_id": "0" * 32, "mac": "06:00:ac:10:00:02", "address": "172.16.0.2", "prefix_length": 16,
        "gateway": "172.16.0.1", "resolvers": ("9.9.9.9", "1.1.1.1"), "authorized_keys": ("ssh-ed25519 AAAA $(id)",),
        "host_key": "SECRET\n", "host_key_pub": "ssh-ed25519 BBBB\n",
        **changes,
    }  # fmt: skip
    return Facts(**values)  # type: ignore[arg-type]


def test_an_archive_unpacks_to_what_was_put_in(tmp_path: Path) -> None:
    archive = Archive()
    archive.add_file("a/b/file", b"content", mode=0o640)
    archive.add_file("a/other", b"x" * 5)
    archive.add_link("a/link", "b/file")
    tree = unpacked(archive.to_bytes(), tmp_path / "out")
    assert (tree / "a/b/file").read_bytes() == b"content"
    assert (tree / "a/b/file").stat().st_mode & 0o777 == 0o640
    assert (tree / "a/link").readlink() == Path("b/file")
    assert len(archive.to_bytes()) % 4 == 0


def test_the_same_content_gives_the_same_bytes() -> None:
    assert facts_archive(some_facts()) == facts_archive(some_facts())


def test_facts_are_files_that_are_only_ever_read(tmp_path: Path) -> None:
    tree = unpacked(facts_archive(some_facts(grow=True)), tmp_path / "out") / "vmm"
    assert (tree / "hostname").read_text() == "dev-1-x\n"
    assert (tree / "address").read_text() == "172.16.0.2/16\n"
    assert (tree / "resolv.conf").read_text() == "nameserver 9.9.9.9\nnameserver 1.1.1.1\n"
    assert (tree / "authorized_keys").read_text() == "ssh-ed25519 AAAA $(id)\n"
    assert (tree / "grow").exists()
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tree.iterdir())


@pytest.mark.parametrize(("name", "host"), [("a", "a"), ("a_b.c", "a-b-c"), ("x" * 64, "x" * 63), ("1-", "1")])
def test_host_names(name: str, host: str, tmp_path: Path) -> None:
    tree = unpacked(facts_archive(some_facts(hostname=name)), tmp_path / "out")
    assert (tree / "vmm/hostname").read_text() == f"{host}\n"


@pytest.mark.fault(24)
def test_an_initrd_is_its_archives_one_after_another(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_bytes(b"odd")
    out = tmp_path / "initrd"
    write_initrd(out, archives=[first], facts=some_facts())
    assert out.read_bytes() == b"odd\0" + facts_archive(some_facts())
    assert out.stat().st_mode & 0o777 == 0o600


def test_stage1_holds_a_static_busybox_and_the_modules_in_order(tmp_path: Path) -> None:
    import gzip

    out = tmp_path / "stage1"
    stage1.build_stage1([stage1.Module(name="b.ko", content=b"1"), stage1.Module(name="a.ko", content=b"2")], out)
    data = gzip.decompress(out.read_bytes())
    names = re.findall(rb"modules/[0-9a-z.-]+", data)
    assert names == [b"modules/00-b.ko", b"modules/01-a.ko"]
    assert b"#!/bin/busybox sh" not in data


def test_a_machine_boots_through_the_scripts_of_the_vmm_that_starts_it(tmp_path: Path) -> None:
    tree = unpacked(facts_archive(some_facts()), tmp_path / "out")
    for name, script in (("init", "stage1-init.sh"), ("facts", "stage1-facts.sh")):
        assert (tree / name).read_bytes() == Path(stage1.__file__).with_name(script).read_bytes()
        assert (tree / name).stat().st_mode & 0o777 == 0o755


def test_the_images_own_network_programs_are_told_the_address(tmp_path: Path) -> None:
    run = unpacked(facts_archive(some_facts()), tmp_path / "out") / "vmm-run"
    network = (run / "systemd/network/!vmm.network").read_text()
    assert (
        "MACAddress=06:00:ac:10:00:02\n[Network]\nAddress=172.16.0.2/16\nGateway=172.16.0.1\nDNS=9.9.9.9\n" in network
    )
    connection = run / "NetworkManager/system-connections/vmm.nmconnection"
    assert "address1=172.16.0.2/16,172.16.0.1\ndns=9.9.9.9;1.1.1.1;\n" in connection.read_text()
    # NetworkManager reads no connection that others may read.
    assert connection.stat().st_mode & 0o777 == 0o600
    assert (run / "network/ifstate.eth0").read_text() == "eth0\n"


@pytest.mark.parametrize("name", ["stage1-init.sh", "stage1-facts.sh"])
def test_the_scripts_are_scripts_and_never_source_a_fact(name: str) -> None:
    path = Path(stage1.__file__).with_name(name)
    subprocess.run(["busybox", "sh", "-n", str(path)], check=True)
    text = path.read_text()
    assert "eval" not in text
    assert not re.search(r"^\s*(\.|source) ", text, re.MULTILINE)


@pytest.mark.fault(24)
def test_the_managed_key_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    key = ManagedKey(directory=tmp_path / "ssh")
    first = key.public_key()
    assert first.startswith("ssh-ed25519 ")
    assert key.public_key() == first
    assert (tmp_path / "ssh").stat().st_mode & 0o777 == 0o700
    assert key.private.stat().st_mode & 0o777 == 0o600


def test_public_keys_are_told_from_everything_else(tmp_path: Path) -> None:
    make_key(tmp_path / "id", comment="who")
    good = (tmp_path / "id.pub").read_text()
    assert checked_public_key(good, source="--ssh-key") == good.strip()
    for bad in (
        "",
        "hello",
        "ssh-ed25519",
        "ssh-ed25519 !!!",
        good + good,
        "command=x " + good,
        good.replace("ed", "xx"),
        # What is behind the type is no key of it.
        "ssh-rsa " + good.split()[1],
        "ssh-ed25519 " + base64.b64encode(b"x" * 20).decode(),
        "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519").decode(),
    ):
        with pytest.raises(UsageError):
            checked_public_key(bad, source="--ssh-key")
    with pytest.raises(UsageError, match="private key"):
        checked_public_key((tmp_path / "id").read_text(), source="--ssh-key")
