"""Roots that nobody tuned: what stage-1 does inside them, in namespaces of this host, with the real file system."""

import os
import shutil
from pathlib import Path

import pytest
from hosts import sh
from roots import FACTS, KEY, Root, a_root

pytestmark = [pytest.mark.system, pytest.mark.fault(47)]

OWN_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA own"
PLAIN = ("etc/hostname", "etc/hosts", "etc/machine-id", "etc/resolv.conf", "root/.ssh/authorized_keys")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return a_root(tmp_path)


def test_a_bare_root_gets_all_facts_and_nothing_is_skipped(root: Root) -> None:
    root.boot("$b cat /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_ed25519_key.pub")
    assert root.said == []
    assert root.found == "PRIVATE\nPUBLIC"
    assert root.read("etc/hostname") == "dev\n"
    assert root.read("etc/hosts") == "127.0.0.1 localhost\n127.0.1.1 dev\n"
    assert root.read("etc/resolv.conf") == "nameserver 192.0.2.53\n"
    assert root.read("etc/machine-id") == f"{FACTS.machine_id}\n"
    assert root.read("root/.ssh/authorized_keys") == f"{KEY}\n"
    assert (root / "root/.ssh/authorized_keys").stat().st_mode & 0o777 == 0o600


def test_the_host_key_is_on_no_disk(root: Root) -> None:
    root.boot()
    assert root.read("etc/ssh/ssh_host_ed25519_key") == ""


def test_a_second_boot_writes_nothing(root: Root) -> None:
    root.boot()
    before = {path: path.lstat().st_mtime_ns for path in root.path.rglob("*")}
    root.boot()
    assert {path: path.lstat().st_mtime_ns for path in root.path.rglob("*")} == before
    assert root.said == []


def test_files_without_a_final_newline(root: Root) -> None:
    root.write("etc/hosts", "127.0.0.1 localhost\n192.0.2.7 other")
    root.write("root/.ssh/authorized_keys", f"# mine\n{OWN_KEY}", 0o640)
    root.boot()
    assert root.read("etc/hosts") == "127.0.0.1 localhost\n192.0.2.7 other\n127.0.1.1 dev\n"
    assert root.read("root/.ssh/authorized_keys") == f"# mine\n{OWN_KEY}\n{KEY}\n"
    assert (root / "root/.ssh/authorized_keys").stat().st_mode & 0o777 == 0o640
    assert root.said == []


def test_a_name_in_a_comment_or_within_another_is_no_entry(root: Root) -> None:
    root.write("etc/hosts", "127.0.1.1 devil dev.example\n# 127.0.1.1 dev\n").boot()
    assert root.read("etc/hosts").endswith("\n127.0.1.1 dev\n")


@pytest.mark.parametrize("name", PLAIN)
def test_a_fifo_where_a_fact_belongs(root: Root, name: str) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    os.mkfifo(root / name)
    root.boot(timeout=20)
    _is_there_or_said(root, name)


@pytest.mark.parametrize("name", PLAIN)
def test_a_device_where_a_fact_belongs(root: Root, name: str) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    os.mknod(root / name, 0o20666, os.makedev(1, 5))  # /dev/zero has no end
    root.boot(timeout=20)
    _is_there_or_said(root, name)


@pytest.mark.parametrize("name", PLAIN)
def test_an_endless_file_where_a_fact_belongs(root: Root, name: str) -> None:
    root.write(name, "")
    os.truncate(root / name, 1 << 40)
    root.boot(timeout=20)
    _is_there_or_said(root, name)


@pytest.mark.parametrize("name", PLAIN)
def test_a_directory_where_a_fact_belongs(root: Root, name: str) -> None:
    (root / name).mkdir(parents=True)
    root.boot(timeout=20)
    assert any(f"/{name} is" in line for line in root.said), root.said


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("target", ["/nowhere/at/all", "/dev/zero", "/proc/self/fd/0", "hostname", "."])
def test_a_link_where_a_fact_belongs(root: Root, name: str, target: str) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).symlink_to(target)
    root.boot(timeout=20)
    if name in ("etc/hostname", "etc/resolv.conf"):
        assert not (root / name).is_symlink()
        assert root.said == []
    else:
        assert (root / name).is_symlink()


