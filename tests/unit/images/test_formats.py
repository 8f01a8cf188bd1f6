"""Formats read as bytes: superblocks, modules, archives; real ones are in the system tests."""

import subprocess
from pathlib import Path

import pytest

from vmm.errors import ConflictError, HostError, ImageError, NotFoundError, UsageError
from vmm.images import rootfs
from vmm.images.ext4 import read_superblock
from vmm.images.modules import find_tree, in_load_order
from vmm.images.packages import os_release
from vmm.images.rootfs import recipe_for
from vmm.images.shelf import Shelf
from vmm.images.sources import Kind, kind_of, make_ext4
from vmm.images.tuning import FILES, MASKED, tune


def test_a_real_superblock(tmp_path: Path) -> None:
    image = tmp_path / "i"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image), "64M"], check=True)
    found = read_superblock(image)
    assert found.size == 64 << 20
    with image.open("r+b") as stream:
        stream.truncate(32 << 20)
    with pytest.raises(ImageError, match="cut off"):
        read_superblock(image)
    with image.open("r+b") as stream:
        stream.seek(1024 + 0x38)
        stream.write(b"\0\0")
    with pytest.raises(ImageError, match="not an ext4"):
        read_superblock(image)


def test_ext3_is_no_ext4(tmp_path: Path) -> None:
    image = tmp_path / "i"
    subprocess.run(["mke2fs", "-q", "-t", "ext3", str(image), "64M"], check=True)
    with pytest.raises(ImageError):
        kind_of(image)


def test_what_a_path_is(tmp_path: Path) -> None:
    assert kind_of(tmp_path) is Kind.DIRECTORY
    tar = tmp_path / "t.tar"
    subprocess.run(["tar", "-cf", str(tar), "-C", "/etc", "hostname"], check=True)
    assert kind_of(tar) is Kind.TAR
    with pytest.raises(ImageError, match="cannot be read"):
        kind_of(tmp_path / "none")


def test_a_size_that_is_too_small_names_what_is_needed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").write_bytes(b"x" * (5 << 20))
    with pytest.raises(UsageError, match="does not fit"):
        make_ext4(tree, tmp_path / "out", size_mib=4)


def a_module(depends: str) -> bytes:
    return b"\x7fELF" + b"\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    tree = tmp_path / "lib/modules/6.1"
    drivers = tree / "kernel/drivers"
    drivers.mkdir(parents=True)
    needs = {"virtio_mmio": "virtio,virtio-ring", "virtio": "", "virtio_ring": "", "virtio_blk": "virtio_ring",
             "virtio_net": "net_failover", "net-failover": "failover", "failover": ""}  # fmt: skip
    for name, depends in needs.items():
        (drivers / f"{name}.ko").write_bytes(a_module(depends))
    (tree / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    assert find_tree(tmp_path) == tree
    order = [name for name, _ in in_load_order(tree)]
    for earlier, later in (("virtio_ring.ko", "virtio_blk.ko"), ("failover.ko", "net_failover.ko"),
                           ("net_failover.ko", "virtio_net.ko"), ("virtio.ko", "virtio_mmio.ko")):  # fmt: skip
        assert order.index(earlier) < order.index(later)
    assert "ext4.ko" not in order
    (drivers / "virtio_net.ko").unlink()
    with pytest.raises(ImageError, match="virtio_net is missing"):
        in_load_order(tree)


def test_a_shelf_shows_whole_items_only(tmp_path: Path) -> None:
    shelf = Shelf(root=tmp_path / "s", staging=tmp_path / "w", what="image", description="image.json")

    def fail_half_way(new: Path) -> None:
        (new / "half").write_text("")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), shelf.adding("a", force=False) as new:
        fail_half_way(new)
    assert shelf.names() == []
    assert list((tmp_path / "w").iterdir()) == []
    with shelf.adding("a", force=False) as new:
        shelf.describe(new, {"k": "1"})
    assert shelf.read("a") == {"k": "1"}
    with pytest.raises(ConflictError), shelf.adding("a", force=False):
        pass
    with shelf.adding("a", force=True) as new:
        shelf.describe(new, {"k": "2"})
    assert shelf.read("a") == {"k": "2"}
    shelf.delete("a")
    with pytest.raises(NotFoundError):
        shelf.read("a")


def test_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(rootfs._KEYRINGS, "ubuntu", tmp_path / "none")
    with pytest.raises(HostError, match="cannot be built") as caught:
        recipe_for("ubuntu-24.04")
    assert "ubuntu-keyring" in caught.value.resolution
    (tmp_path / "none").write_text("")
    assert recipe_for("ubuntu-24.04").suite == "noble"
    with pytest.raises(NotFoundError, match="to pull"):
        recipe_for("windows")
    assert recipe_for("debian-12").suite == "bookworm"


def test_os_release_is_unquoted(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('ID=debian\n# no\nNAME="Debian GNU/Linux"\n\n')
    assert os_release(path) == {"ID": "debian", "NAME": "Debian GNU/Linux"}
    assert os_release(tmp_path / "none") == {}


def test_tuning_masks_what_it_lists_and_keeps_ssh(tmp_path: Path) -> None:
    (tmp_path / "etc/ssh").mkdir(parents=True)
    (tmp_path / "etc/ssh/ssh_host_rsa_key").write_text("built with the image")
    tune(tmp_path)
    units = tmp_path / "etc/systemd/system"
    assert all((units / unit).readlink() == Path("/dev/null") for unit in MASKED)
    assert all(reason for reason in MASKED.values())
    assert (units / "sysinit.target.wants/ssh.service").exists()
    assert not (tmp_path / "etc/ssh/ssh_host_rsa_key").exists()
    for name in FILES:
        assert (tmp_path / name).is_file()
