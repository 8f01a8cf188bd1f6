"""Formats read as bytes: superblocks, modules, archives; real ones are in the system tests."""

import contextlib
import gzip
import os
import random
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.errors import ConflictError, HostError, ImageError, NotFoundError, UsageError
from vmm.images import durable, packed, rootfs, sources
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


@pytest.mark.fault(34)
def test_a_damaged_image_gives_nothing_but_a_refusal(tmp_path: Path) -> None:
    """Random bits of a good image are changed, most of them in the superblock, or it is cut somewhere."""
    image = tmp_path / "i"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image), "8M"], check=True)
    good = image.read_bytes()
    refused = 0
    for case in range(200):
        dice = random.Random(case)
        data = bytearray(good)
        for _ in range(dice.randint(1, 40)):
            at = 1024 + dice.randrange(1024) if dice.random() < 0.9 else dice.randrange(len(data))
            data[at] ^= 1 << dice.randrange(8)
        if dice.random() < 0.1:
            del data[dice.randrange(len(data)) :]
        image.write_bytes(data)
        try:
            found = read_superblock(image)
        except ImageError:
            refused += 1
        else:
            assert 0 < found.size <= len(data)
            assert 1024 <= found.block_size <= 65536
    assert 50 < refused < 200


@pytest.mark.fault(34)
@pytest.mark.parametrize("log", [0, 6, 7, 22, 31, 32, 2**32 - 1])
@pytest.mark.parametrize("blocks", [0, 1, 2**32 - 1])
def test_sizes_that_cannot_be(tmp_path: Path, log: int, blocks: int) -> None:
    image = tmp_path / "i"
    head = bytearray(4096)
    struct.pack_into("<I", head, 1024 + 0x4, blocks)
    struct.pack_into("<I", head, 1024 + 0x18, log)
    struct.pack_into("<H", head, 1024 + 0x38, 0xEF53)
    struct.pack_into("<I", head, 1024 + 0x60, 0x40)
    image.write_bytes(head)
    if blocks == 1 and log == 0:
        assert read_superblock(image).size == 1024
    else:
        with pytest.raises(ImageError, match="damaged or cut off"):
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


