"""Everything that a user can get wrong: an error in three parts, the right exit code, and nothing half-made."""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from frames import inside
from hosts import VMM, Host, sh

from conftest import add_tiny

pytestmark = pytest.mark.system

SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")


@pytest.fixture(scope="module")
def ready(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host with one machine `here` that never ran, and one, `busy`, that runs with a forward."""
    add_tiny(shared_host, tmp_path_factory.mktemp("tiny"))
    (shared_host.data_dir / "config").mkdir()
    shared_host.vmm("create", "here", *SMALL, "--disk", "512")
    shared_host.vmm("create", "busy", *SMALL)
    shared_host.vmm("start", "busy")
    shared_host.vmm("port-forward", "add", "busy", "7000:70")
    return shared_host


def everything(host: Host) -> dict[str, object]:
    """Return what must be the same after an error: every machine, and the name of every file."""
    names = sorted(str(path) for path in host.data_dir.rglob("*") if "locks" not in path.parts)
    return {"machines": host.json("list"), "files": names, "links": host.run("ip", "-o", "link").stdout.count("\n")}


BAD_NAMES = ["", "-x", ".hidden", "../up", "a/b", "a b", "a;b", "ä", "x" * 65, "a\nb", "$(id)", "a,b"]


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", BAD_NAMES)
def test_names(ready: Host, name: str) -> None:
    before = everything(ready)
    for verb in (["create"], ["start"], ["stop"], ["delete"], ["show"], ["console"], ["set", "--cpus", "1"]):
        ready.fails(*verb, "--", name, code=2)
    ready.fails("create", "ok", "--image", name, code=2)
    ready.fails("create", "ok", "--kernel", name, code=2)
    ready.fails("image", "import", "/dev/null", "--name", name, code=2)
    ready.fails("kernel", "delete", "--", name, code=2)
    ready.fails("port-forward", "add", "--", name, "1:1", code=2)
    assert everything(ready) == before


WRONG: list[tuple[int, str, list[str]]] = [
    # Sizes and numbers
    (2, "--memory", ["create", "m", "--memory", "127"]),
    (2, "--memory", ["create", "m", "--memory", "65G"]),
    (2, "is not a size", ["create", "m", "--memory", "lots"]),
    (2, "is not a size", ["create", "m", "--memory", "-5"]),
    (2, "is not a size", ["create", "m", "--memory", "1.5G"]),
    (2, "is not a size", ["create", "m", "--memory", "9" * 40]),
    (2, "--cpus", ["create", "m", "--cpus", "0"]),
    (2, "--cpus", ["create", "m", "--cpus", "33"]),
    (2, "--cpus", ["create", "m", "--cpus", "two"]),
    (2, "--disk", ["create", "m", *SMALL, "--disk", "255"]),
    (2, "too small for the image", ["create", "m", "--disk", "300"]),
    (2, "--disk", ["create", "m", "--disk", "2T"]),
    (2, "cannot shrink", ["set", "here", "--disk", "511", "--memory", "256"]),
    (2, "--memory", ["set", "here", "--memory", "1"]),
    (2, "what to change", ["set", "here"]),
    # Things that are not there
    (1, "no image 'nosuch'", ["create", "m", "--image", "nosuch"]),
    (1, "no kernel 'nosuch'", ["create", "m", "--kernel", "nosuch"]),
    (1, "no kernel 'nosuch'", ["set", "here", "--kernel", "nosuch"]),
    (2, "nosuch", ["create", "m", "--engine", "nosuch"]),
    (1, "no machine 'nosuch'", ["start", "nosuch"]),
    (1, "no machine 'nosuch'", ["stop", "nosuch"]),
    (1, "no machine 'nosuch'", ["delete", "nosuch"]),
    (1, "no machine 'nosuch'", ["show", "nosuch"]),
    (1, "no machine 'nosuch'", ["console", "nosuch"]),
    (1, "no machine 'nosuch'", ["ssh", "nosuch"]),
    (1, "no machine 'nosuch'", ["exec", "nosuch", "--", "true"]),
    (1, "no machine 'nosuch'", ["set", "nosuch", "--cpus", "1"]),
    (1, "no machine 'nosuch'", ["port-forward", "add", "nosuch", "80:80"]),
    (1, "no machine 'nosuch'", ["port-forward", "list", "nosuch"]),
    (1, "Did you mean 'here'", ["start", "hre"]),
    (1, "no image 'nosuch'", ["image", "delete", "nosuch"]),
    (1, "no kernel 'nosuch'", ["kernel", "delete", "nosuch"]),
    (1, "to pull", ["image", "pull", "windows"]),
    (1, "to pull", ["kernel", "pull", "bsd"]),
    (1, "cannot be read", ["image", "import", "/nonexistent", "--name", "i"]),
    (1, "cannot be vmm's data directory", ["--data-dir", "/etc/passwd", "list"]),
    (1, "it is a directory", ["--config", "/", "list"]),
    (1, "cannot be read", ["kernel", "import", "/nonexistent", "--name", "k"]),
    # What exists already, or is in use
    (1, "already", ["create", "here", *SMALL]),
    (1, "is in use", ["image", "delete", "tiny"]),
    (1, "is in use", ["kernel", "delete", "tiny"]),
    (1, "It is running", ["delete", "busy"]),
    (1, "It is running", ["set", "busy", "--cpus", "2"]),
    (1, "It is created", ["ssh", "here"]),
    # Keys, labels, resolvers, users
    (2, "cannot be read", ["create", "m", *SMALL, "--ssh-key", "/nonexistent.pub"]),
    (2, "not an ssh public key", ["create", "m", *SMALL, "--ssh-key", "/etc/passwd"]),
    (2, "cannot be read", ["create", "m", *SMALL, "--user-data", "/nonexistent"]),
    (2, "not a label", ["create", "m", *SMALL, "--label", "nothing"]),
    (2, "not a label", ["create", "m", *SMALL, "--label", "a=$(id)"]),
    (2, "not the address of a resolver", ["create", "m", *SMALL, "--dns", "dns.example"]),
    (2, "user name", ["ssh", "busy", "-u", "-oProxyCommand=id"]),
    (2, "user name", ["ssh", "busy", "--user", "Root!"]),
    (2, "not a filter", ["list", "--filter", "colour=red"]),
    (2, "not a filter", ["list", "--filter", "state=asleep"]),
    # The command line itself
    (2, "no command", ["strat", "here"]),
    (2, "Did you mean 'start'", ["strat", "here"]),
    (2, "Did you mean 'list'", ["ps"]),
    (2, "Did you mean 'show'", ["inspect", "here"]),
    (2, "names", ["start"]),
    (2, "not both", ["stop", "--all", "here"]),
    (2, "--nosuch", ["list", "--nosuch"]),
    (2, "seconds", ["stop", "here", "--timeout", "0"]),
    (2, "seconds", ["stop", "here", "--timeout", "nan"]),
    (2, "--output", ["list", "--output", "yaml"]),
    (2, "", ["exec", "busy"]),
    (2, "", ["show"]),
    (2, "value for each", ["config", "set", "subnet"]),
    (2, "no key", ["config", "set", "color", "red"]),
    (1, "subnet", ["config", "set", "subnet", "10.0.0.0/31"]),
    (1, "subnet", ["config", "set", "subnet", "banana"]),
    (1, "bridge", ["config", "set", "bridge_name", "a-name-that-is-too-long"]),
    (1, "engine", ["config", "set", "vm_defaults.engine", "xen"]),
    (1, "vm_defaults.cpus", ["config", "set", "vm_defaults.cpus", "99"]),
]


@pytest.mark.parametrize(("code", "words", "arguments"), WRONG, ids=[" ".join(row[2])[:60] for row in WRONG])
def test_what_is_wrong_is_said_and_changes_nothing(ready: Host, code: int, words: str, arguments: list[str]) -> None:
    before = everything(ready)
    said = ready.fails(*arguments, code=code)
    assert words in said
    assert everything(ready) == before


# Against `busy`, which runs, and `here`, which does not: what is refused must leave rules and records as they are.
WRONG_FORWARDS: list[tuple[int, str, list[str]]] = [
    (1, "is forwarded already", ["add", "{name}", "7000:1"]),  # another machine's, or its own
    (1, "is forwarded already", ["add", "{name}", "7000:70"]),  # the very same
    (1, "is forwarded already", ["add", "{name}", "127.0.0.1:7000:1"]),  # part of every address
    (1, "is forwarded already", ["add", "{name}", "0.0.0.0:7001:1"]),  # every address, part of which is taken
    (1, "is forwarded already", ["add", "{name}", "127.0.0.1:7001:2"]),
    (1, "has no forward", ["remove", "{name}", "7000:71"]),
    (1, "has no forward", ["remove", "{name}", "7002:70"]),
    (1, "has no forward", ["remove", "{name}", "7000:70/udp"]),
    (2, "not a port forward", ["add", "{name}", "80"]),
    (2, "not a port forward", ["add", "{name}", "0:80"]),
    (2, "not a port forward", ["add", "{name}", "80:0"]),
    (2, "not a port forward", ["add", "{name}", "65536:80"]),
    (2, "not a port forward", ["add", "{name}", "80:65536"]),
    (2, "not a port forward", ["add", "{name}", "80-90:80-90"]),
    (2, "not a port forward", ["add", "{name}", "-1:80"]),
    (2, "not a port forward", ["add", "{name}", "a:b"]),
    (2, "not a port forward", ["add", "{name}", "80:80/icmp"]),
    (2, "not a port forward", ["add", "{name}", "1:2:3:4"]),
    (2, "not a port forward", ["add", "{name}", "nohost:80:80"]),
    (2, "not a port forward", ["add", "{name}", "[::1]:80:80"]),
    (1, "not an address of this host", ["add", "{name}", "198.51.100.1:80:80"]),
]


def in_force(host: Host) -> list[object]:
    return [host.json("list"), host.run("nft", "list", "ruleset").stdout]


@pytest.mark.fault(28)
@pytest.mark.parametrize("name", ["here", "busy"])
def test_forwards_that_cannot_be_are_refused_before_anything_is_done(ready: Host, name: str) -> None:
    ready.vmm("port-forward", "add", "busy", "127.0.0.1:7001:71")
    before = in_force(ready)
    for code, words, arguments in WRONG_FORWARDS:
        verb, _, *forward = arguments
        said = ready.fails("port-forward", verb, name, "--", *forward, code=code)
        assert words in said, forward
    assert in_force(ready) == before
    ready.vmm("port-forward", "remove", "busy", "127.0.0.1:7001:71")


@contextlib.contextmanager
def a_service(host: Host, kind: socket.SocketKind, address: str, port: int) -> Iterator[None]:
    """A program of the host's that has a port, as a well-behaved server does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(host.namespace), socket.socket(family, kind) as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        service.bind((address, port))
        if kind == socket.SOCK_STREAM:
            service.listen()
        yield


@pytest.mark.fault(28)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("127.0.0.1", "7010:80"),  # part of every address
        ("0.0.0.0", "127.0.0.1:7010:80"),
        ("::", "7010:80"),  # how most servers listen: both families on one socket
        ("::", "127.0.0.1:22:22"),  # this one would lock an administrator out
    ],
)
def test_a_port_that_a_program_has_is_refused(ready: Host, address: str, wanted: str, protocol: str) -> None:
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    port = int(wanted.split(":")[-2])
    before = in_force(ready)
    with a_service(ready, kinds[protocol], address, port):
        said = ready.fails("port-forward", "add", "busy", f"{wanted}/{protocol}")
        assert f"Port {port}/{protocol} of the host is in use" in said
        assert f"sport = :{port}" in said
        assert in_force(ready) == before


