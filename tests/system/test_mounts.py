"""A data directory on a mount where jails cannot work: told by doctor, setup and start alike, before anything is made."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hosts import SMALL, VMM, Host, sh, wait_for

from conftest import add_tiny

pytestmark = pytest.mark.system


@contextmanager
def mounted_with(options: str, directory: Path) -> Iterator[None]:
    sh("mount", "--bind", str(directory), str(directory))
    try:
        sh("mount", "-o", f"remount,bind,{options}", str(directory))
        yield
    finally:
        # A supervisor that has no machine any more is gone within half a second.
        wait_for(lambda: sh("umount", str(directory), check=False).returncode == 0, what="the umount")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("nodev", "nodev: devices do not work"),
        ("noexec", "noexec: programs are not run"),
        ("nodev,noexec,nosuid", "nodev: devices do not work and noexec: programs are not run"),
    ],
)
def test_doctor_setup_and_start_say_the_same(host: Host, tmp_path: Path, options: str, words: str) -> None:
    add_tiny(host, tmp_path)
    host.vmm("create", "m", *SMALL, "--jail")
    with mounted_with(options, host.data_dir):
        said = [
            host.vmm(*command.split(), check=False)
            for command in ("start m", "doctor", "setup --no-kernel --no-image --no-firecracker")
        ]
        assert host.machine("m")["state"] in ("created", "failed")
    for each in said:
        whole = each.stdout + each.stderr
        assert words in whole, each
        assert f"mount -o remount,{options.replace('no', '').replace(',suid', '')}" in whole, each
    assert [each.returncode for each in said] == [1, 1, 0]
    assert "This host is ready" not in said[2].stdout + said[2].stderr
    # Nothing of a jail was made.
    assert list((host.data_dir / "jails").glob("firecracker/*")) == []
    host.vmm("start", "m")


def test_nosuid_keeps_no_machine_from_running(host: Host, tmp_path: Path) -> None:
    add_tiny(host, tmp_path)
    host.vmm("create", "m", *SMALL, "--jail")
    with mounted_with("nosuid", host.data_dir):
        host.vmm("start", "m")
        assert host.machine("m")["state"] == "running"
        host.vmm("delete", "m", "--force")


@pytest.mark.parametrize("hidden", ["hidepid=1", "hidepid=2", "hidepid=invisible"])
def test_processes_that_are_hidden_from_a_user_are_not_told_as_gone(host: Host, tmp_path: Path, hidden: str) -> None:
    add_tiny(host, tmp_path)
    host.vmm("create", "m", *SMALL)
    host.vmm("start", "m")
    for parent in [host.data_dir, *host.data_dir.parents]:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    def told(*arguments: str, by: list[str]) -> subprocess.CompletedProcess[str]:
        mounted = f'mount -t proc -o {hidden} vmmtest /proc && exec "$@"'
        argv = [*host.prefix, "unshare", "--mount", "sh", "-c", mounted, "sh", *by, *VMM, *arguments]
        return sh(*argv, check=False, env=host.environment)

    for arguments in (["list"], ["list", "--output", "json"], ["show", "m"]):
        done = told(*arguments, by=nobody)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert not re.search("failed|stopped|gone", done.stdout), done.stdout
        assert "running" in told(*arguments, by=[]).stdout
    assert "hides them from this user" in told("doctor", by=nobody).stdout
    assert "root sees them" in told("doctor", by=[]).stdout
