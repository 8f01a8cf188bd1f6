"""vmm put on a host for good: installed, enabled, rebooted, crashed, and taken off again; systemd is PID 1."""

import json
import os
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
    said = container.run(*OFFLINE, str(CHECKOUT / "scripts/install"), timeout=300).stdout
    assert "is installed" in said
    # Without having been asked for: else a reboot of the host would bring no machine back.
    assert container.run("vmm", "--version").stdout.startswith("vmm ")
    assert container.run("systemctl", "is-enabled", "vmm").stdout.strip() == "enabled"
    assert container.run("systemctl", "is-active", "vmm").stdout.strip() == "active"
    for path in ("usr/share/bash-completion/completions/vmm", "usr/share/zsh/vendor-completions/_vmm",
                 "usr/share/fish/vendor_completions.d/vmm.fish"):  # fmt: skip
        assert "_VMM_COMPLETE" in (container.root / path).read_text()
    assert (container.root / "usr/local/share/man/man1/vmm.1").read_text().startswith(".TH VMM 1 ")
    # Compiled at installation: root installed it, and any user runs it.
    assert list((container.root / "usr/local/lib/vmm").rglob("vmm/cli/__pycache__/main.*.pyc"))
    # Again, over itself; what its administrator has disabled is not enabled behind their back.
    container.run("systemctl", "disable", "vmm")
    said = container.run(*OFFLINE, str(CHECKOUT / "scripts/install"), "--no-enable", timeout=300).stdout
    assert "sudo systemctl enable --now vmm" in said
    assert container.run("systemctl", "is-enabled", "vmm", check=False).stdout.strip() == "disabled"


def test_doctor_tells_whether_machines_come_back(container: Container) -> None:
    """By what systemd will do, not by a file that is there."""

    def systemd_check() -> tuple[str, str, str]:
        import json

        checks = json.loads(container.run("vmm", "doctor", "--output", "json", check=False).stdout)
        found = next(check for check in checks if check["name"] == "systemd")
        return found["status"], found["detail"], found["fix"] or ""

    status, detail, fix = systemd_check()
    assert (status, fix) == ("warning", "sudo systemctl enable --now vmm")
    assert "vmm.service is disabled: machines do not come back" in detail
    # What it says mends it.
    container.run("sh", "-c", fix.replace("sudo ", ""))
    assert systemd_check()[:2][0] == "ok"
    unit = container.root / "etc/systemd/system/vmm.service"
    text = unit.read_text()
    unit.unlink()
    container.run("ln", "-s", "/dev/null", "/etc/systemd/system/vmm.service")
    container.run("systemctl", "daemon-reload")
    assert "masked" in systemd_check()[1]
    assert "unmask" in systemd_check()[2]
    unit.unlink()
    container.run("systemctl", "daemon-reload")
    assert systemd_check()[0] == "warning"
    assert systemd_check()[2] == "sudo scripts/install"
    unit.write_text(text)
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "enable", "--now", "vmm")
    assert systemd_check()[0] == "ok"


SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")


def shown(container: Container, name: str) -> dict:
    import json

    return json.loads(container.run("vmm", "show", name, "--output", "json").stdout)


def kinds(container: Container, name: str) -> list[str]:
    import json

    return [event["kind"] for event in json.loads(container.run("vmm", "events", name, "--output", "json").stdout)]


def unit(container: Container, name: str) -> dict[str, str]:
    """Return what systemd says of a machine's unit; empty where it knows of none."""
    found = container.run("systemctl", "list-units", "--plain", "--no-legend", f"vmm-{name}-*").stdout.split()
    if not found:
        return {}
    lines = container.run("systemctl", "show", found[0]).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture(scope="module")
def tiny(container: Container) -> Container:
    """The container with a guest that greets and halts."""
    container.run("vmm", "kernel", "import", "/root/tiny.elf", "--name", "tiny", "--no-stage1")
    sh("mke2fs", "-q", "-t", "ext4", str(container.root / "root/tiny.ext4"), "256M")
    container.run("vmm", "image", "import", "/root/tiny.ext4", "--name", "tiny")
    return container


@pytest.mark.fault(40)
def test_limits_that_systemd_would_leave_out_are_refused(tiny: Container) -> None:
    """A container's controllers are read-only: systemd says nothing, and vmm does."""
    tiny.run("vmm", "create", "u", *SMALL, "--restart", "on-failure", "--cpu-limit", "0.5", "--memory-limit", "64")
    refused = tiny.run("vmm", "start", "u", check=False)
    assert refused.returncode == 1
    assert "cpus, memory_mib" in refused.stderr
    assert unit(tiny, "u") == {}
    tiny.run("vmm", "set", "u", "--cpu-limit", "none", "--memory-limit", "none")


