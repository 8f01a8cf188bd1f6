"""What the verbs of the truth table are given: tiny files, and stand-ins for the programs that fetch from a network."""

import shutil
import subprocess
from pathlib import Path

import fault_mounts
import tiny_kernel

_VERSION = "6.1.0-99-cloud-amd64"
# Fetching and building takes minutes and a registry, and scripts/test does it for real; what is tried here is vmm while
# it waits for these, and what it does with what they bring. All but the network is real: dpkg-deb, tar, mke2fs.
_STAND_INS = {
    "mmdebstrap": """#!/bin/sh
for argument; do case $argument in */tree) tree=$argument;; esac; done
mkdir -p "$tree/etc/ssh" "$tree/etc/systemd/system/multi-user.target.wants" "$tree/etc/default"
ln -s /lib/systemd/system/ssh.service "$tree/etc/systemd/system/multi-user.target.wants/ssh.service"
echo a key >"$tree/etc/ssh/ssh_host_rsa_key"
""",
    "apt-cache": f"""#!/bin/sh
for package; do :; done
echo "$package"
case $package in *{_VERSION}) echo "  Depends: kmod";; *) echo "  Depends: linux-image-{_VERSION}";; esac
""",
    "apt-get": """#!/bin/sh
exec cp {package} .
""",
}


def stock(directory: Path, library: Path) -> dict[str, str]:
    """Make the files in `directory`, put the stand-ins where vmm looks first, and return what each file is called."""
    directory.mkdir(parents=True)
    made = {name: directory / name for name in ("kernel", "image", "tar", "user_data")}
    made["kernel"].write_bytes(tiny_kernel.build())
    # Without a journal and with few inodes it has little in it to copy.
    options = ["-O", "^has_journal,^resize_inode", "-b", "4096", "-N", "16"]
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *options, made["image"], "8M"], check=True, capture_output=True)
    made["user_data"].write_text("#cloud-config\n{}\n")
    tree = directory / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "hostname").write_text("tiny\n")
    subprocess.run(["tar", "-cf", made["tar"], "-C", tree, "."], check=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "id"], check=True)
    _stand_in(directory / "programs", _package(directory / "package"))
    found = {name: str(path) for name, path in made.items()}
    return {**found, "key": str(directory / "id.pub"), "firecracker": str(library / "bin" / "firecracker")}


def _package(tree: Path) -> Path:
    """Build a Debian package with a kernel that has all that it needs built in."""
    modules = tree / "lib" / "modules" / _VERSION
    (modules / "kernel").mkdir(parents=True)
    (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in ("virtio_mmio", "virtio_blk", "virtio_net", "ext4")))  # fmt: skip
    (tree / "boot").mkdir()
    (tree / "boot" / f"vmlinuz-{_VERSION}").write_bytes(tiny_kernel.build())
    (tree / "DEBIAN").mkdir()
    facts = (
        "Package: linux-image-" + _VERSION,
        "Version: 1",
        "Architecture: amd64",
        "Maintainer: none",
        "Description: tiny",
    )
    (tree / "DEBIAN" / "control").write_text("\n".join(facts) + "\n")
    package = tree.with_suffix(".deb")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, package], check=True, capture_output=True)
    return package


def _stand_in(directory: Path, package: Path) -> None:
    """Lay the stand-ins over a directory that vmm's own search path begins with, for this process and its children."""
    directory.mkdir()
    for name, text in _STAND_INS.items():
        program = directory / name
        program.write_text(text.replace("{package}", str(package)))
        program.chmod(0o755)
    first = Path("/usr/local/sbin")
    for there in first.iterdir():
        if not (directory / there.name).exists():
            shutil.copy2(there, directory / there.name, follow_symlinks=False)
    fault_mounts.bind(directory, first)
