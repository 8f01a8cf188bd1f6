"""Two guests made of nothing but their network cards, on one host's bridge, attached by vmm's own network."""

import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self

import frames
from frames import IPV4, Guest, echo, ethernet, inside, ipv4, is_echo_reply, mac, udp
from hosts import Host, serving, the_world

from vmm.app import open_site
from vmm.model.network import PortForward, lease_for
from vmm.network.host_network import HostNetwork

GATEWAY = "172.16.0.1"
GATEWAY_MAC = lease_for(IPv4Address(GATEWAY)).mac
_LISTEN = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(("::", 9099)); print("ready", flush=True)
while True:
    data, who = s.recvfrom(2048)
    print(who[0].removeprefix("::ffff:"), data.decode(), flush=True); s.sendto(b"answer", who)
"""


@dataclass
class Pair:
    host: Host
    one: Guest
    two: Guest

    @property
    def network(self) -> HostNetwork:
        return open_site(data_dir=self.host.data_dir).network

    def reconcile(self) -> None:
        self.network.reconcile([(guest.lease, ()) for guest in (self.one, self.two)])

    def knock(self, target: str, words: str, *, port: int = 9099, source: str = "", from_port: int = 1) -> None:
        """Have `one` send a datagram to an address, by way of its gateway."""
        lease = self.one.lease
        packet = ipv4(source or lease.address, target, 17, udp(from_port, port, words.encode()))
        self.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, packet))

    def reaches_gateway(self, number: int) -> bool:
        """Whether `one` gets an answer to an honest ping: what proves that frames pass at all."""
        lease = self.one.lease
        self.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, ipv4(lease.address, GATEWAY, 1, echo(number))))
        return self.one.until(lambda frame: is_echo_reply(frame, number), 1.0) is not None

    def hears(self, words: str, seconds: float = 3.0) -> bytes | None:
        """Return the datagram with these words that comes to `one`."""
        return self.one.until(lambda frame: frame[23] == 17 and frame.rstrip(b"\0").endswith(words.encode()), seconds)


@contextlib.contextmanager
def a_pair(host: Host, *forwards: PortForward) -> Iterator[Pair]:
    """Attach two guests, the first with these forwards."""
    leases = (lease_for(IPv4Address("172.16.0.2")), lease_for(IPv4Address("172.16.0.3")))
    held = {leases[0]: forwards, leases[1]: ()}
    with inside(host.namespace):
        network = open_site(data_dir=host.data_dir).network
        for lease in leases:
            with network.attaching(lease, held[lease]):
                pass
        # No database knows these two, so that the second's attaching could not keep the first in the rules.
        network.reconcile(list(held.items()))
        with Guest(leases[0]) as first, Guest(leases[1]) as second:
            yield Pair(host, first, second)
        for lease in leases:
            network.detach(lease, held[lease])


@contextlib.contextmanager
def the_world_of(pair: Pair) -> Iterator[str]:
    """Plug the host's cable in; its supervisor, which would see that, watches none of these machines."""
    with the_world(pair.host) as world:
        pair.network.renew_ways()
        yield world


class Ear:
    """A program that hears what comes to any address of its host, at port 9099."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def heard(self) -> list[str]:
        """Stop listening, and return who said what."""
        self._process.kill()
        assert self._process.stdout is not None
        return self._process.stdout.read().decode().splitlines()


@contextlib.contextmanager
def listening(namespace: str) -> Iterator[Ear]:
    with serving(namespace, "-c", _LISTEN) as process:
        yield Ear(process)


def overheard(guest: Guest, seconds: float) -> list[bytes]:
    """Return every frame of any kind that comes within `seconds`, but for the bridge's own IGMP."""
    found: list[bytes] = []
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([guest._fd], [], [], left)[0]:
            frame = os.read(guest._fd, 65536)[len(frames._VNET_HEADER) :]
            if not (frame.startswith(b"\x01\x00\x5e") and frame[6:12] == mac(GATEWAY_MAC)):
                found.append(frame)
    return found


class Outside:
    """A UDP socket in another namespace."""

    def __init__(self, namespace: str, port: int = 0) -> None:
        with inside(namespace):
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("", port))
        self.socket.settimeout(3)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, words: str, address: str, port: int) -> None:
        self.socket.sendto(words.encode(), (address, port))

    def hears(self) -> tuple[str, str]:
        """Return who said what; TimeoutError when nobody does."""
        data, who = self.socket.recvfrom(2048)
        return who[0], data.decode()