def _is_there_or_said(root: Root, name: str) -> None:
    """A file of our own in its place, or mounted over it with a word; and the way in is there either way."""
    path = root / name
    if name in ("etc/hosts", "root/.ssh/authorized_keys"):
        assert any(f"/{name} is no plain file: what it should say is mounted" in line for line in root.said), root.said
    mended = path.is_file() and path.stat().st_size < 4096
    assert mended or any(f"/{name} " in line for line in root.said), root.said
    if not mended and "authorized_keys" in name:
        assert "/run/vmm/authorized_keys" in root.read("etc/ssh/sshd_config")


@pytest.mark.parametrize("name", PLAIN)
def test_an_immutable_file_is_left_and_said(root: Root, name: str) -> None:
    root.write(name, "of my own\n")
    sh("chattr", "+i", str(root / name))
    try:
        root.boot(timeout=20)
        assert root.read(name) == "of my own\n"
        if name != "etc/machine-id":  # it has one
            assert any(f"/{name} cannot be replaced" in line for line in root.said), root.said
        if "authorized_keys" in name:
            assert "/run/vmm/authorized_keys" in root.read("etc/ssh/sshd_config")
    finally:
        sh("chattr", "-i", str(root / name))


def test_a_read_only_root_has_its_facts_mounted_over(root: Root) -> None:
    for name in PLAIN:
        root.write(name, "x" if name != "etc/machine-id" else "")
    root.write("etc/ssh/ssh_host_ed25519_key", "").write("etc/ssh/ssh_host_ed25519_key.pub", "")
    files = (*PLAIN, "etc/ssh/ssh_host_ed25519_key")
    root.boot("; ".join(f"$b cat /{name}" for name in files), how="read-only")
    for text in ("dev\n", "127.0.1.1 dev\n", FACTS.machine_id, "nameserver 192.0.2.53", "PRIVATE", KEY):
        assert text in root.found + "\n"
    assert any("/etc/hosts cannot be written" in line for line in root.said)
    assert root.read("etc/hostname") == "x"


def test_a_read_only_root_without_any_of_it_is_no_reason_to_wait(root: Root) -> None:
    """A redirection that fails ends a shell at some of its own commands: each such step took its whole limit."""
    root.write("etc/ssh/sshd_config", "UsePAM yes\n")
    root.boot("$b cat /etc/ssh/sshd_config /run/vmm/sshd.conf", how="read-only", timeout=15)
    assert not any("too long" in line for line in root.said), root.said
    for name in ("hostname", "hosts", "machine-id", "resolv.conf", "ssh/ssh_host_ed25519_key"):
        assert f"vmm: /etc/{name} was not written" in root.said
    assert "HostKey /run/vmm/ssh_host_ed25519_key" in root.found


def test_a_root_without_etc_gets_one(root: Root) -> None:
    shutil.rmtree(root / "etc")
    root.boot("$b cat /etc/ssh/ssh_host_ed25519_key", timeout=15)
    assert (root.said, root.found) == ([], "PRIVATE")
    assert root.read("etc/hostname") == "dev\n"


def test_an_etc_ssh_that_leads_nowhere_holds_up_nothing(root: Root) -> None:
    (root / "etc/ssh").rmdir()
    (root / "etc/ssh").symlink_to("/nowhere/at/all")
    root.boot(timeout=15)
    assert not any("too long" in line for line in root.said), root.said
    assert "vmm: /etc/ssh/ssh_host_ed25519_key was not written" in root.said


