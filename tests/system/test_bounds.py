"""What stands where a file belongs: a FIFO, a device, an endless or a deep file never hangs a command or breaks it."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from hosts import SMALL, Host, sh

from conftest import add_tiny

pytestmark = pytest.mark.system

# No command that fails by what it reads takes longer, on a busy machine either.
MOST_S = 20.0
FAULTS = ["a FIFO", "a device", "a directory", "a hundred megabytes", "deep", "no text", "a NUL"]


@pytest.fixture(scope="module")
def ready(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    add_tiny(shared_host, tmp_path_factory.mktemp("tiny"))
    shared_host.vmm("config", "init")
    shared_host.vmm("create", "here", *SMALL)
    return shared_host


def put(path: Path, fault: str) -> Path:
    """Put something at `path` that is not what belongs there."""
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    match fault:
        case "a FIFO":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a directory":
            path.mkdir()
        case "a hundred megabytes":
            path.write_bytes(b"# more of the same\n" * 100)
            os.truncate(path, 100 << 20)
        case "deep":
            path.write_text("a = " + "[" * 100_000 if path.suffix == ".toml" else '{"a": ' + "[" * 100_000)
        case "no text":
            path.write_bytes(b"\xff\xfe" * 100)
        case "a NUL":
            path.write_bytes(b'subnet = "10.0.0.0/8\0"\n')
    return path


def refused(host: Host, *arguments: str, code: int = 1) -> str:
    began = time.monotonic()
    said = host.fails(*arguments, code=code, timeout=MOST_S * 3)
    assert time.monotonic() - began < MOST_S
    assert len(said) < 2000, said[:3000]
    assert "[Errno" not in said
    return said


@pytest.mark.fault(16)
@pytest.mark.parametrize("fault", FAULTS)
def test_where_the_configuration_belongs(ready: Host, tmp_path: Path, fault: str) -> None:
    """By its flag, and in its own place; `config set` reads it by another parser."""
    file = put(tmp_path / "c.toml", fault)
    for arguments in (["list"], ["config", "show"], ["doctor"], ["config", "set", "qemu", "/q"]):
        assert str(file) in refused(ready, "--config", str(file), *arguments)
    own = ready.data_dir / "config" / "config.toml"
    shutil.copy(own, tmp_path / "kept")
    try:
        put(own, fault)
        assert str(own) in refused(ready, "list")
        assert str(own) in refused(ready, "start", "here")
    finally:
        shutil.rmtree(own) if own.is_dir() else own.unlink()
        shutil.move(tmp_path / "kept", own)
    assert ready.vmm("list", "--output", "name").stdout == "here\n"


@pytest.mark.fault(16)
@pytest.mark.parametrize("fault", FAULTS)
def test_where_keys_and_user_data_belong(ready: Host, tmp_path: Path, fault: str) -> None:
    file = put(tmp_path / "file", fault)
    assert str(file) in refused(ready, "create", "m", *SMALL, "--ssh-key", str(file), code=2)
    if fault != "deep":  # which is as good a text as any
        assert str(file) in refused(ready, "create", "m", *SMALL, "--user-data", str(file), code=2)
    ready.vmm("config", "set", "vm_defaults.ssh_key_path", str(file))
    try:
        assert str(file) in refused(ready, "create", "m", *SMALL, code=2)
    finally:
        ready.vmm("config", "set", "vm_defaults.ssh_key_path", "")
    assert ready.vmm("list", "--output", "name").stdout == "here\n"


@pytest.mark.fault(17)
@pytest.mark.parametrize("fault", FAULTS)
def test_where_the_library_s_descriptions_belong(ready: Host, tmp_path: Path, fault: str) -> None:
    for what, place, name in (("image", "rootfs", "image.json"), ("kernel", "kernels", "kernel.json")):
        path = ready.data_dir / "images" / place / "tiny" / name
        kept = path.read_bytes()
        try:
            put(path, fault)
            rows = json.loads(ready.vmm(what, "list", "--output", "json", timeout=MOST_S).stdout)
            assert {"name": "tiny", "damaged": True} in rows
            assert "damaged" in refused(ready, "create", "m", *SMALL)
        finally:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            path.write_bytes(kept)
    ready.vmm("create", "m", *SMALL)
    ready.vmm("delete", "m")


@pytest.mark.fault(17)
@pytest.mark.parametrize("fault", FAULTS)
def test_where_a_machine_s_description_belongs(ready: Host, fault: str) -> None:
    path = ready.data_dir / "vms" / "here" / "machine.json"
    kept = path.read_bytes()
    try:
        put(path, fault)
        began = time.monotonic()
        ready.vmm("db", "check", check=False, timeout=MOST_S)
        said = ready.vmm("db", "restore", "--rebuild", "--force", timeout=MOST_S).stderr
        assert "machine.json" in said
        assert "[Errno" not in said
        assert time.monotonic() - began < MOST_S
    finally:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        path.write_bytes(kept)
        ready.vmm("db", "restore", "--rebuild", "--force")
    assert ready.vmm("list", "--output", "name").stdout == "here\n"


@pytest.mark.fault(16)
@pytest.mark.parametrize("fault", ["a FIFO", "a device", "no text", "a hundred megabytes", "missing"])
def test_where_images_kernels_releases_and_copies_belong(ready: Host, tmp_path: Path, fault: str) -> None:
    file = put(tmp_path / "it", fault)
    refused(ready, "image", "import", str(file), "--name", "x")
    refused(ready, "kernel", "import", str(file), "--name", "x")
    refused(ready, "db", "restore", "--force", "--from", str(file))
    refused(ready, "setup", "--no-kernel", "--no-image", "--no-network", "--force", "--firecracker", str(file))
    tree = tmp_path / "6.1.0"
    (tree / "kernel").mkdir(parents=True)
    put(tree / "modules.builtin", fault)
    vmlinux = ready.data_dir / "images" / "kernels" / "default" / "vmlinux"
    refused(ready, "kernel", "import", str(vmlinux), "--name", "x", "--modules", str(tree))
    assert ready.vmm("list", "--output", "name").stdout == "here\n"


def test_an_empty_path_is_not_the_current_directory(ready: Host) -> None:
    assert "an empty text is no path" in ready.fails("image", "import", "", "--name", "x", code=2)
    assert "an empty text is no path" in ready.fails("kernel", "import", "", "--name", "x", code=2)
    for option in ("--image", "--kernel"):
        ready.fails("create", "m", option, "", code=2)
    for what in ("image", "kernel"):
        ready.fails(what, "pull", "", code=2)
    assert "x" not in ready.vmm("image", "list", "--output", "name").stdout.split()


@pytest.mark.parametrize("subnet", ["0.0.0.0/0", "127.0.0.0/8", "224.0.0.0/24", "169.254.0.0/16", "240.0.0.0/4"])
def test_subnets_of_no_hosts(ready: Host, subnet: str) -> None:
    before = (ready.data_dir / "config" / "config.toml").read_text()
    said = refused(ready, "config", "set", "subnet", subnet)
    assert subnet in said
    assert ".draft" not in said
    assert (ready.data_dir / "config" / "config.toml").read_text() == before


@pytest.mark.fault(16)
def test_a_known_hosts_that_is_none_keeps_nobody_waiting(ready: Host) -> None:
    ready.start("here")
    path = ready.data_dir / "vms" / "here" / "known_hosts"
    kept = path.read_bytes()
    try:
        put(path, "a FIFO")
        assert "known_hosts" in refused(ready, "exec", "here", "--", "true")
    finally:
        path.unlink()
        path.write_bytes(kept)
        ready.vmm("stop", "--force", "here")
    assert sh("pgrep", "-f", str(path), check=False).stdout == ""
