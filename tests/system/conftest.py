"""What system tests share: hosts in namespaces of their own, and the tiny guest."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import nested_image
import own_network
import pytest
import tiny_kernel
from hosts import Host, a_host, sh, wait_for
from nested import Nested, a_nested_host
from nspawn import groups

_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    assert os.geteuid() == 0, "system tests need root: they make links and run machines (sudo scripts/test)"


@pytest.fixture(scope="session", autouse=True)
def _network_is_left_alone() -> Iterator[None]:
    with own_network.left_alone():
        yield


@pytest.fixture(autouse=True)
def _network_is_left_alone_by_each() -> Iterator[None]:
    """The same for each test, so that the one that did it is named; it takes 15 ms."""
    with own_network.left_alone():
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_cgroup_stays() -> Iterator[None]:
    before = set(groups())
    yield
    # Another run may be at work beside this one (scripts/test): a group of its machines has processes, and what a
    # machine of ours leaves running is found by its host.
    wait_for(lambda: empty(groups()) <= before, timeout=5, what=f"the end of {empty(groups()) - before}")


@pytest.fixture(scope="session", autouse=True)
def _no_process_stays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One that stays takes the time of every test behind it: a supervisor with thousands of machines to settle did."""
    base = f"{tmp_path_factory.getbasetemp()}/"
    yield
    wait_for(lambda: not naming(base), timeout=5, what=f"the end of {naming(base)}")


def naming(path: str) -> list[str]:
    """Return the command lines of processes that name a path."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if path in line:
                    found.append(f"{entry.name}: {line}")
    return found


def empty(found: Iterable[Path]) -> set[Path]:
    """Return those of these cgroups that have no process, nor any of those below them."""
    full = {group for group in found if _processes(group)}
    return {group for group in found if not any(other.is_relative_to(group) for other in full)}


def _processes(group: Path) -> str:
    try:
        return (group / "cgroup.procs").read_text()
    except OSError:
        return ""


def _name() -> str:
    return f"vmmtest-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host for one test."""
    with a_host(_name(), tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host for all tests of a module."""
    with a_host(_name(), tmp_path_factory.mktemp("host")) as made:
        yield made


@pytest.fixture
def tiny(host: Host, tmp_path: Path) -> Host:
    """The host with a kernel and an image `tiny`: a guest that greets on its console and halts."""
    add_tiny(host, tmp_path)
    return host


def add_tiny(host: Host, directory: Path, then: tiny_kernel.Then = tiny_kernel.Then.HALT, name: str = "tiny") -> None:
    image = directory / f"{name}.ext4"
    sh("mke2fs", "-q", "-t", "ext4", str(image), "256M")
    host.vmm("image", "import", str(image), "--name", name)
    image.unlink()
    add_kernel(host, directory, name, tiny_kernel.build(then))


def add_kernel(host: Host, directory: Path, name: str, content: bytes) -> None:
    kernel = directory / f"{name}.elf"
    kernel.write_bytes(content)
    host.vmm("kernel", "import", str(kernel), "--name", name, "--no-stage1")
    kernel.unlink()


@pytest.fixture(scope="session")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nested]:
    """Debian 12 with virtualization: real Firecracker with whole guests, a real systemd, cgroup v2."""
    with a_nested_host(nested_image.DEBIAN_12, _name(), tmp_path_factory.mktemp("nested")) as made:
        yield made


@pytest.fixture(scope="session")
def nested_13(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nested]:
    """Debian 13 with virtualization, its network looked after by systemd-networkd and systemd-resolved."""
    with a_nested_host(nested_image.DEBIAN_13, _name(), tmp_path_factory.mktemp("nested"), memory_mib=4096) as made:
        yield made