@pytest.mark.fault(28)
def test_another_protocol_is_another_port(ready: Host) -> None:
    before = in_force(ready)
    with a_service(ready, socket.SOCK_STREAM, "0.0.0.0", 7010):
        ready.vmm("port-forward", "add", "busy", "7010:80/udp")
        ready.vmm("port-forward", "remove", "busy", "7010:80/udp")
    ready.vmm("port-forward", "add", "here", "7010:80")
    ready.vmm("port-forward", "remove", "here", "7010:80")
    assert in_force(ready) == before


@pytest.mark.fault(28)
def test_a_privileged_port_that_is_free_and_the_last_of_all_can_be_forwarded(ready: Host) -> None:
    before = in_force(ready)
    for forward in ("1:1", "443:443", "65535:65535", "53:53/udp"):
        ready.vmm("port-forward", "add", "busy", forward)
        assert f" . {forward.partition(':')[0]} : 172.16.0.3" in ready.run("nft", "list", "ruleset").stdout
        ready.vmm("port-forward", "remove", "busy", forward)
    assert in_force(ready) == before


@pytest.mark.fault(38)
def test_a_private_key_is_refused_and_never_quoted(ready: Host, tmp_path: Path) -> None:
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "id"))
    said = ready.fails("create", "m", *SMALL, "--ssh-key", str(tmp_path / "id"), code=2)
    assert "private key" in said
    secret = (tmp_path / "id").read_text().splitlines()[2]
    assert secret not in said
    assert secret not in ready.vmm("-v", "create", "m", *SMALL, "--ssh-key", str(tmp_path / "id"), check=False).stderr