def test_a_machine_is_a_unit_with_its_own_cgroup(tiny: Container) -> None:
    # Three terminals at once: one starts it, and the others are told that it runs.
    said = tiny.run("sh", "-c", "vmm start u & vmm start u & vmm start u & wait").stdout
    assert said.count("is running") == 1, said
    assert said.count("runs already") == 2, said
    machine, found = shown(tiny, "u"), unit(tiny, "u")
    assert (machine["state"], machine["owner"]) == ("running", "unit")
    assert found["MainPID"] == str(machine["pid"])
    assert (found["Restart"], found["ActiveState"], found["Slice"]) == ("on-failure", "active", "vmm.slice")
    groups = tiny.run("cat", f"/proc/{machine['pid']}/cgroup").stdout
    assert f"/vmm.slice/{found['Id']}" in groups
    # Confined all the same.
    status = tiny.run("cat", f"/proc/{machine['pid']}/status").stdout
    for line in ("CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    assert "Uid:\t0" not in status
    assert len(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()) == 3
    # A start that fails says so outside of the unit, in all its parts, and leaves no unit.
    tiny.run("vmm", "create", "broken", *SMALL)
    tiny.run("mv", "/var/lib/vmm/bin/jailer", "/var/lib/vmm/bin/away")
    failed = tiny.run("vmm", "start", "broken", check=False)
    tiny.run("mv", "/var/lib/vmm/bin/away", "/var/lib/vmm/bin/jailer")
    assert failed.returncode == 1
    assert "jailer is not on this host" in failed.stderr
    assert "To mend it" in failed.stderr
    assert unit(tiny, "broken") == {}
    tiny.run("vmm", "delete", "--force", "broken")


@pytest.mark.fault(13)
def test_systemd_restarts_what_failed_and_events_say_why(tiny: Container) -> None:
    before = shown(tiny, "u")["pid"]
    tiny.run("kill", "-9", str(before))
    wait_for(lambda: shown(tiny, "u")["state"] == "running" and shown(tiny, "u")["pid"] != before, what="the restart")
    assert unit(tiny, "u")["MainPID"] == str(shown(tiny, "u")["pid"])
    assert unit(tiny, "u")["NRestarts"] == "1"
    assert shown(tiny, "u")["restarts"] == 1
    assert kinds(tiny, "u")[-2:] == ["restarting", "started"]
    # One that is stopped stays so, whatever its policy.
    tiny.run("vmm", "stop", "u", "--timeout", "0.5")
    assert unit(tiny, "u") == {}
    tiny.run("vmm", "set", "u", "--restart", "always")
    tiny.run("vmm", "start", "u")
    assert unit(tiny, "u")["Restart"] == "always"
    tiny.run("vmm", "stop", "u", "--force")
    assert (shown(tiny, "u")["state"], unit(tiny, "u")) == ("stopped", {})


@pytest.mark.fault(18)
def test_restarting_anything_of_vmms_leaves_the_machines_alone(tiny: Container) -> None:
    tiny.run("vmm", "start", "u")
    pid = shown(tiny, "u")["pid"]
    tiny.run("systemctl", "restart", "vmm")
    tiny.run("systemctl", "daemon-reload")
    tiny.run("systemctl", "daemon-reexec")
    supervisor = tiny.run("pgrep", "-f", "vmm.* supervise").stdout.split()
    assert len(supervisor) == 1
    tiny.run("kill", "-9", *supervisor)
    wait_for(lambda: tiny.run("pgrep", "-f", "vmm.* supervise", check=False).stdout.split() not in ([], supervisor))
    assert (shown(tiny, "u")["state"], shown(tiny, "u")["pid"]) == ("running", pid)
    tiny.run("systemctl", "stop", "vmm")
    assert shown(tiny, "u")["pid"] == pid
    tiny.run("systemctl", "start", "vmm")
    tiny.run("vmm", "delete", "--force", "u")
    assert unit(tiny, "u") == {}


def test_a_unit_of_ones_own_may_hold_a_machine(tiny: Container) -> None:
    tiny.run("vmm", "create", "own", "--engine", "qemu", "--cpus", "2")
    tiny.run("systemd-run", "-q", "--unit=own", "-p", "TimeoutStopSec=60", "vmm", "start", "--foreground", "own")
    wait_for(lambda: shown(tiny, "own")["state"] == "running", what="the start")
    machine = shown(tiny, "own")
    assert machine["owner"] == "foreground"
    assert "own.service" in tiny.run("cat", f"/proc/{machine['pid']}/cgroup").stdout
    tiny.run("vmm", "start", "own", "--wait", "ssh")
    # A guest's reboot goes on in the same process; its power-off ends it well.
    tiny.run("vmm", "exec", "own", "--", "systemctl", "--no-block", "reboot", check=False)
    wait_for(lambda: "rebooted" in kinds(tiny, "own") and shown(tiny, "own")["state"] == "running", what="the reboot")
    assert shown(tiny, "own")["owner"] == "foreground"
    tiny.run("vmm", "start", "own", "--wait", "ssh")
    # All of the unit's processes are sent SIGTERM; the guest is asked all the same, and has its time.
    tiny.run("systemctl", "stop", "own")
    assert "vmm: the guest powers off" in tiny.run("vmm", "console", "own").stdout
    assert tiny.run("systemctl", "is-failed", "own", check=False).stdout.strip() != "failed"
    assert kinds(tiny, "own")[-1] == "stopped"
    assert shown(tiny, "own")["state"] == "stopped"
    tiny.run("vmm", "delete", "own")


def test_systemd_changes_no_word_of_an_odd_data_directory(tiny: Container) -> None:
    """What ends a machine's unit is given the directory as its start was: specifiers, variables, blanks and quotes."""
    odd = '/var/lib/odd 100%n ${HOME}x "q'
    tiny.run("vmm", "teardown")
    tiny.run("mkdir", odd)
    tiny.run("cp", "-al", "/var/lib/vmm/bin", "/var/lib/vmm/images", odd)
    vmm = ("vmm", "--data-dir", odd)
    tiny.run(*vmm, "create", "o", *SMALL, "--restart", "on-failure")
    tiny.run(*vmm, "start", "o")
    before = json.loads(tiny.run(*vmm, "show", "o", "--output", "json").stdout)
    assert (before["state"], before["owner"]) == ("running", "unit")
    tiny.run("kill", "-9", str(before["pid"]))

    def started_again() -> bool:
        now = json.loads(tiny.run(*vmm, "show", "o", "--output", "json").stdout)
        return now["state"] == "running" and now["pid"] != before["pid"] and now["restarts"] == 1

    # It is settled by the unit's ExecStopPost, and started again by its ExecStart.
    wait_for(started_again, what="the restart")
    assert unit(tiny, "o")["NRestarts"] == "1"
    tiny.run(*vmm, "delete", "--force", "o")
    tiny.run(*vmm, "teardown")
    tiny.run("rm", "-r", odd)


@pytest.mark.fault(4)
def test_machines_come_back_after_a_reboot_unless_stopped(tiny: Container) -> None:
    container = tiny
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
    assert "vmm: the guest powers off" in console


@pytest.mark.fault(4)
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
                              "usr/local/share/man/man1/vmm.1", "usr/share/bash-completion/completions/vmm",
                              "etc/systemd/system/multi-user.target.wants/vmm.service")
            if (container.root / path).exists() or (container.root / path).is_symlink()]  # fmt: skip
    assert left == []
    assert "vmm" not in container.run("ip", "-o", "link").stdout
    assert "vmm" not in container.run("nft", "list", "ruleset").stdout
    assert "qemu-system" not in container.run("ps", "-e", "-o", "args").stdout
    assert (container.root / "var/lib/vmm/vms/back/disk.ext4").exists()
    container.run(str(CHECKOUT / "scripts/uninstall"), "--purge", timeout=300)
    assert not (container.root / "var/lib/vmm").exists()


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A directory of a user's, with what Python would take for its own modules; each leaves a file there."""
    place = tmp_path / "users"
    for name in (
        "pip/__main__.py",
        "pip/__init__.py",
        "venv/__init__.py",
        "venv/__main__.py",
        "compileall.py",
        "json.py",
    ):
        _made((place / name).parent)
        (place / name).write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n")
    return place


