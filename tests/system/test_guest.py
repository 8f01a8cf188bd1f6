"""A real guest with a real user space, on the qemu engine: everything that a user does with a machine."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import METADATA, OUTSIDE_HOST, OUTSIDE_WORLD, Host, serving, sh, the_world, wait_for

pytestmark = pytest.mark.system

# Serves HTTP on every port given, and says which port it was.
WEB = """
import http.server, sys, threading
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{WORD} port {self.server.server_address[1]} to {self.client_address[0]}\\n".encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
WORD = sys.argv[1]
servers = [http.server.ThreadingHTTPServer(("0.0.0.0", int(p)), Answer) for p in sys.argv[2:]]
for s in servers[1:]: threading.Thread(target=s.serve_forever, daemon=True).start()
print("ready", flush=True)
servers[0].serve_forever()
"""

# What listens inside the guest, which has no Python: systemd starts a shell for each connection.
INSIDE = r"""
printf '#!/bin/sh\nsed "/^.$/q" >/dev/null\nprintf "HTTP/1.0 200 OK\\r\\n\\r\\n"\necho from inside\n' >/usr/local/bin/web
chmod +x /usr/local/bin/web
for port in 80 443; do
printf "[Socket]\nListenStream=$port\nAccept=yes\n[Install]\nWantedBy=sockets.target\n" >/etc/systemd/system/web$port.socket
printf '[Service]\nStandardInput=socket\nExecStart=/usr/local/bin/web\n' >/etc/systemd/system/web$port@.service
systemctl -q enable --now web$port.socket
done
printf '#!/bin/sh\nread -r line; echo "udp: $line"\n' >/usr/local/bin/echo-udp
"""


@pytest.fixture(scope="module")
def world(shared_host: Host) -> Iterator[str]:
    with the_world(shared_host) as name:
        yield name


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "id"
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a user's own", "-f", str(path))
    return path


@pytest.fixture(scope="module")
def dev(shared_host: Host, world: str, key: Path) -> Host:
    """A host with the machine `dev` running: a disk larger than the image, a key of the user's, a resolver."""
    created = shared_host.vmm(
        "create", "dev", "--cpus", "2", "--disk", "1536", "--ssh-key", f"{key}.pub", "--dns", "192.0.2.53",
        "--label", "project=web", "--engine", "qemu",
    )  # fmt: skip
    assert "172.16.0.2" in created.stdout
    started = shared_host.vmm("start", "dev", "--wait", "ssh")
    assert "running at 172.16.0.2" in started.stdout
    return shared_host


def curl(namespace: str, url: str, *, timeout: float = 15) -> str:
    argv = ["ip", "netns", "exec", namespace, "curl", "-sf", "--max-time", "5", url]
    deadline = time.monotonic() + timeout
    while True:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode == 0 or time.monotonic() > deadline:
            return done.stdout
        time.sleep(0.2)


def test_the_facts_are_applied_inside_the_guest(dev: Host) -> None:
    assert dev.guest("dev", "hostname; cat /etc/hostname") == "dev\ndev"
    assert dev.guest("dev", "cat /etc/resolv.conf") == "nameserver 192.0.2.53"
    assert dev.guest("dev", "cat /proc/1/comm") == "systemd"
    assert dev.guest("dev", "cat /etc/machine-id") == dev.machine("dev")["id"]
    assert "127.0.1.1 dev" in dev.guest("dev", "cat /etc/hosts")
    assert dev.guest("dev", "systemctl is-system-running --wait; systemctl --failed --no-legend") == "running"


def test_what_a_user_types_is_not_answered_by_a_mask(dev: Host) -> None:
    for command in ("loginctl --no-legend", "systemctl --user is-system-running", "systemctl --user list-units"):
        done = dev.vmm("exec", "dev", "--", "sh", "-c", f"{command} 2>&1", check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}"
        assert not re.search("masked|Failed|refused", done.stdout), f"{command}: {done.stdout}"


def test_the_root_has_grown(dev: Host) -> None:
    blocks = int(dev.guest("dev", "df --output=size -BM / | tail -1").rstrip("M"))
    assert 1400 < blocks <= 1536


