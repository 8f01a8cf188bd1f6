"""No lock that another user of the host can take holds up a command of root's, and that user may list meanwhile."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hosts import SMALL, VMM, Host, wait_for

from conftest import add_tiny

pytestmark = pytest.mark.system

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
# Locks whatever it may open below a directory, in each way there is, begins to read each database, and says how many.
HOLD = """
import fcntl, os, sqlite3, sys, time
held = []
for directory, names, others in os.walk(sys.argv[1]):
    for path in (directory, *(os.path.join(directory, name) for name in others)):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        held.append(fd)
        for lock in (lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
                     lambda: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)):
            try:
                lock()
            except OSError:
                pass
        if path.endswith(".db"):
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
            connection.execute("BEGIN")
            connection.execute("SELECT * FROM machines").fetchall()
            held.append(connection)
print(len(held), flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def holding(host: Host) -> Iterator[None]:
    argv = [*NOBODY, sys.executable, "-c", HOLD, str(host.data_dir)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 5
        try:
            yield
        finally:
            process.kill()


@pytest.mark.fault(44)
def test_whatever_nobody_locks_root_goes_on_and_nobody_lists(host: Host, tmp_path) -> None:
    for parent in [host.data_dir, *host.data_dir.parents[:3]]:
        if str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    add_tiny(host, tmp_path)
    host.vmm("create", "m", *SMALL)
    # As the version before left it, open to everyone.
    database = host.data_dir / "state" / "vmm.db"
    database.chmod(0o644)
    with holding(host):
        for arguments in (["create", "n", *SMALL], ["start", "m"], ["port-forward", "add", "m", "7000:70"],
                          ["set", "n", "--memory", "256"], ["db", "backup"], ["reconcile"]):  # fmt: skip
            began = time.monotonic()
            host.vmm(*arguments)
            assert time.monotonic() - began < 15, arguments
        assert database.stat().st_mode & 0o777 == 0o600
        with holding(host):
            listed = host.run(*NOBODY, *VMM, "list", env=host.environment)
            assert "running" in listed.stdout
            assert listed.stderr == ""
            assert "7000" in host.run(*NOBODY, *VMM, "port-forward", "list", "m", env=host.environment).stdout
            for arguments in (["stop", "--force", "m"], ["delete", "--force", "m", "n"], ["teardown"]):
                began = time.monotonic()
                host.vmm(*arguments)
                assert time.monotonic() - began < 15, arguments
            assert "running" not in host.run(*NOBODY, *VMM, "list", env=host.environment).stdout
        assert not list((host.data_dir / "vms").iterdir())
    wait_for(lambda: not host.supervisors(), what="the supervisor's end")
