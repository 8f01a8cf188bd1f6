"""Engines as values, and their clients against a server that does not keep to any protocol."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machines import a_plan

from vmm.engines import emulation
from vmm.engines.choice import KvmReport, kvm_report, pick
from vmm.engines.firecracker import api, releases
from vmm.engines.firecracker.configuration import configuration
from vmm.engines.firecracker.engine import FirecrackerEngine
from vmm.engines.qemu import qmp
from vmm.engines.qemu.engine import QemuEngine, _user, arguments, tsc_hz
from vmm.errors import EngineError, UsageError
from vmm.model.engine import EngineStatus
from vmm.model.machine import EngineName

GREETING = b'{"QMP": {}}\r\n'
OK = b'{"return": {}}\r\n'


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], Path]]:
    """Serve one connection on a unix socket with whatever a function does; give the socket's path."""
    servers: list[socket.socket] = []

    def begin(behave: Callable[[socket.socket], None]) -> Path:
        path = tmp_path / "m.sock"
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen()
        servers.append(server)

        def work() -> None:
            try:
                connection, _ = server.accept()
                with connection:
                    behave(connection)
            except OSError:
                pass

        threading.Thread(target=work, daemon=True).start()
        return path

    yield begin
    for server in servers:
        server.close()


def http(content: bytes, code: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (code, len(content), content)


def answering(*answers: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        if answers and answers[0] == GREETING:
            connection.sendall(GREETING)
        for answer in answers[1:] if answers and answers[0] == GREETING else answers:
            connection.recv(4096)
            connection.sendall(answer)

    return behave


def dripping(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"H")
        time.sleep(0.05)


def flooding(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 65536)


def silent(connection: socket.socket) -> None:
    time.sleep(5)


BAD = {
    "silent": silent,
    "dripping": dripping,
    "flooding": flooding,
    "closing": lambda connection: None,
    "garbage": answering(b"\x00\xff\x00\xff\r\n\r\n"),
    "no JSON": answering(http(b"<html>")),
    "a huge length": answering(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
    "a negative length": answering(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
    "another state": answering(http(b'{"state": "Dreaming"}')),
}


@pytest.mark.fault(14, 15)
@pytest.mark.parametrize("kind", BAD)
def test_firecrackers_client_is_bounded(kind: str, serve: Callable[..., Path]) -> None:
    path = serve(BAD[kind])
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        FirecrackerEngine(binary=Path("/x")).status(path, timeout_s=0.5)
    assert time.monotonic() - began < 2
    assert "'m'" in caught.value.brief
    assert "vmm show m" in caught.value.resolution


@pytest.mark.fault(14, 15)
@pytest.mark.parametrize("kind", ["silent", "dripping", "flooding", "closing", "garbage"])
def test_qemus_client_is_bounded(kind: str, serve: Callable[..., Path]) -> None:
    path = serve(BAD[kind])
    began = time.monotonic()
    with pytest.raises(EngineError):
        QemuEngine(binary=Path("/x"), kvm=False).status(path, timeout_s=0.5)
    assert time.monotonic() - began < 2


@pytest.mark.fault(15)
def test_no_socket_at_all(tmp_path: Path) -> None:
    for ask in (api.request, qmp.execute):
        with pytest.raises(EngineError):
            ask(tmp_path / "m.sock", *(("GET", "/") if ask is api.request else ("query-status",)), timeout_s=0.5)


@pytest.mark.parametrize(
    ("state", "status"),
    [("Not started", EngineStatus.STARTING), ("Running", EngineStatus.RUNNING), ("Paused", EngineStatus.PAUSED)],
)
def test_what_firecracker_reports(state: str, status: EngineStatus, serve: Callable[..., Path]) -> None:
    path = serve(answering(http(json.dumps({"state": state}).encode())))
    assert FirecrackerEngine(binary=Path("/x")).status(path) is status


def test_firecrackers_refusal_is_quoted(serve: Callable[..., Path]) -> None:
    path = serve(answering(http(b'{"fault_message": "no such action"}', 400)))
    with pytest.raises(EngineError, match="refused") as caught:
        api.request(path, "PUT", "/actions", {"action_type": "X"}, timeout_s=1)
    assert caught.value.details == "no such action"


def test_qmp_passes_over_events(serve: Callable[..., Path]) -> None:
    event = b'{"event": "RESUME"}\r\n'
    path = serve(answering(GREETING, event + OK, event + b'{"return": {"status": "running"}}\r\n'))
    assert QemuEngine(binary=Path("/x"), kvm=False).status(path) is EngineStatus.RUNNING


def test_qmp_refusal_is_quoted(serve: Callable[..., Path]) -> None:
    path = serve(answering(GREETING, OK, b'{"error": {"class": "X", "desc": "no such command"}}\r\n'))
    with pytest.raises(EngineError, match="refused") as caught:
        qmp.execute(path, "x", timeout_s=1)
    assert "no such command" in caught.value.details


# Arguments


def test_firecrackers_configuration() -> None:
    """Outside of a jail with the paths as they are; inside with those that the jail gives them."""
    made = configuration(a_plan(), kernel="/k", initrd="/i", disks=["/d,1", "/seed"])
    assert made["boot-source"] == {"kernel_image_path": "/k", "boot_args": "console=ttyS0", "initrd_path": "/i"}
    assert made["machine-config"] == {"vcpu_count": 2, "mem_size_mib": 512}
    drives = made["drives"]
    assert [(d["path_on_host"], d["is_read_only"]) for d in drives] == [("/d,1", False), ("/seed", True)]  # type: ignore[attr-defined]
    assert {d["is_root_device"] for d in drives} == {False}  # type: ignore[attr-defined]
    without = configuration(a_plan(), kernel="/k", initrd=None, disks=["/d,1", "/seed"])
    assert "initrd_path" not in without["boot-source"]  # type: ignore[operator]
    with pytest.raises(ValueError, match="zip"):
        configuration(a_plan(), kernel="/k", initrd=None, disks=["/d,1"])


def test_an_engine_is_known_by_its_own_socket_whichever_way_it_was_started() -> None:
    socket, machine_id = Path("/d/sockets/m.sock"), "0" * 32
    both = FirecrackerEngine(binary=Path("/x")).markers(machine_id=machine_id, socket=socket)
    # A machine's jail may have been taken off while it ran under it.
    assert both == (f"/{machine_id}.sock", str(socket))
    assert QemuEngine(binary=Path("/x"), kvm=False).markers(machine_id=machine_id, socket=socket) == (
        "00000000-0000-0000-0000-000000000000",
        str(socket),
    )


@pytest.mark.fault(27)
def test_holes_are_those_of_the_release_that_was_installed(tmp_path: Path) -> None:
    (tmp_path / "firecracker.json").write_text('{"version": "1.12.1"}')
    engine = FirecrackerEngine(binary=tmp_path / "firecracker")
    assert engine.holes() == (
        "Firecracker 1.12.1 has CVE-2026-1386: the jailer follows symbolic links.",
        "Firecracker 1.12.1 is older than 1.15.1, the least for real use.",
    )
    (tmp_path / "firecracker.json").write_text('{"version": "1.16.1"}')
    assert engine.holes() == ()
    assert QemuEngine(binary=Path("/x"), kvm=False).holes() == ()


def test_qemu_gives_root_up_by_the_option_that_it_has() -> None:
    assert _user(100_002, newer=False) == ["-runas", "100002:100002"]
    assert _user(100_002, newer=True) == ["-run-with", "user=100002:100002"]


@pytest.mark.parametrize(
    ("words", "newer"),
    [
        ("QEMU emulator version 7.2.9 (Debian 1:7.2+dfsg-7+deb12u6)", False),
        ("QEMU emulator version 9.0.2", False),
        ("QEMU emulator version 9.1.0", True),
        ("QEMU emulator version 10.0.0", True),
        ("nothing that is known", False),
    ],
)
def test_which_option_is_read_from_qemus_own_words(tmp_path: Path, words: str, newer: bool) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\necho '{words}'\n")
    qemu.chmod(0o755)
    assert QemuEngine(binary=qemu, kvm=False)._knows_run_with() is newer


def test_qemus_arguments() -> None:
    argv = arguments(Path("/qemu"), a_plan(), kvm=False)
    text = " ".join(argv)
    assert "file=/d,,1,if=none" in text
    assert "unix:/s,,2.sock,server=on" in text
    assert "read-only=on" in text
    assert "ifname=vmm-ac100002" in text
    assert argv.count("-monitor") == 0
    assert "-no-reboot" in argv
    assert "-initrd" not in arguments(Path("/qemu"), a_plan(initrd=None), kvm=False)
    assert "accel=kvm" in " ".join(arguments(Path("/qemu"), a_plan(), kvm=True))


def test_the_tsc_has_the_hosts_own_frequency() -> None:
    assert tsc_hz("model name : X @ 2.50GHz\ncpu MHz : 1200.0") == 2_500_000_000
    assert tsc_hz("cpu MHz\t\t: 1999.5") == 1_999_500_000
    assert tsc_hz("nothing") == 2_000_000_000


# Choice


def a_report(**changes: bool) -> KvmReport:
    values = {"device_opens": True, "cpu_flags": True, "can_run_guests": True, **changes}
    return KvmReport(why="because", **values)


def test_auto_takes_what_can_run_a_guest(tmp_path: Path) -> None:
    firecracker, qemu = tmp_path / "firecracker", tmp_path / "qemu"
    for path in (firecracker, qemu):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    unable = a_report(cpu_flags=False, can_run_guests=False)

    def choose(wish: str, report: KvmReport) -> EngineName:
        return pick(wish, firecracker=firecracker, qemu=qemu, report=report)

    assert choose("auto", a_report()) is EngineName.FIRECRACKER
    assert choose("auto", unable) is EngineName.QEMU
    assert choose("firecracker", unable) is EngineName.FIRECRACKER
    with pytest.raises(EngineError, match="needs KVM"):
        choose("firecracker", a_report(device_opens=False, can_run_guests=False))
    with pytest.raises(UsageError):
        choose("xen", a_report())
    qemu.unlink()
    with pytest.raises(EngineError, match="not on this host"):
        choose("auto", unable)


@pytest.mark.parametrize(
    ("flags", "able"),
    [("flags : fpu vmx", True), ("flags : svm fpu", True), ("flags : fpu", False), ("flags : vmxnet", False)],
)
def test_kvm_without_vmx_or_svm_cannot_run_guests(tmp_path: Path, flags: str, able: bool) -> None:
    cpuinfo, device = tmp_path / "cpuinfo", tmp_path / "kvm"
    cpuinfo.write_text(f"processor : 0\n{flags}\n")
    device.write_text("")
    assert kvm_report(device, cpuinfo).can_run_guests is able
    assert not kvm_report(tmp_path / "none", cpuinfo).can_run_guests


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("version", "holes"),
    [("1.12.1", ["CVE-2026-1386"]), ("1.13.1", ["CVE-2026-1386", "CVE-2026-5747"]),
     ("1.14.0", ["CVE-2026-1386", "CVE-2026-5747"]), ("1.14.3", ["CVE-2026-5747"]), ("1.15.0", ["CVE-2026-5747"]),
     ("1.15.1", []), ("1.16.1", [])],
)  # fmt: skip
def test_known_holes(version: str, holes: list[str]) -> None:
    assert [hole.name for hole in releases.known_holes(version)] == holes
    assert releases.parse(f"Firecracker v{version}") == tuple(map(int, version.split(".")))


@pytest.mark.parametrize(("name", "words"), [("QEMU TCG CPU version 2.5+", " clearcpuid=141"), ("AMD EPYC", "")])
def test_a_guest_on_an_emulated_cpu_leaves_its_cmpxchg16b_alone(tmp_path: Path, name: str, words: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: {name}\n")
    assert emulation.words_of_host(cpuinfo) == words