def test_exit_codes_and_words_come_through(dev: Host) -> None:
    for way in ("exec", "ssh"):
        assert dev.vmm(way, "dev", "--", "sh", "-c", "exit 7", check=False).returncode == 7
        assert dev.vmm(way, "dev", "--", "exit 3", check=False).returncode == 3
        assert (
            dev.vmm(way, "dev", "--", "-oProxyCommand=touch /tmp/vmmtest-never", "true", check=False).returncode == 127
        )
    assert not Path("/tmp/vmmtest-never").exists()
    assert dev.vmm("exec", "dev", "--", "printf", "%s|", "a  b", "c'd", "$e").stdout == "a  b|c'd|$e|"
    assert dev.vmm("ssh", "dev", "--", "cat", stdin="from stdin").stdout == "from stdin"


@pytest.mark.fault(25)
def test_only_the_keys_that_were_given_open_it_and_the_host_key_is_checked(
    dev: Host, key: Path, tmp_path: Path
) -> None:
    keys = dev.guest("dev", "cat /root/.ssh/authorized_keys").splitlines()
    assert len(keys) == 2
    assert key.with_suffix(".pub").read_text().strip() in keys
    known = tmp_path / "known"
    directory = dev.data_dir / "vms" / "dev"
    assert (directory / "known_hosts").stat().st_mode & 0o777 == 0o644
    options = [
        "-F",
        "none",
        "-o",
        f"UserKnownHostsFile={known}",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
    ]
    alias = ["-o", f"HostKeyAlias={dev.machine('dev')['id']}"]
    argv = ["ssh", *options, *alias, "-i", str(key), "root@172.16.0.2", "true"]
    known.write_text((directory / "known_hosts").read_text())
    dev.run(*argv)
    # Another machine's key, or a man in the middle: refused.
    other = tmp_path / "other"
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other))
    known.write_text(f"{dev.machine('dev')['id']} {' '.join(other.with_suffix('.pub').read_text().split()[:2])}\n")
    refused = dev.run(*argv, check=False)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr


@contextlib.contextmanager
def an_impostor(host: Host, address: str, host_key: Path, directory: Path) -> Iterator[None]:
    """An ssh server on a machine's address, with any host key: the host itself takes the address for its own."""
    config = directory / "sshd_config"
    config.write_text(
        f"ListenAddress {address}\nHostKey {host_key}\nAuthorizedKeysFile {host.data_dir}/ssh/vmm_ed25519.pub\n"
        "PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\n"
    )
    host.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
    # It wants a directory in /run, which may be of its own.
    script = 'mount -t tmpfs vmmtest /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -e -f "$0"'
    server = [*host.prefix, "unshare", "-m", "sh", "-c", script, str(config)]
    try:
        with subprocess.Popen(server, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert "listening" in process.stderr.readline()
            try:
                yield
            finally:
                process.terminate()
    finally:
        host.run("ip", "addr", "del", f"{address}/32", "dev", "lo")


@pytest.mark.fault(25)
def test_another_host_key_on_a_machines_address_is_refused_and_a_reused_address_is_no_other_machine(
    tiny: Host, tmp_path: Path
) -> None:
    small = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")
    (tiny.data_dir / "ssh").mkdir(mode=0o700)
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tiny.data_dir / "ssh" / "vmm_ed25519"))
    home = tmp_path / "home"
    home.mkdir()
    done = tmp_path / "done"

    def run(name: str, key: Path) -> subprocess.CompletedProcess[str]:
        with an_impostor(tiny, tiny.machine(name)["ip_address"], key, tmp_path):
            return tiny.vmm("exec", name, "--", "touch", str(done), check=False, extra={"HOME": str(home)})

    def brought_up(name: str) -> Path:
        tiny.vmm("create", name, *small)
        tiny.vmm("start", name)
        assert tiny.machine(name)["ip_address"] == "172.16.0.2"
        return Path(shutil.copy(tiny.data_dir / "vms" / name / "ssh_host_ed25519_key", tmp_path / name))

    def is_served(name: str, key: Path) -> bool:
        ended = run(name, key)
        worked = done.exists()
        done.unlink(missing_ok=True)
        assert worked or "Host key verification failed" in ended.stderr
        assert ended.returncode == (0 if worked else 255)
        return worked

    old, other = brought_up("old"), tmp_path / "other"
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other))
    assert is_served("old", old)
    assert not is_served("old", other)
    tiny.vmm("delete", "-f", "old")
    new = brought_up("new")
    # The address is another machine's now, and the machine that had it is no one any more.
    assert is_served("new", new)
    assert not is_served("new", old)
    assert list(home.rglob("*")) == []