def test_what_installs_runs_nothing_of_the_directory_it_is_given_in(tmp_path: Path, trap: Path) -> None:
    """And it makes what any user may run and nobody may write, whatever the umask of root's shell."""
    environment = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(LIBRARY / "packages")}
    environment |= {"VMM_PREFIX": str(tmp_path / "prefix"), "VMM_DATA_DIR": str(tmp_path / "none")}
    home = tmp_path / "prefix/usr/local/lib/vmm"

    sh(str(TOP / "scripts/install"), "--no-enable", cwd=trap, umask=0, env=environment, timeout=300)
    assert list(trap.rglob("*.ran")) == []
    paths = [path for path in (tmp_path / "prefix").rglob("*") if not path.is_symlink()]
    assert [path for path in paths if path.stat().st_mode & 0o022] == []
    assert sh(str(home / "bin/vmm"), "--version").stdout.startswith("vmm ")
    # As after an upgrade of the host: a Python that finds nothing of what its environment was made with.
    lib = f"top={TOP}; . {TOP}/scripts/lib.sh; python() {{ echo /bin/echo; }}; venv {home}"
    assert sh("bash", "-c", lib).stdout == ""
    shutil.rmtree(next(home.glob("lib/python3*/site-packages/pip")))
    assert sh("bash", "-c", lib).stdout.endswith(f"-I -m venv {home}\n")
    assert not (home / "bin").exists()