@pytest.mark.parametrize("name", ["etc/passwd", "etc/ssh/sshd_config", "etc/ssh/sshd_config.d/a.conf", *PLAIN])
@pytest.mark.parametrize("target", ["/proc/kmsg", "/sys/kernel/uevent_seqnum"])
def test_a_file_of_the_kernels_is_no_plain_one(root: Root, name: str, target: str) -> None:
    """Who reads /proc/kmsg waits for the kernel's next word."""
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(target)
    root.boot("$b cut -d ' ' -f 2 /proc/mounts", timeout=15)
    assert not any("too long" in line for line in root.said), root.said
    assert target not in root.found.splitlines()


def test_a_full_disk_keeps_nothing_from_a_boot(root: Root) -> None:
    for name in PLAIN:
        root.write(name, "x")
    root.boot("$b cat /etc/resolv.conf", how="full")
    assert root.found == "nameserver 192.0.2.53"


def test_traces_of_a_container_go(root: Root) -> None:
    root.write(".dockerenv", "").write("run/.containerenv", "").write("etc/rc.conf", '# x\nrc_sys="docker"\n')
    root.boot("$b ls -a /run")
    assert not (root / ".dockerenv").exists()
    assert ".containerenv" not in root.found
    assert root.read("etc/rc.conf") == '# x\nrc_sys=""\n'


def test_a_trace_that_cannot_be_removed_is_said(root: Root) -> None:
    root.write(".dockerenv", "")
    sh("chattr", "+i", str(root / ".dockerenv"))
    try:
        root.boot()
        assert any("/.dockerenv cannot be removed" in line for line in root.said)
    finally:
        sh("chattr", "-i", str(root / ".dockerenv"))


def test_root_lives_elsewhere(root: Root) -> None:
    root.write("etc/passwd", "daemon:x:1:1::/:/bin/false\nroot:x:0:0:root:/home/admin:/bin/sh\n").boot()
    assert root.read("home/admin/.ssh/authorized_keys") == f"{KEY}\n"


def test_a_link_within_the_root_is_followed_as_the_guest_would(root: Root) -> None:
    (root / "data/ssh").mkdir(parents=True)
    (root / "root/.ssh").symlink_to("/data/ssh")
    root.boot()
    assert root.read("data/ssh/authorized_keys") == f"{KEY}\n"


def test_keys_that_sshd_would_not_read_come_from_memory(root: Root) -> None:
    os.chown(root / "root", 1000, 1000)
    root.boot()
    assert any("/root is not root's alone" in line for line in root.said)
    assert "/run/vmm/authorized_keys" in root.read("etc/ssh/sshd_config")


def test_a_root_without_sshd_says_so(root: Root) -> None:
    (root / "usr/sbin/sshd").unlink()
    root.boot()
    assert any("no sshd" in line for line in root.said)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("etc/passwd", "root:x:0:0:root:/root:/usr/sbin/nologin\n", "root's shell is /usr/sbin/nologin"),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/zsh\n", "root's shell /bin/zsh (/etc/passwd) is not there"),
        ("etc/shadow", "daemon:*:0:::::\nroot:*:0:0:99999:7:::\n", "root's password has expired"),
        ("etc/shadow", "root:*:19000:0:99999:7::19001:\n", "root's account has expired"),
        ("etc/shadow", "root:!:19000:0:99999:7:::\n", "root's account is locked"),
    ],
)
def test_an_account_that_lets_nobody_in_is_told(root: Root, file: str, text: str, words: str) -> None:
    root.write(file, text).boot()
    assert any(words in line for line in root.said), root.said


@pytest.mark.parametrize(
    ("shadow", "config"),
    [
        # Locked is the password alone where PAM judges the account; nor is one without a password locked.
        ("root:!:19000:0:99999:7:::\n", "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n"),
        ("root:*:19000:0:99999:7::99999:\n", "UsePAM no\n"),
        ("root::19000::::::\nother:!:0::::1:\n", ""),
    ],
)
def test_an_account_that_lets_root_in_by_key_is_not_complained_of(root: Root, shadow: str, config: str) -> None:
    root.write("etc/shadow", shadow).write("etc/ssh/sshd_config", config).boot()
    assert [line for line in root.said if "root's" in line] == []


