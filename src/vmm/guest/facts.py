"""The facts of one machine, as files that stage-1 reads: never sourced, so that no value can become a command."""

from __future__ import annotations

from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.guest.cpio import Archive
from vmm.host import files
from vmm.host.reading import read_bytes
from vmm.model.network import Resolution
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

# A machine boots through the scripts of the vmm that starts it, whatever vmm made its kernel's stage-1: of two files of
# one name in an initramfs the later one counts.
_SCRIPTS = {"init": "stage1-init.sh", "facts": "stage1-facts.sh", "vmm-run/initramfs/shutdown": "stage1-shutdown.sh"}
# Programs that would ask a DHCP server for what stage-1 has configured, as units of systemd's.
_SKIPPED_UNITS = ("dhcpcd", "dhcpcd@eth0", "dhclient", "connman", "wicked")


# Stage-1 with every module that it may load; it is in the guest's memory while it boots.
_ARCHIVE_BYTES = 256 * 1024 * 1024


class Facts(Value):
    """What a machine must know of itself. `host_key` and `host_key_pub` are OpenSSH's own texts."""

    hostname: str
    machine_id: str
    mac: str
    address: str
    prefix_length: int
    gateway: str
    resolvers: tuple[str, ...]
    authorized_keys: tuple[str, ...]
    host_key: str
    host_key_pub: str
    grow: bool = False
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def facts_archive(facts: Facts) -> bytes:
    """Return the cpio archive that is appended to stage-1: one file a fact, under `vmm/`."""
    archive = Archive()
    archive.add_directory("vmm", mode=0o700)
    # One of the stage-1 that older releases made with a kernel has none.
    archive.add_directory("run")
    for name, content in facts_files(facts).items():
        archive.add_file(f"vmm/{name}", content, mode=0o600)
    for name, text in run_files(facts).items():
        archive.add_file(f"vmm-run/{name}", text.encode(), mode=0o600 if name.endswith(".nmconnection") else 0o644)
    for name, script in _SCRIPTS.items():
        archive.add_file(name, Path(__file__).with_name(script).read_bytes(), mode=0o755)
    return archive.to_bytes()


def facts_files(facts: Facts) -> dict[str, bytes]:
    """Return what stage-1 reads, by file name."""
    texts = {
        "hostname": _hostname(facts.hostname),
        "machine-id": facts.machine_id,
        "address": f"{facts.address}/{facts.prefix_length}",
        "gateway": facts.gateway,
        "resolv.conf": Resolution(servers=facts.resolvers, search=facts.search, options=facts.options).text,
        "authorized_keys": "\n".join(facts.authorized_keys),
        "ssh_host_ed25519_key": facts.host_key.rstrip("\n"),
        "ssh_host_ed25519_key.pub": facts.host_key_pub.rstrip("\n"),
    }
    files = {name: text.encode() + b"\n" for name, text in texts.items()}
    return {**files, "grow": b""} if facts.grow else files


def run_files(facts: Facts) -> dict[str, str]:
    """Return what keeps the image's own programs from asking a DHCP server, as files below the guest's /run.

    systemd.network(5), systemd.link(5): of all files the first by name counts, wherever it lies. ifup(8), busybox's and
    ifupdown-ng's: what their state says is up is not brought up again. nm-settings-keyfile(5).
    """
    address = f"{facts.address}/{facts.prefix_length}"
    match = ["[Match]", f"MACAddress={facts.mac}"]
    network = ["[Network]", f"Address={address}", f"Gateway={facts.gateway}", *(f"DNS={r}" for r in facts.resolvers),
               *([f"Domains={' '.join(facts.search)}"] if facts.search else []),
               "DHCP=no", "IPv6AcceptRA=no", "LinkLocalAddressing=no", "KeepConfiguration=yes"]  # fmt: skip
    # Whatever udev would call it: the device's name is one of the facts.
    link = ["[Link]", "NamePolicy=keep", "Name=eth0"]
    connection = ["[connection]", "id=vmm", "uuid=0be6ca70-6d0c-5e1c-a5a4-76d6d0000001", "type=ethernet",
                  "autoconnect-priority=999", "[ethernet]", f"mac-address={facts.mac}", "[ipv4]", "method=manual",
                  f"address1={address},{facts.gateway}"]  # fmt: skip
    if facts.resolvers:
        connection.append(f"dns={';'.join(facts.resolvers)};")
        connection += [f"dns-search={';'.join(facts.search)};"] if facts.search else []
    connection += ["[ipv6]", "method=disabled"]
    skipped = ["[Unit]", "ConditionPathExists=!/run/vmm/address"]
    texts = {
        "systemd/network/!vmm.network": [*match, *network],
        "systemd/network/!vmm.link": [*match, *link],
        "NetworkManager/system-connections/vmm.nmconnection": connection,
        "network/ifstate": ["eth0=eth0"],
        "network/ifstate.eth0": ["eth0"],
        "ifstate": ["eth0=eth0 1"],
        **{f"systemd/system/{unit}.service.d/vmm.conf": skipped for unit in _SKIPPED_UNITS},
    }
    return {name: "\n".join(lines) + "\n" for name, lines in texts.items()}


def write_initrd(out: Path, *, archives: Sequence[Path], facts: Facts) -> None:
    """Write a machine's initrd: the archives, one after another, and the facts behind them. It holds a private key."""
    parts = [read_bytes(path, most=_ARCHIVE_BYTES) for path in archives]
    # The kernel wants each archive to begin at a multiple of four bytes, and passes over zeros before it.
    padded = [part + b"\0" * (-len(part) % 4) for part in parts]
    files.write_atomic(out, b"".join([*padded, facts_archive(facts)]), mode=0o600, durable=False)


def _hostname(name: str) -> str:
    """Return a machine's name as a host name: letters, digits and '-' (RFC 1123), at most 63."""
    cleaned = "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in name)
    return cleaned[:63].strip("-") or "vmm"