def test_small_files_get_the_inodes_that_they_need(tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    for number in range(200):
        (tree / str(number)).mkdir(parents=True)
        for name in range(15):
            (tree / str(number) / str(name)).write_text("")
    make_ext4(tree, out, size_mib=24)
    said = subprocess.run(["e2fsck", "-fn", str(out)], capture_output=True, text=True, check=True).stdout
    used = re.search(r"(\d+)/(\d+) files", said)
    assert used is not None
    assert 3200 < int(used[1]) < int(used[2])
    # At 16 MiB mke2fs would make one inode for 4 KiB: 4,096.
    assert sources._inodes(10_000, 16 << 20) == ["-N", "13524"]
    assert sources._inodes(100, 16 << 20) == []


def test_names_of_one_file_count_once_and_holes_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * (1 << 20))
    for number in range(50):
        os.link(tmp_path / "f", tmp_path / f"f{number}")
    with (tmp_path / "holes").open("wb") as made:
        made.truncate(1 << 36)
        made.seek(1 << 35)
        made.write(b"x" * 4096)
    (tmp_path / "l").symlink_to("/" * 100)
    content = sources._content(tmp_path)
    assert content.files == 53
    assert 1 << 20 <= content.stored < (1 << 20) + 16 * 4096
    os.truncate(tmp_path / "holes", 1 << 40)
    with pytest.raises(ImageError, match="larger than any disk"):
        sources._content(tmp_path)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory with more levels than Python's stack, and a path longer than any call takes."""
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("levels", dir_fd=here)
        below = os.open("levels", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    yield top
    subprocess.run(["rm", "-rf", str(top)], check=True)


@pytest.mark.fault(8)
def test_a_directory_that_is_too_deep_is_refused(deep: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read") as caught:
        sources._content(deep)
    assert "too long" in caught.value.details


def test_what_is_packed_is_read_to_its_end_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "-d"  # no option of the program that reads it
    content = os.urandom(3 << 20)
    path.write_bytes(gzip.compress(content, 1))
    packing = packed.packing_of(path.read_bytes())
    assert packing is not None
    with packed.unpacked(path, packing) as stream:
        assert stream.read() == content
    with contextlib.suppress(ValueError), packed.unpacked(path, packing) as stream:
        stream.read(100)
        raise ValueError("enough")  # its writer ends, rather than waiting for a reader
    os.truncate(path, path.stat().st_size - 20)
    with pytest.raises(ImageError, match="cannot be unpacked"), packed.unpacked(path, packing) as stream:
        stream.read()
    missing = packed.Packing(name="x", magic=b"x", argv=("nosuchprogram",), package="nosuch")
    with pytest.raises(HostError, match="nosuchprogram") as caught, packed.unpacked(path, missing) as stream:
        stream.read()
    assert "apt-get install nosuch" in caught.value.resolution


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
    # What reads a seed disk, where the tree has it: behind all else.
    for name, depends in (("isofs", "cdrom"), ("cdrom", "")):
        (drivers / f"{name}.ko").write_bytes(a_module(depends))
    assert [name for name, _ in in_load_order(tree)] == [*order, "cdrom.ko", "isofs.ko"]
    # What a module wishes for, as modprobe would find it; one that is nowhere is no error.
    blk = (drivers / "virtio_blk.ko").read_bytes()
    wish = b"\0softdep=pre: crypto-crc32c nosuch post: later\0softdep=post: later\0softdep=pre: other-one\0"
    (drivers / "virtio_blk.ko").write_bytes(blk + wish)
    for name in ("crc32c_generic", "other-one", "later"):
        (drivers / f"{name}.ko").write_bytes(a_module(""))
    wished = [name for name, _ in in_load_order(tree)]
    for earlier in ("crc32c_generic.ko", "other_one.ko"):
        assert wished.index(earlier) < wished.index("virtio_blk.ko")
    assert "later.ko" not in wished
    (drivers / "virtio_net.ko").unlink()
    with pytest.raises(ImageError, match="virtio_net is missing"):
        in_load_order(tree)


@pytest.mark.fault(9)
def test_modules_that_mean_harm_are_refused_or_have_an_end(tmp_path: Path) -> None:
    drivers = tmp_path / "6.1/kernel"
    drivers.mkdir(parents=True)
    for name, depends in (("virtio_mmio", "virtio_blk"), ("virtio_blk", "virtio_mmio,virtio_blk"), ("ext4", "\xe4")):
        (drivers / f"{name}.ko").write_bytes(a_module("").replace(b"depends=", b"depends=" + depends.encode("latin-1")))
    (drivers / "virtio_net.ko").write_bytes(b"no end: \0depends=virtio_blk")
    with pytest.raises(ImageError, match="is missing"):  # the one that ext4 names in letters that no name has
        in_load_order(tmp_path / "6.1")
    (drivers / "ext4.ko.gz").write_bytes(gzip.compress(bytes(70 << 20), 1))
    (drivers / "ext4.ko").unlink()
    with pytest.raises(ImageError, match="is refused"):
        in_load_order(tmp_path / "6.1")
    # Whatever is unpacked is unpacked into memory: the tree may be the host's own.
    (drivers / "ext4.ko.gz").unlink()
    (drivers / "ext4.ko").write_bytes(a_module(""))
    subprocess.run(["zstd", "-q", "--rm", str(drivers / "ext4.ko")], check=True)
    before = sorted(drivers.iterdir())
    assert sorted(name for name, _ in in_load_order(tmp_path / "6.1")) == [
        "ext4.ko", "virtio_blk.ko", "virtio_mmio.ko", "virtio_net.ko"
    ]  # fmt: skip
    assert sorted(drivers.iterdir()) == before


@pytest.mark.fault(12)
@pytest.mark.parametrize("exchange", [True, False])
def test_one_item_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    """In one step where the file system can; where it cannot, in two."""
    if not exchange:
        monkeypatch.setattr(durable, "_exchanged", lambda one, other: False)
    new, place = tmp_path / "work" / "new", tmp_path / "root" / "place"
    for path, text in ((new, "new"), (place, "old")):
        path.mkdir(parents=True)
        (path / "f").write_text(text)
    durable.put_in_place(new, place)
    assert (place / "f").read_text() == "new"
    assert (tmp_path / "work" / ("new" if exchange else "old") / "f").read_text() == "old"


def test_what_the_file_system_refuses_has_three_parts(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be stored") as caught, durable.told("It cannot be stored."):
        (tmp_path / "none").rename(tmp_path / "other")
    assert "No such file" in caught.value.details
    assert caught.value.resolution


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