def test_without_root(ready: Host) -> None:
    for parent in [ready.data_dir, *ready.data_dir.parents[:3]]:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    before = everything(ready)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *VMM]
    for arguments in (["create", "m"], ["start", "here"], ["stop", "busy"], ["delete", "here"], ["restart", "busy"],
                      ["set", "here", "--cpus", "2"], ["port-forward", "add", "here", "1:1"], ["run", "m"], ["setup"],
                      ["image", "pull"], ["kernel", "pull"], ["image", "delete", "tiny"], ["autostart"]):  # fmt: skip
        done = ready.run(*nobody, *arguments, check=False, env=ready.environment)
        assert done.returncode == 1, arguments
        assert "needs root" in done.stderr, done.stderr
        assert "sudo vmm" in done.stderr
    for arguments in (["list"], ["show", "busy"], ["image", "list"], ["kernel", "list"], ["config", "show"],
                      ["port-forward", "list", "busy"], ["version"], ["doctor"]):  # fmt: skip
        done = ready.run(*nobody, *arguments, check=False, env=ready.environment)
        assert "Error" not in done.stderr, done.stderr
        # What this user cannot see is not said to be gone.
        assert "was gone" not in done.stdout, done.stdout
    assert "running" in ready.run(*nobody, "list", env=ready.environment).stdout
    assert everything(ready) == before


