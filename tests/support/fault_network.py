"""Links, rules and routing rules of this process's network, asked for again only when the kernel has told of a change."""

import contextlib
import json
import socket
import subprocess
from dataclasses import dataclass, field

_NETLINK_NETFILTER = 12
# linux/rtnetlink.h, as masks; linux/netfilter/nfnetlink.h, as a number.
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_RULE = 0x1, 0x10, 0x80
_NFNLGRP_NFTABLES = 7
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1


class _Changes:
    """What the kernel tells of changes; `any` is whether there were some since it was asked last."""

    def __init__(self, family: int, *, mask: int = 0, group: int = 0) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, family
        )
        self._socket.bind((0, mask))
        if group:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        self._first = True

    def any(self) -> bool:
        found, self._first = self._first, False
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self._socket.recv(65536)
                except BlockingIOError:
                    raise
                except OSError:
                    # More than the socket could hold.
                    pass
                found = True
        return found


def _routing_rules() -> list[dict]:
    return json.loads(subprocess.check_output(["ip", "-j", "rule"]))


@dataclass
class Network:
    """To be made in the network that it is to watch."""

    _of_links: _Changes = field(
        default_factory=lambda: _Changes(socket.NETLINK_ROUTE, mask=_RTMGRP_LINK | _RTMGRP_IPV4_IFADDR)
    )
    _of_rules: _Changes = field(default_factory=lambda: _Changes(_NETLINK_NETFILTER, group=_NFNLGRP_NFTABLES))
    _of_routing: _Changes = field(default_factory=lambda: _Changes(socket.NETLINK_ROUTE, mask=_RTMGRP_IPV4_RULE))
    _links: dict[str, str] = field(default_factory=dict)
    _rules: str = ""
    _routing: list[dict] = field(default_factory=list)
    _routing_before: list[dict] = field(default_factory=_routing_rules)

    def links(self) -> dict[str, str]:
        """Return what every link but lo is: up, its address, its bridge, and whether it is isolated there."""
        if self._of_links.any():
            said = json.loads(subprocess.check_output(["ip", "-j", "-d", "address"]))
            self._links = {link["ifname"]: _link_words(link) for link in said if link["ifname"] != "lo"}
        return self._links

    def has_link(self, name: str) -> bool:
        return name in {link for _, link in socket.if_nameindex()}

    def rules(self) -> str:
        """Return the whole ruleset, in one order whatever the order of a set's elements in the kernel."""
        if self._of_rules.any():
            said = json.loads(subprocess.check_output(["nft", "-j", "list", "ruleset"]))
            self._rules = json.dumps(_plain_rules(said["nftables"]), sort_keys=True)
        return self._rules

    def routing(self) -> list[dict]:
        """Return the routing rules of IPv4, in their order."""
        if self._of_routing.any():
            self._routing = _routing_rules()
        return self._routing

    def put_routing_back(self) -> None:
        """Make the routing rules what they were before anything was tried."""
        if (now := self.routing()) == self._routing_before:
            return
        for priority in {str(rule["priority"]) for rule in now}:
            # One at a time, the first of them, until there is none.
            while not subprocess.run(
                ["ip", "rule", "del", "pref", priority], capture_output=True, check=False
            ).returncode:
                pass
        for rule in self._routing_before:
            words = ("pref", str(rule["priority"]), "lookup", rule["table"], "protocol", "kernel")
            subprocess.run(["ip", "rule", "add", *words], check=True)
        assert self.routing() == self._routing_before


def _link_words(link: dict) -> str:
    addresses = [f"{found['local']}/{found['prefixlen']}" for found in link["addr_info"] if found["family"] == "inet"]
    isolated = link.get("linkinfo", {}).get("info_slave_data", {}).get("isolated", False)
    kind = link.get("linkinfo", {}).get("info_kind", "")
    # A bridge's MAC is given to it, a tap's own is the kernel's choice.
    words = ["up" if "UP" in link["flags"] else "down", *addresses, *([link["address"]] if kind == "bridge" else [])]
    return " ".join(
        [*words, *([f"on {link['master']}"] if "master" in link else []), *(["isolated"] if isolated else [])]
    )


def _plain_rules(value):
    """Return nft's JSON without handles and counters, a set's elements sorted."""
    if isinstance(value, dict):
        plain = {key: _plain_rules(item) for key, item in value.items() if key not in ("handle", "index", "metainfo")}
        if isinstance(plain.get("elem"), list):
            plain["elem"].sort(key=json.dumps)
        return plain
    return [_plain_rules(item) for item in value] if isinstance(value, list) else value
