"""Words, exit codes, terminals and keys on their way into a machine: with the system's ssh and a real ssh server.

The machine is a tiny one on Firecracker, and an ssh server stands in for its guest.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import SMALL, VMM, Host, a_host, sh, wait_for
from stand_in import a_stand_in, make_key
from terminals import on_a_terminal

from conftest import add_tiny

pytestmark = pytest.mark.system

HOSTILE = [
    "", " ", "a  b", "c'd", '"', "$e", "$(id)", "*", "\\n", "a\nb", "--", "-n", "-oProxyCommand=touch /x", "é", "A=b",
]  # fmt: skip
WAYS = ["exec", "ssh"]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that every user can reach (pytest's own is its user's alone), with a key of a user's in it."""
    with tempfile.TemporaryDirectory(prefix="vmmtest") as name:
        path = Path(name)
        path.chmod(0o755)
        make_key(path / "own")
        (path / "also").write_text((path / "own.pub").read_text())
        yield path


@pytest.fixture(scope="module")
def m(place: Path) -> Iterator[Host]:
    """A host with the machine `m`, which runs and can be reached by ssh."""
    with a_host(f"vmmtest-{os.getpid()}-inside", place) as host:
        add_tiny(host, place)
        (host.data_dir / "ssh").mkdir(mode=0o700)
        make_key(host.data_dir / "ssh" / "vmm_ed25519")
        host.vmm("create", "m", *SMALL, "--ssh-key", f"{place}/own.pub")
        host.vmm("start", "m")
        with a_stand_in(host, "m", place, address="172.16.0.2"):
            yield host


# Words and exit codes


@pytest.mark.fault(48)
@pytest.mark.parametrize("way", WAYS)
def test_words_arrive_as_they_are(m: Host, way: str) -> None:
    assert m.vmm(way, "m", "--", "printf", "%s|", *HOSTILE).stdout == "".join(f"{word}|" for word in HOSTILE)
    # Without the dashes too, once the command has begun.
    assert m.vmm(way, "m", "printf", "%s|", "-v", "-q", "--output").stdout == "-v|-q|--output|"


@pytest.mark.fault(48)
@pytest.mark.parametrize("way", WAYS)
def test_a_word_is_never_an_option_of_the_hosts_ssh(m: Host, place: Path, way: str) -> None:
    made = place / "made"
    harm = f"touch {made}"
    for words in (
        [f"-oProxyCommand={harm}", "true"],
        [f"-oProxyCommand={harm}"],
        ["-o", f"ProxyCommand={harm}", "true"],
        ["-o", "PermitLocalCommand=yes", "-o", f"LocalCommand={harm}", "true"],
        ["-F", str(place / "nosuch"), "true"],
        ["-E", str(made), "true"],
        ["-S", str(made), "-M", "true"],
        ["--", f"-oProxyCommand={harm}", "true"],
        ["-L", "1:2:3", "true"],
    ):
        done = m.vmm(way, "m", "--", *words, check=False)
        # The guest's shell has looked for a program of that name.
        assert done.returncode == 127, (words, done)
        assert not made.exists(), words


@pytest.mark.fault(48)
@pytest.mark.parametrize("way", WAYS)
def test_exit_codes_are_the_commands_own(m: Host, way: str) -> None:
    for code in (0, 5, 254):
        assert m.vmm(way, "m", "--", "sh", "-c", f"exit {code}", check=False).returncode == code
    # One word is a line for the shell inside.
    assert m.vmm(way, "m", "--", "echo a; echo 'b  c'; exit 5", check=False).returncode == 5
    assert m.vmm(way, "m", "--", "echo a; echo 'b  c'").stdout == "a\nb  c\n"
    assert m.vmm(way, "m", "--", "false; exit 3", check=False).returncode == 3
    assert "is empty" in m.fails(way, "m", "--", "", code=2)
    assert "user name" in m.fails(way, "m", "-u", "-oProxyCommand=id", "--", "true", code=2)


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("sh", "-c", "echo $0 $1; exit 5", "a b", "c"), 5, "a b c\n"),
        (("root", "--version"), 127, ""),
        (("run",), 127, ""),
        (("r",), 127, ""),
        (("echo a; exit 6",), 6, "a\n"),
    ],
)
def test_run_takes_words_as_the_others_do(m: Host, place: Path, words: tuple[str, ...], code: int, said: str) -> None:
    with a_stand_in(m, "r", place, address="172.16.0.3"):
        done = m.vmm("run", "--rm", "r", *SMALL, "--user", "root", "--", *words, check=False)
    assert (done.returncode, done.stdout) == (code, said), done.stderr
    assert [machine["name"] for machine in m.json("list")] == ["m"]


# Input and terminals


@pytest.mark.parametrize("way", WAYS)
def test_a_loop_keeps_its_input(m: Host, way: str) -> None:
    loop = f"printf 'a\\nb\\nc\\n' | while read -r l; do {VMM[0]} {way} m $0 -- echo got $l; done"

    def run(option: str) -> str:
        return sh(*m.prefix, "sh", "-c", loop, option, env=m.environment).stdout

    assert run("-n") == "got a\ngot b\ngot c\n"
    # Without, the first command reads it all: that is what it is for.
    assert run("-q") == "got a\n"
    assert m.vmm(way, "m", "--", "cat", stdin="from stdin").stdout == "from stdin"


def on_terminal(m: Host, *arguments: str, stdout: int | None = None) -> tuple[int, str]:
    return on_a_terminal([*m.prefix, *VMM, *arguments], m.environment, stdout=stdout)


