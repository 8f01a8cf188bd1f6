"""Engines as values, and their clients against a server that does not keep to any protocol."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm.engines.choice import KvmReport, kvm_report, pick
from vmm.engines.firecracker import api, releases
from vmm.engines.firecracker.engine import FirecrackerEngine, configuration
from vmm.engines.qemu import qmp
from vmm.engines.qemu.engine import QemuEngine, arguments, tsc_hz
from vmm.errors import EngineError, UsageError
from vmm.model.engine import BootPlan, Disk, EngineStatus
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


def a_plan(**changes: object) -> BootPlan:
    values: dict[str, object] = {
        "name": "m", "id": "0" * 32, "cpus": 2, "memory_mib": 512, "kernel": Path("/k"), "initrd": Path("/i"),
        "command_line": "console=ttyS0", "disks": (Disk(path=Path("/d,1")), Disk(path=Path("/seed"), read_only=True)),
        "tap": "vmm-ac100002", "mac": "06:00:ac:10:00:02", "socket": Path("/s,2.sock"), "console": Path("/c"),
        "log": Path("/l"), "config": Path("/e"),
        **changes,
    }  # fmt: skip
    return BootPlan(**values)  # type: ignore[arg-type]


def test_firecrackers_configuration() -> None:
    made = configuration(a_plan())
    assert made["boot-source"] == {"kernel_image_path": "/k", "boot_args": "console=ttyS0", "initrd_path": "/i"}
    assert made["machine-config"] == {"vcpu_count": 2, "mem_size_mib": 512}
    assert [(d["path_on_host"], d["is_read_only"]) for d in made["drives"]] == [("/d,1", False), ("/seed", True)]  # type: ignore[attr-defined]
    assert "initrd_path" not in configuration(a_plan(initrd=None))["boot-source"]  # type: ignore[operator]


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