def test_a_closed_root_is_opened(root: Root) -> None:
    root.path.chmod(0o700)
    root.boot()
    assert root.path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["etc/hosts", "etc/fstab", "root/.ssh/authorized_keys"])
def test_what_would_hang_its_readers_is_covered(root: Root, name: str) -> None:
    (root / "root/.ssh").mkdir()
    os.mkfifo(root / name)
    root.boot(f"$b cat /{name}", timeout=20)
    words = {"etc/hosts": "127.0.1.1 dev", "etc/fstab": "/dev/vda / auto", "root/.ssh/authorized_keys": KEY}
    assert words[name] in root.found


# What sshd itself makes of a configuration that would keep vmm out.

LOCKED = """Port 2222
ListenAddress 127.0.0.1
HostKey /etc/ssh/ssh_host_rsa_key
PermitRootLogin no
PubkeyAuthentication no
AuthorizedKeysFile /etc/keys/%u
AllowUsers alice
DenyUsers root
AllowGroups people
DenyGroups root
Match User root
	PermitRootLogin no
"""


@pytest.mark.parametrize("include", [True, False])
def test_an_sshd_that_would_keep_vmm_out(root: Root, tmp_path: Path, *, include: bool) -> None:
    # Without files that it includes, what others than root may do cannot be kept apart.
    kept = LOCKED if include else "".join(line + "\n" for line in LOCKED.splitlines() if line[0] not in "\tADM")
    root.write("etc/ssh/sshd_config", ("Include /etc/ssh/sshd_config.d/*.conf\n" if include else "") + kept)
    for _ in range(2):
        root.boot()
    assert any("would keep vmm out" in line for line in root.said) == include, root.said
    said = _effective(root, tmp_path)
    assert said["permitrootlogin"][0] in ("prohibit-password", "without-password")
    assert said["pubkeyauthentication"] == ["yes"]
    assert {"172.16.0.2:22", "127.0.0.1:22"} <= set(said["listenaddress"])
    assert any(value.endswith("ssh_host_ed25519_key") for value in said["hostkey"])
    if include:
        assert said["authorizedkeysfile"] == [".ssh/authorized_keys /run/vmm/authorized_keys"]
        assert said["allowusers"] == ["root"]
        assert "root" not in said["denyusers"] + said["denygroups"]
        others = _effective(root, tmp_path, user="bob")
        assert (others["permitrootlogin"], others["allowusers"]) == (["no"], ["alice"])


@pytest.mark.parametrize("line", ["AuthenticationMethods publickey,password", "AuthorizedKeysFile=/etc/keys/%u"])
def test_one_line_is_enough_to_keep_vmm_out(root: Root, tmp_path: Path, line: str) -> None:
    root.write("etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n")
    root.write("etc/ssh/sshd_config.d/50-cloud.conf", line).boot()
    said = _effective(root, tmp_path)
    assert said["authorizedkeysfile"] == [".ssh/authorized_keys /run/vmm/authorized_keys"]
    assert said["authenticationmethods"] == ["publickey"]


def _effective(root: Root, directory: Path, user: str = "root") -> dict[str, list[str]]:
    """Return what sshd takes a root's configuration for, with keys of this test's."""
    for kind in ("rsa", "ed25519"):
        if not (directory / f"ssh_host_{kind}_key").exists():
            sh("ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(directory / f"ssh_host_{kind}_key"))
    for path in [root / "etc/ssh/sshd_config", *(root / "etc/ssh").glob("sshd_config.d/*.conf")]:
        text = path.read_text().replace("/etc/ssh/ssh_host", f"{directory}/ssh_host")
        copy = directory / "copy" / path.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text.replace("/etc/ssh/sshd_config.d/", f"{directory}/copy/"))
    argv = [
        "/usr/sbin/sshd",
        "-T",
        "-C",
        f"user={user},host=h,addr=192.0.2.1",
        "-f",
        str(directory / "copy/sshd_config"),
    ]
    sh("mkdir", "-p", "/run/sshd")
    found: dict[str, list[str]] = {}
    for line in sh(*argv).stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def test_an_sshd_that_lets_vmm_in_is_left_as_it_is(root: Root) -> None:
    text = "Include /etc/ssh/sshd_config.d/*.conf\n#PermitRootLogin no\nUsePAM yes\nX11Forwarding yes\n"
    root.write("etc/ssh/sshd_config", text).write("etc/ssh/sshd_config.d/00-vmm.conf", "of before\n").boot()
    assert root.read("etc/ssh/sshd_config") == text
    assert not (root / "etc/ssh/sshd_config.d/00-vmm.conf").exists()
    assert root.said == []