def test_a_command_has_a_terminal_where_both_ends_are_one(m: Host, tmp_path: Path) -> None:
    code, shown = on_terminal(m, "ssh", "m", "--", "tty; exit 5")
    assert (code, shown.startswith("/dev/pts/")) == (5, True), shown
    assert "not a tty" in on_terminal(m, "ssh", "m", "-T", "--", "tty")[1]
    assert "not a tty" in on_terminal(m, "exec", "m", "--", "tty")[1]
    assert "/dev/pts/" in on_terminal(m, "exec", "m", "-t", "--", "tty")[1]
    with (tmp_path / "out").open("wb") as out:
        on_terminal(m, "ssh", "m", "--", "tty", stdout=out.fileno())
    assert (tmp_path / "out").read_text() == "not a tty\n"
    assert m.vmm("ssh", "m", "--", "tty", check=False).stdout == "not a tty\n"
    # A shell has one without asking; one that is asked for comes without a terminal of ours.
    assert "/dev/pts/" in m.vmm("ssh", "m", "-t", "--", "tty").stdout


# Keys


def as_nobody(m: Host, *arguments: str, extra: dict[str, str]) -> subprocess.CompletedProcess[str]:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    environment = {**m.environment, "SSH_AUTH_SOCK": "", **extra}
    argv = [*m.prefix, *nobody, sys.executable, "-m", "vmm", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def an_agent(directory: Path, keys: list[Path]) -> Iterator[str]:
    """Give the socket of an agent of nobody's that holds these keys."""
    socket = directory / "agent"
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ssh-agent", "-D", "-a", str(socket)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as agent:
        try:
            wait_for(socket.exists)
            for key in keys:
                # An agent answers its own user and root.
                sh("ssh-add", "-q", str(key), env={**os.environ, "SSH_AUTH_SOCK": str(socket)})
            yield str(socket)
        finally:
            agent.terminate()


def test_a_user_with_many_keys_offers_the_machines_own_alone(m: Host, place: Path) -> None:
    agents, home = place / "agents", place / "home"
    for directory in (agents, home):
        directory.mkdir()
        os.chown(directory, 65534, 65534)
    others = [make_key(place / f"other{number}") for number in range(7)]
    with an_agent(agents, [*others, place / "own"]) as socket:
        extra = {"SSH_AUTH_SOCK": socket, "HOME": str(home)}
        done = as_nobody(m, "exec", "m", "--", "sh", "-c", "echo in; exit 5", extra=extra)
        assert (done.returncode, done.stdout) == (5, "in\n"), done.stderr
        # The server is as it is installed: it hangs up on who offers eight.
        plain = ["ssh", "-F", "none", "-o", f"UserKnownHostsFile={m.data_dir}/vms/m/known_hosts", "-o", "BatchMode=yes",
                 "-o", f"HostKeyAlias={m.machine('m')['id']}", "root@172.16.0.2", "true"]  # fmt: skip
        refused = m.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *plain, check=False,
                        env={**os.environ, **extra})  # fmt: skip
        assert "Too many authentication failures" in refused.stderr
    # Without an agent: the file in the user's home that belongs to it, or the one that is named.
    (home / ".ssh").mkdir()
    for name in ("own", "own.pub"):
        copy = home / ".ssh" / name
        copy.write_bytes((place / name).read_bytes())
        copy.chmod(0o600)
        os.chown(copy, 65534, 65534)
    assert as_nobody(m, "exec", "m", "--", "true", extra={"HOME": str(home)}).returncode == 0
    nowhere = {"HOME": str(place)}
    assert as_nobody(m, "exec", "m", "-i", f"{home}/.ssh/own", "--", "true", extra=nowhere).returncode == 0
    refused = as_nobody(m, "exec", "m", "--", "true", extra=nowhere)
    assert refused.returncode == 255
    assert "No key of yours is one that m was given" in refused.stderr
    assert f"To be let in: sudo vmm --data-dir {m.data_dir} ssh m (" in refused.stderr
    assert "cannot be read" in as_nobody(m, "exec", "m", "-i", "/nosuch", "--", "true", extra=nowhere).stderr


def test_a_machine_that_was_given_no_key_does_not_meet_all_that_an_agent_has(m: Host, place: Path) -> None:
    directory = place / "bare"
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    m.vmm("create", "bare", *SMALL)
    m.vmm("start", "bare")
    keys = [make_key(directory / f"other{number}") for number in range(7)]
    with a_stand_in(m, "bare", place, address="172.16.0.3"), an_agent(directory, keys) as socket:
        extra = {"SSH_AUTH_SOCK": socket, "HOME": str(directory)}
        refused = as_nobody(m, "exec", "bare", "--", "true", extra=extra)
    m.vmm("delete", "--force", "bare")
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr
    assert "Too many" not in refused.stderr
    assert "No key of yours is one that bare was given" in refused.stderr


# A guest that says no end


@pytest.mark.fault(49)
@pytest.mark.parametrize(
    "line", ["ForceCommand cat /dev/zero", "ForceCommand cat /dev/zero >&2", "ForceCommand yes 'vmm: aske'"]
)
def test_a_guest_that_says_no_end_costs_neither_memory_nor_time(m: Host, place: Path, line: str) -> None:
    m.vmm("create", "flood", *SMALL)
    m.vmm("start", "flood")
    script = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    began = time.monotonic()
    with a_stand_in(m, "flood", place, address="172.16.0.3", lines=[line]):
        done = m.run(sys.executable, "-c", script, *VMM, "stop", "flood", "--timeout", "3", env=m.environment)
    took = time.monotonic() - began
    m.vmm("delete", "flood")
    assert "killed" in done.stdout
    assert int(done.stdout.splitlines()[-1]) < 100 * 1024, "KiB"
    assert took < 30
