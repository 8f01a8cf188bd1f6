"""Raw Ethernet through a tap, as a guest that does not keep to the rules would send it."""

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Self

from vmm.model.network import Lease

_TUNSETIFF = 0x400454CA
_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
_VNET_HEADER = b"\0" * 10
_CLONE_NEWNET = 0x40000000
IPV4, ARP, VLAN, IPV6 = 0x0800, 0x0806, 0x8100, 0x86DD
BROADCAST = "ff:ff:ff:ff:ff:ff"


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Bring this thread into a network namespace for the block: sockets and taps opened in it are of there."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(fd: int) -> None:
        if libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        enter(there)
        yield
    finally:
        enter(own)
        os.close(own)
        os.close(there)


class Guest:
    """A guest made of nothing but its network card."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("=16sH22x", lease.tap.encode(), _TAP_NO_PI_VNET_HDR))

    def __enter__(self) -> Self:
        """Wait until the bridge forwards for this port, a moment after its carrier came; a real guest would ask again."""
        deadline = time.monotonic() + 5
        argv = ["bridge", "link", "show", "dev", self.lease.tap]
        while "state forwarding" not in subprocess.run(argv, capture_output=True, text=True, check=True).stdout:
            assert time.monotonic() < deadline, f"{self.lease.tap} does not forward"
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def send(self, frame: bytes) -> None:
        os.write(self._fd, _VNET_HEADER + frame)

    def received(self, seconds: float = 0.3) -> list[bytes]:
        """Return the IPv4 and ARP frames that come within `seconds`; a bridge's own IPv6 and IGMP chatter is left out."""
        found: list[bytes] = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._fd], [], [], left)[0]:
                frame = os.read(self._fd, 65536)[len(_VNET_HEADER) :]
                multicast = frame.startswith(b"\x01\x00\x5e")
                if struct.unpack_from("!H", frame, 12)[0] in (IPV4, ARP, VLAN) and not multicast:
                    found.append(frame)
        return found

    def until(self, wanted, seconds: float = 3.0) -> bytes | None:
        """Answer the ARP questions for this guest's own address, and return the first frame that `wanted` takes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for frame in self.received(0.05):
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == ip(self.lease.address):
                    asker, address = mac_text(frame[22:28]), socket.inet_ntoa(frame[28:32])
                    self.send(arp(self.lease.mac, self.lease.address, asker, address, reply=True))
                if wanted(frame):
                    return frame
        return None


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def mac_text(raw: bytes) -> str:
    return raw.hex(":")


def ip(text: str) -> bytes:
    return socket.inet_aton(text)


def ethernet(source: str, destination: str, kind: int, payload: bytes) -> bytes:
    return (mac(destination) + mac(source) + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def arp(
    sender_mac: str, sender: str, target_mac: str, target: str, *, reply: bool = False, source: str | None = None
) -> bytes:
    """An ARP question or answer; `source` is the frame's own MAC where it differs from the one in the message."""
    to = target_mac if reply else BROADCAST
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2 if reply else 1)
    body += mac(sender_mac) + ip(sender) + (mac(target_mac) if reply else b"\0" * 6) + ip(target)
    return ethernet(source or sender_mac, to, ARP, body)


def ipv4(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, ip(source), ip(destination))
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + payload


def echo(number: int) -> bytes:
    """An ICMP echo request."""
    body = struct.pack("!BBHHH", 8, 0, 0, number, 1) + b"vmm"
    return body[:2] + struct.pack("!H", _checksum(body)) + body[4:]


def udp(source_port: int, port: int, data: bytes) -> bytes:
    # A checksum of zero means none (RFC 768).
    return struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data


def is_echo_reply(frame: bytes, number: int) -> bool:
    return frame[12:14] == b"\x08\0" and frame[23] == 1 and frame[34] == 0 and frame[38:40] == struct.pack("!H", number)


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