# /etc/fstab


FSTAB = """# <file system> <mount point>
UUID=11111111-2222-3333-4444-555555555555 / xfs subvol=@,ro 0 1
UUID=DEAD-BEEF /boot/efi vfat umask=0077 0 1
LABEL=swap none swap sw 0 0
/dev/sda5 /data ext4 defaults 0 2
share /share virtiofs defaults 0 0
/dev/sdb1 /media auto noauto 0 0
/dev/sdc1 /other auto nofail 0 0
tmpfs /tmp tmpfs nosuid 0 0
192.0.2.1:/x /nfs nfs defaults 0 0
LABEL=mine /mine ext4 defaults 0 2"""


def test_an_fstab_that_names_what_is_not_there(root: Root, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    sh("mke2fs", "-q", "-t", "ext4", "-L", "mine", "-U", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", str(disk), "8M")
    root.write("etc/fstab", FSTAB)
    (root / "disk").write_bytes(disk.read_bytes())
    root.boot(disk="/disk")
    held = "nofail,x-systemd.device-timeout=1s 0 0"
    assert root.read("etc/fstab").splitlines() == [
        "# <file system> <mount point>",
        "/disk / ext4 defaults 0 1",
        f"UUID=DEAD-BEEF /boot/efi vfat umask=0077,{held}",
        f"LABEL=swap none swap sw,{held}",
        f"/dev/sda5 /data ext4 defaults,{held}",
        f"share /share virtiofs defaults,{held}",
        *FSTAB.splitlines()[6:],
    ]
    (said,) = root.said
    assert "UUID=DEAD-BEEF" in said
    root.boot(disk="/disk")
    assert root.said == []


def test_an_fstab_of_the_root_itself_is_left(root: Root, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    sh("mke2fs", "-q", "-t", "ext4", "-U", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", str(disk), "8M")
    (root / "disk").write_bytes(disk.read_bytes())
    text = "UUID=AAAAAAAA-bbbb-cccc-dddd-eeeeeeeeeeee / ext4 errors=remount-ro 0 1\n"
    root.write("etc/fstab", text).boot(disk="/disk")
    assert root.read("etc/fstab") == text


def test_a_step_that_takes_too_long_is_ended_and_said(root: Root) -> None:
    """And stage-1's first part hears of the end of all: it ended with the step, and PID 1 waited to its limit."""
    root.boot(hang="forget_container", timeout=15)
    assert root.said == ["vmm: forget_container took too long and was ended"]
    assert root.read("etc/hostname") == "dev\n"
    assert root.read("root/.ssh/authorized_keys") == f"{KEY}\n"


@pytest.mark.parametrize(
    ("program", "stays"),
    [("usr/lib/systemd/systemd", "yes"), ("usr/local/bin/begin", "yes"), ("usr/sbin/openrc-init", "no")],
)
def test_only_systemds_programs_find_what_says_that_it_runs(root: Root, program: str, stays: str) -> None:
    """Debian's init scripts ask systemd to start what they are to start where /run/systemd/system is (sd_booted(3))."""
    root.write(program, "#!/bin/sh\nexec systemd\n" if "local" in program else "\x7fELF", 0o755)
    (root / "sbin").mkdir()
    (root / "sbin/init").symlink_to(f"/{program}")
    root.boot("[ -d /run/systemd/system ] && echo yes || echo no")
    assert root.found == stays
