"""What people give to `image import`: refused, mended or warned of by name, by the command itself."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from hosts import Host, sh

pytestmark = [pytest.mark.system, pytest.mark.fault(47)]


def a_root(tree: Path) -> Path:
    for name in ("etc", "usr/sbin", "sbin"):
        (tree / name).mkdir(parents=True)
    for program in ("sbin/init", "usr/sbin/sshd"):
        (tree / program).write_text("#!/bin/sh\n")
        (tree / program).chmod(0o755)
    return tree


def refused(host: Host, path: Path, *words: str) -> None:
    said = host.fails("image", "import", str(path), "--name", "given")
    assert all(word in said for word in words), said
    assert "given" not in host.vmm("image", "list").stdout
    assert list((host.data_dir / "staging").glob("*")) == []


def test_an_empty_directory(shared_host: Host, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(shared_host, tmp_path / "empty", "nothing in it")


def test_what_docker_save_writes(shared_host: Host, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    layer = "0123456789abcdef"
    with tarfile.open(archive, "w") as tar:
        for name, text in (
            (f"{layer}/layer.tar", "x"),
            ("manifest.json", json.dumps([{"Config": "c.json", "Layers": [f"{layer}/layer.tar"]}])),
            ("repositories", "{}"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    refused(shared_host, archive, "docker save", "docker export")


def test_an_oci_layout(shared_host: Host, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text("{}")
    refused(shared_host, layout, "OCI layout")
    sh("tar", "-C", str(layout), "-cf", str(tmp_path / "layout.tar"), ".")
    refused(shared_host, tmp_path / "layout.tar", "OCI layout")


def test_a_tree_below_one_directory(shared_host: Host, tmp_path: Path) -> None:
    a_root(tmp_path / "top/rootfs")
    sh("tar", "-C", str(tmp_path / "top"), "-czf", str(tmp_path / "root.tgz"), "rootfs")
    for path in (tmp_path / "top", tmp_path / "root.tgz"):
        done = shared_host.vmm("image", "import", str(path), "--name", "given", "--force")
        assert "below rootfs/" in done.stderr
        assert "no init" not in done.stderr
        image = shared_host.data_dir / "images/rootfs/given/rootfs.ext4"
        assert "init" in sh("debugfs", "-R", "ls /sbin", str(image)).stdout
    shared_host.vmm("image", "delete", "given")


def test_a_unified_archive_of_incus_and_a_bundle(shared_host: Host, tmp_path: Path) -> None:
    for name in ("metadata.yaml", "config.json"):
        top = tmp_path / name.partition(".")[0]
        a_root(top / "rootfs")
        (top / name).write_text("{}")
        sh("tar", "-C", str(top), "-cf", str(tmp_path / "it.tar"), ".")
        for path in (top, tmp_path / "it.tar"):
            done = shared_host.vmm("image", "import", str(path), "--name", "given", "--force")
            assert f"below rootfs/: that is taken. What lies beside it is left out: '{name}'." in done.stderr
            assert "no init" not in done.stderr
    shared_host.vmm("image", "delete", "given")


def test_archives_that_hold_the_root_in_another_archive(shared_host: Host, tmp_path: Path) -> None:
    sh("tar", "-C", str(a_root(tmp_path / "root")), "-cJf", str(tmp_path / "rootfs.tar.xz"), ".")
    for name in ("meta", "saved"):
        (tmp_path / name).mkdir()
    (tmp_path / "meta/metadata.yaml").write_text("architecture: x86_64\n")
    (tmp_path / "saved/0123").mkdir()
    sh("cp", str(tmp_path / "rootfs.tar.xz"), str(tmp_path / "saved/0123/layer.tar"))
    sh("tar", "-C", str(tmp_path / "meta"), "-cJf", str(tmp_path / "meta.tar.xz"), ".")
    sh("tar", "-C", str(tmp_path / "saved"), "-cf", str(tmp_path / "saved.tar"), ".")
    sh("tar", "-C", str(tmp_path), "-cf", str(tmp_path / "twice.tar"), "rootfs.tar.xz", "meta.tar.xz")
    refused(shared_host, tmp_path / "meta.tar.xz", "LXC or Incus", "rootfs.tar.xz")
    refused(shared_host, tmp_path / "saved.tar", "docker save", "docker export")
    refused(shared_host, tmp_path / "twice.tar", "what may hold one: 'meta.tar.xz', 'rootfs.tar.xz'")


def test_a_tree_without_an_init_and_with_an_fstab_of_another_machine(shared_host: Host, tmp_path: Path) -> None:
    tree = a_root(tmp_path / "tree")
    (tree / "sbin/init").unlink()
    (tree / "etc/fstab").write_text("UUID=1111-2222 /boot/efi vfat defaults 0 1\nLABEL=swap none swap sw 0 0\n")
    sh("tar", "-C", str(tree), "-cf", str(tmp_path / "root.tar"), ".")
    sh("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(tmp_path / "root.ext4"), "16M")
    for path in (tree, tmp_path / "root.tar", tmp_path / "root.ext4"):
        done = shared_host.vmm("image", "import", str(path), "--name", "given", "--force")
        assert "has no init (/sbin/init)" in done.stderr
        assert "UUID=1111-2222 ('/boot/efi'), LABEL=swap ('none')" in done.stderr
    shared_host.vmm("image", "delete", "given")


def test_a_disk_image_of_another_hypervisor(shared_host: Host, tmp_path: Path) -> None:
    disk = tmp_path / "disk image.qcow2"
    disk.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(70_000))
    refused(shared_host, disk, "qcow2", f"qemu-img convert -O raw '{disk}'")