@pytest.mark.fault(24)
def test_secrets_are_no_ones_but_roots(dev: Host) -> None:
    directory = dev.data_dir / "vms" / "dev"
    for name in ("disk.ext4", "initrd", "ssh_host_ed25519_key"):
        assert (directory / name).stat().st_mode & 0o077 == 0, name
    for path in (dev.data_dir / "ssh", dev.data_dir / "sockets"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (dev.data_dir / "ssh" / "vmm_ed25519").stat().st_mode & 0o777 == 0o600
    assert (dev.data_dir / "sockets" / "dev.sock").stat().st_mode & 0o077 == 0
    assert (dev.data_dir / "logs" / "dev.console").stat().st_mode & 0o077 == 0


def test_any_user_may_list_and_show(dev: Host) -> None:
    for parent in [dev.data_dir, *dev.data_dir.parents[:3]]:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    argv = [*dev.prefix, *nobody, sys.executable, "-m", "vmm", "list", "--output", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=dev.environment)
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.fail(f"this checkout cannot be read by other users: {done.stderr}")
    (machine,) = json.loads(done.stdout)
    assert (machine["name"], machine["state"]) == ("dev", "running")
    refused = subprocess.run(
        [*argv[:-3], "stop", "dev"], capture_output=True, text=True, check=False, env=dev.environment
    )
    assert refused.returncode == 1
    assert "needs root" in refused.stderr


def test_the_world_is_reached_masqueraded(dev: Host, world: str) -> None:
    with serving(world, "-c", WEB, "world", "80"):
        said = dev.guest("dev", f"curl -sf --max-time 10 http://{OUTSIDE_WORLD}/")
    assert said == f"world port 80 to {OUTSIDE_HOST}"


def test_forwards_work_from_outside_and_from_localhost(dev: Host, world: str) -> None:
    dev.guest("dev", INSIDE)
    dev.vmm("port-forward", "add", "dev", "8080:80")
    dev.vmm("port-forward", "dev", "127.0.0.1:8081:80")  # the older form
    assert curl(world, f"http://{OUTSIDE_HOST}:8080/") == "from inside\n"
    assert curl(dev.namespace, "http://127.0.0.1:8080/") == "from inside\n"
    assert curl(dev.namespace, f"http://{OUTSIDE_HOST}:8080/") == "from inside\n"
    assert curl(dev.namespace, "http://127.0.0.1:8081/") == "from inside\n"
    assert curl(world, f"http://{OUTSIDE_HOST}:8081/", timeout=1) == ""
    listed = dev.json("port-forward", "list", "dev")
    assert [(row["host_address"], row["host_port"], row["guest_port"]) for row in listed] == [
        ("0.0.0.0", 8080, 80),
        ("127.0.0.1", 8081, 80),
    ]
    dev.vmm("port-forward", "remove", "dev", "127.0.0.1:8081:80")
    assert curl(dev.namespace, "http://127.0.0.1:8081/", timeout=1) == ""


def test_udp_is_forwarded(dev: Host, world: str) -> None:
    dev.vmm("port-forward", "add", "dev", "5353:53/udp")
    # The guest answers with a port-unreachable, which proves that the datagram reached it, and came back translated.
    probe = (
        "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5);"
        f"s.connect(('{OUTSIDE_HOST}', 5353)); s.send(b'x')\n"
        "try: s.recv(9)\nexcept ConnectionRefusedError: print('refused by the guest')\nexcept TimeoutError: print('lost')"
    )
    said = sh("ip", "netns", "exec", world, sys.executable, "-c", probe).stdout.strip()
    assert said == "refused by the guest"


def test_forwarding_443_leaves_the_machines_own_https_alone(dev: Host, world: str) -> None:
    dev.vmm("port-forward", "add", "dev", "443:443")
    with serving(world, "-c", WEB, "world", "443"):
        assert dev.guest("dev", f"curl -sf --max-time 10 http://{OUTSIDE_WORLD}:443/").startswith("world port 443")
    assert curl(world, f"http://{OUTSIDE_HOST}:443/") == "from inside\n"


@pytest.mark.fault(6)
def test_the_host_and_its_cloud_are_out_of_the_guests_reach(dev: Host, world: str) -> None:
    with serving(dev.namespace, "-c", WEB, "host", "9099"), serving(world, "-c", WEB, "cloud", "80"):
        assert curl(dev.namespace, f"http://{METADATA}/").startswith("cloud")
        for target in ("172.16.0.1:9099", f"{OUTSIDE_HOST}:9099", f"{METADATA}:80"):
            code = dev.guest("dev", f"curl -s --max-time 2 http://{target}/ >/dev/null; echo $?")
            assert code == "28", target  # timed out: dropped
    assert dev.guest("dev", "ping -c1 -W2 172.16.0.1 >/dev/null; echo $?") == "0"


@pytest.mark.fault(41)
def test_while_the_rules_are_gone_a_guest_finds_nothing_open_and_all_is_back_afterwards(dev: Host, world: str) -> None:
    """Whoever flushes the ruleset cuts machines off as well: so the guest tries by itself, and is asked afterwards."""
    targets = ("172.16.0.1:9099", f"{OUTSIDE_HOST}:9099", f"{METADATA}:80")
    tries = "; ".join(f"curl -s -m 1 http://{target}/" for target in targets)
    probe = f"while [ ! -e /root/enough ]; do {tries}; echo tried; done >/root/heard 2>&1"
    (supervisor,) = dev.supervisors()
    with serving(dev.namespace, "-c", WEB, "host", "9099"), serving(world, "-c", WEB, "cloud", "80"):
        os.kill(supervisor, signal.SIGSTOP)
        try:
            dev.guest("dev", f"nohup sh -c '{probe}' </dev/null >/dev/null 2>&1 &")
            dev.run("nft", "flush", "ruleset")
            time.sleep(8)
        finally:
            os.kill(supervisor, signal.SIGCONT)
        wait_for(lambda: "chain guard" in dev.run("nft", "list", "ruleset").stdout, what="the rules")
        heard = dev.guest("dev", "touch /root/enough; cat /root/heard").splitlines()
        # The web server of the world is reached again.
        assert dev.guest("dev", f"curl -sf --retry 5 --retry-connrefused http://{OUTSIDE_WORLD}/").startswith("cloud")
    assert set(heard) == {"tried"}


@pytest.mark.fault(36)
def test_one_small_process_of_vmms_stays_and_none_is_started_to_list(dev: Host) -> None:
    engines = [line for line in dev.processes() if "qemu-system" in line]
    others = [line for line in dev.processes() if line not in engines]
    assert len(engines) == 1
    assert len(others) == 1
    assert others[0].split()[-1] == "supervise"
    traced = dev.run(
        "strace", "-f", "-qq", "-e", "trace=execve,socket", sys.executable, "-m", "vmm", "list", env=dev.environment
    )
    assert traced.stderr.count("execve(") == 1
    assert "AF_UNIX" not in traced.stderr


@pytest.mark.fault(34)
def test_a_guest_cannot_make_the_host_write_anywhere(dev: Host, tmp_path: Path) -> None:
    """The original's worst hole: the host wrote keys and resolv.conf through links that the guest had made."""
    bait = tmp_path / "bait"
    bait.mkdir()
    (bait / "authorized_keys").write_text("untouched\n")
    (bait / "resolv.conf").write_text("untouched\n")
    dev.guest(
        "dev",
        f"mv /root/.ssh /root/.ssh-away && ln -s {bait} /root/.ssh && ln -sf {bait}/resolv.conf /etc/resolv.conf"
        # It cannot be asked over ssh any more: it goes down by itself.
        f" && echo kept > /root/note && systemctl --no-block poweroff",
    )
    wait_for(lambda: dev.machine("dev")["state"] == "stopped", what="the power-off")
    traced = tmp_path / "trace"
    console = dev.data_dir / "logs" / "dev.console"
    argv = [*dev.prefix, "strace", "-I", "1", "-f", "-qq", "-e", "trace=mount,open_by_handle_at", "-o", str(traced)]
    # strace stays as long as the engine does; it goes when the guest has been through all of stage-1.
    tracer = subprocess.Popen([*argv, sys.executable, "-m", "vmm", "start", "dev"], env=dev.environment)
    wait_for(lambda: "leads elsewhere" in console.read_text(errors="replace"), what="stage-1's word")
    tracer.terminate()
    tracer.wait()
    assert dev.machine("dev")["state"] == "running"
    assert [line for line in traced.read_text().splitlines() if "mount(" in line] == []
    dev.vmm("stop", "dev", "--force")
    assert (bait / "authorized_keys").read_text() == "untouched\n"
    assert (bait / "resolv.conf").read_text() == "untouched\n"
    # The user mends it from outside, offline, with the file system's own tool; vmm never does.
    disk = str(dev.data_dir / "vms" / "dev" / "disk.ext4")
    sh("e2fsck", "-fy", disk, check=False)
    sh("debugfs", "-w", "-R", "rm /root/.ssh", disk)
    sh("e2fsck", "-fy", disk, check=False)


def test_all_is_back_after_a_stop_and_a_start(dev: Host, world: str, key: Path) -> None:
    dev.vmm("set", "dev", "--disk", "2G", "--memory", "640")
    dev.vmm("start", "dev", "--wait", "ssh")
    # A disk that was made larger meanwhile has grown.
    assert 1900 < int(dev.guest("dev", "df --output=size -BM / | tail -1").rstrip("M")) <= 2048
    assert int(dev.guest("dev", "awk '/MemTotal/ {print $2}' /proc/meminfo")) > 550 * 1024
    assert dev.machine("dev")["ip_address"] == "172.16.0.2"
    assert dev.guest("dev", "cat /root/note") == "kept"
    assert len(dev.guest("dev", "cat /root/.ssh/authorized_keys").splitlines()) == 2
    assert not re.search(r"^l", dev.guest("dev", "ls -l /etc/resolv.conf"))
    assert curl(world, f"http://{OUTSIDE_HOST}:8080/") == "from inside\n"
    assert curl(dev.namespace, "http://127.0.0.1:8080/") == "from inside\n"
    assert dev.vmm("console", "dev", "--full").stdout.count("=== vmm: dev boots at") == 3


def test_starting_what_runs_and_stopping_what_stands_is_no_error(dev: Host) -> None:
    assert "runs already" in dev.vmm("start", "dev").stdout
    assert "is running" not in dev.vmm("start", "dev").stdout


def test_a_guests_own_power_off_is_a_stop(dev: Host) -> None:
    said = dev.vmm("exec", "dev", "--", "sh", "-c", "poweroff 2>&1", check=False).stdout
    assert not re.search("masked|Failed", said), said
    wait_for(lambda: dev.machine("dev")["state"] == "stopped", what="the power-off")
    assert dev.machine("dev")["reason"] == "the guest powered off"
    assert "does not run" in dev.vmm("stop", "dev").stdout


def test_a_guest_that_is_still_booting_is_asked_until_it_hears(dev: Host) -> None:
    dev.vmm("start", "dev")
    assert "shut down by the guest" in dev.vmm("stop", "dev").stdout


def test_run_makes_a_machine_for_one_command_and_removes_it(shared_host: Host) -> None:
    words = ("sh", "-c", 'uname -s; echo "$0" >&2; exit 5', "a  b")
    done = shared_host.vmm(
        "run", "--rm", "--user", "root", "--cpus", "2", "--engine", "qemu", "--", *words, check=False
    )
    assert "a  b\n" in done.stderr
    assert done.returncode == 5, done.stderr
    assert done.stdout.strip() == "Linux"
    assert [row["name"] for row in shared_host.json("list")] in (["dev"], [])


@pytest.mark.fault(16)
def test_a_data_directory_with_every_awkward_character(shared_host: Host, tmp_path: Path) -> None:
    """Commas, equals signs, colons and blanks mean something to qemu's option lists, ssh's options and shells."""
    awkward = Host(namespace=shared_host.namespace, data_dir=tmp_path / "a, b=c:d 'e'")
    awkward.data_dir.mkdir()
    for part in ("bin", "images"):
        (awkward.data_dir / part).symlink_to(shared_host.data_dir / part)
    # Another database gives the same addresses; theirs must not be running.
    shared_host.vmm("stop", "--all")
    shared_host.vmm("teardown")
    awkward.vmm("create", "m", "--engine", "qemu", "--cpus", "2")
    awkward.vmm("start", "m", "--wait", "ssh")
    assert awkward.machine("m")["state"] == "running"
    assert awkward.guest("m", "hostname") == "m"
    assert awkward.vmm("start", "m").stdout.count("runs already") == 1
    assert "shut down by the guest" in awkward.vmm("stop", "m").stdout
    assert (awkward.data_dir / "logs" / "m.log").stat().st_mode & 0o077 == 0
    awkward.vmm("delete", "m")
    wait_for(lambda: awkward.processes() == [], what="the end of the supervisor")
    awkward.vmm("teardown")
