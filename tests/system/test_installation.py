"""vmm put on a host for good: installed, enabled, rebooted, crashed, and taken off again; systemd is PID 1."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_kernel
from hosts import LIBRARY, sh, wait_for
from nspawn import Container, a_container

pytestmark = pytest.mark.system

TOP = Path(__file__).parents[2]
# Where a checkout and its packages lie inside: the container sees neither this host's /tmp nor its other mounts.
CHECKOUT, PACKAGES = Path("/opt/vmm"), Path("/opt/packages")
OFFLINE = ["env", "PIP_NO_INDEX=1", f"PIP_FIND_LINKS={PACKAGES}"]


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    with a_container(tmp_path_factory.mktemp("container")) as made:
        data = made.root / "var/lib/vmm"
        shutil.rmtree(data, ignore_errors=True)
        for part in ("bin", "images"):
            sh("cp", "-a", "--sparse=always", "--parents", f"./{part}", str(_made(data)), cwd=LIBRARY)
        shutil.copytree(LIBRARY / "packages", _inside(made, PACKAGES))
        for part in ("src", "scripts"):
            shutil.copytree(TOP / part, _inside(made, CHECKOUT / part))
        for part in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(TOP / part, _inside(made, CHECKOUT))
        (made.root / "root/tiny.elf").write_bytes(tiny_kernel.build())
        yield made


def _inside(container: Container, path: Path) -> Path:
    """Return where a path of the container is for the host."""
    return container.root / path.relative_to("/")


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def state(container: Container, name: str) -> str:
    import json

    return json.loads(container.run("vmm", "show", name, "--output", "json").stdout)["state"]


def test_installed_for_good(container: Container) -> None:
    said = container.run(*OFFLINE, str(CHECKOUT / "scripts/install"), "--enable", timeout=300).stdout
    assert "is installed" in said
    assert container.run("vmm", "--version").stdout.startswith("vmm ")
    assert container.run("systemctl", "is-enabled", "vmm").stdout.strip() == "enabled"
    assert container.run("systemctl", "is-active", "vmm").stdout.strip() == "active"
    for path in ("usr/share/bash-completion/completions/vmm", "usr/share/zsh/vendor-completions/_vmm",
                 "usr/share/fish/vendor_completions.d/vmm.fish"):  # fmt: skip
        assert "_VMM_COMPLETE" in (container.root / path).read_text()
    # Compiled at installation: root installed it, and any user runs it.
    assert list((container.root / "usr/local/lib/vmm").rglob("vmm/cli/__pycache__/main.*.pyc"))
    # Again, over itself.
    container.run(*OFFLINE, str(CHECKOUT / "scripts/install"), timeout=300)
    checks = container.run("vmm", "doctor", check=False).stdout
    assert "vmm.service" in checks


def test_machines_come_back_after_a_reboot_unless_stopped(container: Container) -> None:
    container.run("vmm", "kernel", "import", "/root/tiny.elf", "--name", "tiny", "--no-stage1")
    for name, option in (("back", "--auto-start"), ("down", "--no-auto-start")):
        container.run("vmm", "create", name, option, "--engine", "qemu")
    container.run("vmm", "create", "idle", "--engine", "qemu", "--kernel", "tiny")
    container.run("vmm", "create", "never", "--engine", "qemu", "--kernel", "tiny")
    container.run("vmm", "start", "back", "down", "--wait", "ssh")
    container.run("vmm", "start", "idle")
    container.run("vmm", "stop", "idle", "--force")
    container.run("vmm", "port-forward", "add", "back", "2222:22")
    container.run("vmm", "exec", "back", "--", "sh", "-c", "echo before > /root/note")
    container.reboot()
    # Asked, not killed: the guests were shut down in good order before the host went.
    log = container.run("journalctl", "-b", "-1", "-u", "vmm", check=False).stdout + container.log.read_text(
        errors="replace"
    )
    assert "killed" not in log
    wait_for(lambda: state(container, "back") == "running", timeout=60, what="the machine's return")
    container.run("vmm", "start", "back", "--wait", "ssh")
    assert container.run("vmm", "exec", "back", "--", "cat", "/root/note").stdout == "before\n"
    assert [state(container, name) for name in ("down", "idle", "never")] == ["stopped", "stopped", "created"]
    banner = "import socket; print(socket.create_connection(('127.0.0.1', 2222), 10).recv(4).decode())"
    assert container.run("python3", "-c", banner).stdout == "SSH-\n"
    console = container.run("vmm", "console", "back", "--full").stdout
    assert "reboot: Power down" in console


def test_machines_come_back_after_the_plug_was_pulled(container: Container) -> None:
    container.run("vmm", "exec", "back", "--", "sh", "-c", "echo synced > /root/note; sync")
    container.crash()
    container.boot()
    wait_for(lambda: state(container, "back") == "running", timeout=60, what="the machine's return")
    container.run("vmm", "start", "back", "--wait", "ssh")
    assert container.run("vmm", "exec", "back", "--", "cat", "/root/note").stdout == "synced\n"
    assert state(container, "down") == "stopped"


def test_restarting_the_service_leaves_no_machine_behind(container: Container) -> None:
    container.run("systemctl", "restart", "vmm")
    assert state(container, "back") == "running"


def test_uninstalled(container: Container) -> None:
    said = container.run(str(CHECKOUT / "scripts/uninstall"), "--keep-data", timeout=300).stdout
    assert "its data is kept" in said
    left = [path for path in ("usr/local/bin/vmm", "usr/local/lib/vmm", "etc/systemd/system/vmm.service",
                              "usr/share/bash-completion/completions/vmm",
                              "etc/systemd/system/multi-user.target.wants/vmm.service")
            if (container.root / path).exists() or (container.root / path).is_symlink()]  # fmt: skip
    assert left == []
    assert "vmm" not in container.run("ip", "-o", "link").stdout
    assert "vmm" not in container.run("nft", "list", "ruleset").stdout
    assert "qemu-system" not in container.run("ps", "-e", "-o", "args").stdout
    assert (container.root / "var/lib/vmm/vms/back/disk.ext4").exists()
    container.run(str(CHECKOUT / "scripts/uninstall"), "--purge", timeout=300)
    assert not (container.root / "var/lib/vmm").exists()
