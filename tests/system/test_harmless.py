"""What a guest, an engine or a name of a file says drives no terminal, whatever way it comes out: with the real thing."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_kernel
from hosts import SMALL, VMM, Host, wait_for
from terminals import on_a_terminal
from tiny_kernel import Then

from conftest import add_kernel, add_tiny

pytestmark = [pytest.mark.system, pytest.mark.fault(49)]

# A line that is no kernel's, and one whose line is told as the reason.
EVIL = (
    b"\n\x1b]0;PWNED\x07Kernel panic - x\n"
    b"[    1.000000] Kernel panic - not syncing: \x1b]0;PWNED\x07\x9b2J\xe2\x80\xae x\x1b[2J\n"
)
DRIVES = ("\x1b]", "\x07", "\x9b", "\u202e", "\x1b[2J", "\udc9b")


@pytest.fixture(scope="module")
def h(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    directory = tmp_path_factory.mktemp("kernels")
    add_tiny(shared_host, directory)
    add_kernel(shared_host, directory, "waits", tiny_kernel.build(Then.RESET, last=EVIL))
    add_kernel(shared_host, directory, "at-once", tiny_kernel.build(Then.RESET, greeting=EVIL))
    return shared_host


def shown(h: Host, *arguments: str) -> str:
    """Return what vmm says: on a terminal, which must not be driven by it, and to a program.

    A console goes to a program as it is, and a machine in the foreground shows its console.
    """
    console = not {"console", "--foreground"}.isdisjoint(arguments)
    said = h.vmm(*arguments, check=False)
    seen = on_a_terminal([*h.prefix, *VMM, *arguments], h.environment)[1]
    for text in (seen, said.stderr, "" if console else said.stdout):
        assert not [wrong for wrong in DRIVES if wrong in text], (arguments, text)
        assert "Traceback" not in text
    return seen if console else said.stdout + said.stderr


def test_a_kernel_that_prints_escapes(h: Host) -> None:
    h.vmm("create", "evil", *SMALL[:-6], "--kernel", "waits", *SMALL[2:])
    h.vmm("start", "evil")
    wait_for(lambda: "tiny guest" in h.console("evil"))
    h.press("evil")
    wait_for(lambda: h.machine("evil")["state"] == "failed")
    assert "\x1b]0;PWNED" in h.console("evil")
    reason = "\\x1b]0;PWNED\\x07"
    for arguments in (["show", "evil"], ["events"], ["events", "evil"], ["console", "evil"]):
        wait_for(lambda arguments=arguments: reason in shown(h, *arguments))
        assert "Kernel panic - not syncing" in shown(h, *arguments)
    for arguments in (["list"], ["doctor"], ["reconcile"]):
        shown(h, *arguments)
    # What a program takes out of the JSON and prints is harmless as well.
    for arguments in (["show", "evil"], ["events"], ["list"]):
        said = h.vmm(*arguments, "--output", "json").stdout
        assert "\\u001b" not in said
        assert "PWNED" in json.dumps(json.loads(said))
    assert "\x1b" not in (h.data_dir / "logs" / "supervisor.log").read_text(errors="replace")
    assert h.sql("SELECT count(*) FROM machines WHERE reason LIKE '%' || char(27) || '%'") == [(0,)]
    assert h.sql("SELECT count(*) FROM events WHERE detail LIKE '%' || char(27) || '%'") == [(0,)]


def test_what_an_earlier_release_remembered_is_harmless_too(h: Host) -> None:
    h.vmm("create", "older", *SMALL)
    h.sql("UPDATE machines SET reason = ? WHERE name = 'older'", EVIL.decode(errors="surrogateescape")[:5])
    h.sql(
        "INSERT INTO events (at, machine, kind, detail) VALUES ('t', 'older', 'failed', char(27) || ']0;x' || char(7))"
    )
    for arguments in (["show", "older"], ["events", "older"], ["show", "older", "--output", "json"]):
        shown(h, *arguments)


def test_an_engine_that_ends_at_once_and_a_foreground(h: Host) -> None:
    h.vmm("create", "brief", *SMALL[:-6], "--kernel", "at-once", *SMALL[2:])
    # Whether it is seen to run before it ends, or is not, its console is in what is told.
    for arguments in (["start", "brief"], ["start", "brief", "--foreground"], ["show", "brief"]):
        shown(h, *arguments)
        time.sleep(0.2)
    assert "PWNED" in shown(h, "console", "brief")


def test_names_of_files_and_of_anything(h: Host, tmp_path: Path) -> None:
    evil = "\x1b]0;PWNED\x07 \u202e [red] \x9b2J\n  To mend it: x"
    directory = tmp_path / evil
    directory.mkdir()
    (directory / "etc").mkdir()
    for arguments in (
        ["image", "import", str(directory), "--name", "evil"],
        ["image", "import", str(directory / "nosuch"), "--name", "other"],
        ["kernel", "import", str(directory / "etc"), "--name", "other"],
        ["image", "list"],
        ["create", "x", "--ssh-key", str(directory)],
        ["create", "x", "--user-data", str(directory)],
        ["create", "x", "--label", evil],
        ["create", "x", "--image", evil],
        ["create", evil],
        ["show", evil],
        ["show", "--nosuch" + evil],
        [evil],
        ["exec", "older", "-u", evil, "--", "true"],
        ["-v", "exec", "older", "--", evil],
        ["--data-dir", str(directory), "list"],
        ["--config", str(directory), "list"],
        ["config", "show", "--data-dir", str(directory)],
        ["port-forward", "add", "older", evil],
        ["setup", "--firecracker", str(directory)],
        ["db", "restore", "--force", "--from", str(directory)],
    ):
        said = shown(h, *arguments)
        assert not [line for line in said.splitlines() if line.startswith("  To mend it: x")], said
    # A name of bytes that are no text.
    odd = bytes(tmp_path) + b"/\xff\x9b2J.ext4"
    said = shown(h, "image", "import", odd.decode(errors="surrogateescape"), "--name", "odd")
    assert "\\xff\\x9b2J.ext4" in said