def hidden(host: Host, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run vmm where `path` is another, useless thing: in a mount namespace of its own."""
    script = f'mount --bind /dev/null {path} && exec nsenter --net=/run/netns/{host.namespace} "$@"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", *VMM, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=host.environment)


@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="this host has no /dev/kvm to hide")
def test_without_kvm(ready: Host, tmp_path: Path) -> None:
    """A device that cannot be opened: mode 0 would not keep root out, a directory in its place does."""
    script = (
        f"mount -t tmpfs none {tmp_path} && mkdir {tmp_path}/dev && mount --bind /dev {tmp_path}/dev"
        " && mount -t tmpfs none /dev && mkdir /dev/net"
        " && for n in null zero urandom random net/tun;"
        f" do touch /dev/$n && mount --bind {tmp_path}/dev/$n /dev/$n; done"
        f' && exec nsenter --net=/run/netns/{ready.namespace} "$@"'
    )
    argv = ["unshare", "-m", "sh", "-c", script, "sh", *VMM]

    def without(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*argv, *arguments], capture_output=True, text=True, check=False, env=ready.environment)

    for arguments in (["create", "m", *SMALL], ["start", "here"]):
        done = without(*arguments)
        assert done.returncode == 1, done.stderr
        assert "/dev/kvm" in done.stderr or "KVM" in done.stderr, done.stderr
        assert "To mend it" in done.stderr
    assert "/dev/kvm does not exist" in without("doctor").stdout
    assert "vmm-ac100002" not in ready.run("ip", "-o", "link").stdout


def test_without_the_engines_program(ready: Host) -> None:
    firecracker = ready.data_dir / "bin" / "firecracker"
    away = firecracker.with_name("away")
    firecracker.rename(away)
    try:
        assert "vmm setup" in ready.fails("create", "m", *SMALL)
        assert "vmm setup" in ready.fails("start", "here")
        assert ready.machine("here")["state"] == "failed"
    finally:
        away.rename(firecracker)
    ready.vmm("start", "here")
    ready.vmm("stop", "here", "--force")


def test_without_tun(ready: Host) -> None:
    done = hidden(ready, "/dev/net/tun", "start", "here")
    assert done.returncode == 1
    assert "tap" in done.stderr
    assert "ls -l /dev/net/tun" in done.stderr
    assert "vmm-ac100002" not in ready.run("ip", "-o", "link").stdout


@pytest.mark.parametrize(
    "text",
    ["not toml = = =", 'nosuch = "x"', "subnet = 5", '[vm_defaults]\ncpus = "two"', "\x00\xff", "[vm_defaults]\ncpus = 0",
     'data_dir = ["a"]', 'subnet = "172.16.0.0/99"'],
)  # fmt: skip
def test_a_broken_configuration(ready: Host, text: str) -> None:
    path = ready.data_dir / "config" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode("latin-1"))
    try:
        for arguments in (["list"], ["start", "here"], ["create", "m"]):
            said = ready.fails(*arguments)
            assert str(path) in said or "subnet" in said, said
    finally:
        path.unlink()
    # And one that was asked for must be there.
    assert "no configuration file" in ready.fails("list", "--config", "/nonexistent.toml")


@pytest.mark.fault(17)
def test_a_database_of_a_newer_vmm(ready: Host) -> None:
    path = ready.data_dir / "state" / "vmm.db"
    with sqlite3.connect(path) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    content = path.read_bytes()
    try:
        for arguments in (["list"], ["start", "here"], ["create", "m", *SMALL], ["delete", "here"]):
            said = ready.fails(*arguments)
            assert "newer vmm" in said
            assert "999" in said
        assert path.read_bytes() == content
    finally:
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
    assert ready.machine("busy")["state"] == "running"


@pytest.mark.fault(17)
def test_a_damaged_database(ready: Host) -> None:
    path = ready.data_dir / "state" / "vmm.db"
    good = path.read_bytes()
    try:
        path.write_bytes(b"this is no database" * 500)
        assert "damaged" in ready.fails("list")
        assert "damaged" in ready.fails("start", "here")
    finally:
        path.write_bytes(good)


@pytest.mark.fault(17)
def test_a_record_that_cannot_be_read_is_shown(ready: Host) -> None:
    path = ready.data_dir / "state" / "vmm.db"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE machines SET labels = '{broken' WHERE name = 'here'")
    connection.close()
    try:
        rows = {row["name"]: row["state"] for row in ready.json("list")}
        assert rows == {"here": "unreadable", "busy": "running"}
        assert "unreadable" in ready.vmm("list").stdout
        assert "cannot be read" in ready.fails("show", "here")
    finally:
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE machines SET labels = '{}' WHERE name = 'here'")
        connection.close()


@pytest.fixture
def full(host: Host, tmp_path: Path) -> Iterator[Host]:
    """A host whose data directory has a few MiB left."""
    small = tmp_path / "small"
    small.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=40M", "vmmtest", str(small))
    try:
        yield Host(namespace=host.namespace, data_dir=small / "data")
    finally:
        sh("umount", str(small))


@pytest.mark.fault(11)
def test_no_space(full: Host, host: Host, tmp_path: Path) -> None:
    (full.data_dir / "bin").mkdir(parents=True)
    for program in ("firecracker", "jailer"):
        shutil.copy(host.data_dir / "bin" / program, full.data_dir / "bin" / program)
    image = tmp_path / "filled.ext4"
    filled = tmp_path / "filled"
    filled.mkdir()
    (filled / "data").write_bytes(os.urandom(1 << 20) * 20)
    sh("mke2fs", "-q", "-t", "ext4", "-d", str(filled), str(image), "256M")
    add_tiny(full, tmp_path)
    full.vmm("image", "import", str(image), "--name", "filled")
    before = sorted(path.name for path in full.data_dir.rglob("*") if path.is_file())
    # A second copy has no room: by image and by machine.
    assert "df -h" in full.fails("image", "import", str(image), "--name", "second")
    said = full.fails("create", "m", *SMALL, "--image", "filled")
    assert "No space left" in said
    assert full.json("list") == []
    kept = [path for path in full.data_dir.rglob("*") if path.is_file() and "state" not in path.parts]
    assert sorted(path.name for path in kept) == before
    assert full.run("ip", "-o", "link").stdout.count("vmm-") == 0
    # Deleting works on a disk that is full to the last byte.
    full.vmm("create", "m", *SMALL)
    with (full.data_dir / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"\0" * (1 << 20))
        except OSError:
            pass
    said = full.fails("start", "m")
    assert "df -h" in said or "room" in said or "doctor" in said, said
    full.vmm("delete", "m")
    (full.data_dir / "filler").unlink()
    assert full.json("list") == []


def test_a_data_directory_that_cannot_be(tmp_path: Path) -> None:
    plain = tmp_path / "file"
    plain.write_text("")
    argv = [*VMM, "--data-dir", str(plain)]
    for arguments in (["list"], ["create", "m"]):
        done = sh(*argv, *arguments, check=False)
        assert done.returncode == 1, (arguments, done.stdout)
        assert "Traceback" not in done.stderr
        assert "To mend it" in done.stderr


def test_a_reader_that_goes_away_is_no_error(ready: Host) -> None:
    script = f"{sys.executable} -m vmm list --output json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = ready.run("bash", "-c", script, env=ready.environment, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
