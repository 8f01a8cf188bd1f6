"""The way in: which words ssh is given, which keys it offers, and how a server's greeting is read."""

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machines import a_machine

from vmm.config import Paths
from vmm.errors import UsageError
from vmm.guest import ssh
from vmm.guest.keys import ManagedKey, make_key
from vmm.guest.ssh import SshGuest
from vmm.model.session import Session

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI"


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real agent with one key, of which there is no other private file than the one that is returned."""
    key, place = tmp_path / "agents", tmp_path / "socket"
    make_key(key)
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL) as process:
        try:
            monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
            while not place.exists():
                time.sleep(0.01)
            subprocess.run(["ssh-add", "-q", str(key)], check=True)
            yield key
        finally:
            process.terminate()


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SshGuest:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    data = tmp_path / "da, ta \"%h\" 'e' #=\\"
    return SshGuest(paths=Paths(data_dir=data), key=ManagedKey(directory=data / "ssh"))


def give(guest: SshGuest, number: int, line: str) -> Path:
    """Do what a start does with a key that the machine was given."""
    path = guest.paths.machines / "m" / "keys" / f"{number}.pub"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{line}\n")
    return path


def manage(guest: SshGuest) -> None:
    guest.key.directory.mkdir(parents=True)
    guest.key.private.touch(mode=0o600)


def read_by_ssh(argv: list[str]) -> dict[str, list[str]]:
    """Return what ssh itself makes of its arguments."""
    done = subprocess.run(["ssh", "-G", *argv[1:]], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.fault(48)
def test_nothing_behind_the_host_is_an_option_of_sshs(guest: SshGuest, tmp_path: Path) -> None:
    machine = a_machine("m")
    words = ("-oProxyCommand=/tmp/x", "-p", "1", "-F", "/y")
    argv = guest.ssh_command(machine, Session(words=words))
    assert argv[-3:-1] == ["--", machine.id]
    assert argv[-1] == "'-oProxyCommand=/tmp/x' '-p' '1' '-F' '/y'"
    seen = read_by_ssh(argv)
    assert seen["host"] == [machine.id]
    assert seen["port"] == ["22"]
    assert "proxycommand" not in seen
    assert guest.ssh_command(machine, Session())[-2:] == ["--", machine.id]


def test_ssh_reads_odd_paths_as_they_are(guest: SshGuest) -> None:
    machine = a_machine("m")
    manage(guest)
    seen = read_by_ssh(guest.ssh_command(machine, Session()))
    assert seen["userknownhostsfile"] == [str(guest.paths.machines / "m" / "known_hosts")]
    # Its tokens are replaced when it is opened.
    assert [name.replace("%%", "%") for name in seen["identityfile"]] == [str(guest.key.private)]
    assert (seen["hostname"], seen["updatehostkeys"], seen["identitiesonly"]) == (["172.16.0.2"], ["false"], ["yes"])


def test_ssh_takes_nothing_in_a_path_for_a_variable(guest: SshGuest, tmp_path: Path) -> None:
    key = tmp_path / "${HOME}" / "${NO_SUCH}$x" / "key"
    key.parent.mkdir(parents=True)
    make_key(key)
    argv = guest.ssh_command(a_machine("m"), Session(identity=key, words=("echo ${HOME}",)))
    assert argv[-1] == "echo ${HOME}"
    # What ssh opens is seen only once it has connected to something.
    end = argv.index("--")
    tried = [*argv[:end], "-v", "-o", "LogLevel=DEBUG1", "-o", "ProxyCommand=printf SSH-2.0-x\\r\\n", *argv[end:]]
    done = subprocess.run(tried, capture_output=True, text=True, check=False, timeout=30, stdin=subprocess.DEVNULL)
    assert f"identity file {key} type" in done.stderr, done.stderr
    assert "invalid environment variable" not in done.stderr


@pytest.mark.parametrize(
    ("terminal", "has_input", "wanted"), [(None, True, []), (True, True, ["-tt"]), (False, False, ["-n", "-T"])]
)
def test_terminal_and_input(guest: SshGuest, terminal: bool | None, has_input: bool, wanted: list[str]) -> None:
    argv = guest.ssh_command(a_machine("m"), Session(terminal=terminal, has_input=has_input))
    assert [word for word in argv if word in ("-t", "-tt", "-T", "-n")] == wanted


def offered(guest: SshGuest, session: Session, *keys: str) -> tuple[bool, list[str]]:
    """Return whether only these are offered, and which."""
    argv = guest.ssh_command(a_machine("m", ssh_keys=keys), session)
    files = [word.partition("=")[2].strip('"') for word in argv if word.startswith("IdentityFile=")]
    return "IdentitiesOnly=yes" in argv, [Path(name).name for name in files]


def test_root_offers_vmms_own_key(guest: SshGuest, agent: Path) -> None:
    manage(guest)
    mine = agent.with_suffix(".pub").read_text().strip()
    give(guest, 0, mine)
    assert offered(guest, Session()) == (True, ["vmm_ed25519"])
    assert offered(guest, Session(), mine) == (True, ["vmm_ed25519"])
    # Who is not root inside has their keys from elsewhere.
    assert offered(guest, Session(user="dev"), mine) == (True, ["vmm_ed25519", "0.pub"])


def test_a_user_offers_what_the_machine_was_given_and_they_have(guest: SshGuest, agent: Path, tmp_path: Path) -> None:
    home = tmp_path / "home" / ".ssh"
    home.mkdir()
    make_key(home / "id_ed25519", comment="of the user's")
    make_key(home / "id_other")
    of_file, of_agent = ((path.with_suffix(".pub")).read_text().strip() for path in (home / "id_ed25519", agent))
    keys = (f"{KEY}a somebody's", of_file, of_agent)
    for number, line in enumerate(keys):
        give(guest, number, line)
    assert offered(guest, Session(), *keys) == (True, ["id_ed25519", "2.pub"])
    assert offered(guest, Session(), keys[0]) == (True, [])
    # Nor all that the agent has to a machine that was given none, which hangs up on the sixth.
    assert offered(guest, Session()) == (True, [])
    assert offered(guest, Session(identity=home / "id_other"), *keys) == (True, ["id_other"])
    with pytest.raises(UsageError, match="cannot be read"):
        offered(guest, Session(identity=home / "nosuch"))


def test_what_lies_among_a_users_keys_keeps_no_one_waiting(
    guest: SshGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / ".ssh"
    home.mkdir()
    os.mkfifo(home / "a.pub")
    (home / "a").touch()
    (home / "b.pub").write_bytes(b"\xff" * 100_000)
    (home / "b").touch()
    (home / "c.pub").mkdir()
    (home / "c").touch()
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "nosuch"))
    assert offered(guest, Session(), f"{KEY}a") == (True, [])


# The greeting


@contextlib.contextmanager
def a_server(monkeypatch: pytest.MonkeyPatch, speak: Callable[[socket.socket], None]) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(ssh, "_PORT", listener.getsockname()[1])

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        speak(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield


def slowly(text: bytes, pause_s: float = 0.01) -> Callable[[socket.socket], None]:
    def speak(connection: socket.socket) -> None:
        for byte in text:
            connection.sendall(bytes([byte]))
            time.sleep(pause_s)

    return speak


@pytest.mark.parametrize(
    ("said", "is_ssh"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", True),
        (b"welcome\r\nto this machine\r\nSSH-2.0-x\r\n", True),
        (b"HTTP/1.1 400 SSH-\r\n", False),
        (b"", False),
        (b"SS", False),
    ],
)
def test_a_greeting_is_read_in_whatever_parts_it_comes(
    monkeypatch: pytest.MonkeyPatch, said: bytes, is_ssh: bool
) -> None:
    with a_server(monkeypatch, slowly(said)):
        assert ssh._greets("127.0.0.1", 5) is is_ssh


@pytest.mark.fault(49)
def test_a_server_that_trickles_or_never_ends_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with a_server(monkeypatch, slowly(b"x" * 1000, 0.05)):
        assert not ssh._greets("127.0.0.1", 0.5)
    with a_server(monkeypatch, lambda connection: [connection.sendall(b"x" * 65536) for _ in range(100_000)] and None):
        assert not ssh._greets("127.0.0.1", 60)
    assert time.monotonic() - began < 5
