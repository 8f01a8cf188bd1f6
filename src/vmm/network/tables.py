"""The text of vmm's nftables tables. What the rules promise is said in `firewall`.

What is decided is decided where a packet comes in (`guard`), and marked: the routing rules of `policy` let nothing from
a machine, and nothing for one, go on without that mark. So a ruleset that someone flushes closes, and opens nothing.
"""

from __future__ import annotations

import re
from zlib import crc32

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.model.network import Subnet

# Two bits of a packet's mark that few others use; others' bits are left alone.
VETTED = 0x10000000  # by `guard`: it may be routed
PASSED = 0x20000000  # by `forward`: it may go on, whatever other firewalls do with what they do not know

# Where clouds answer their machines with secrets. Each is closed to guests; port 53 of those that are the host's own
# resolvers as well stays open.
METADATA = (
    # Link-local (RFC 3927): AWS, Google, Azure, Oracle, OpenStack, DigitalOcean, Hetzner, Scaleway, Tencent and most.
    "169.254.0.0/16",
    # Azure's WireServer: learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    "168.63.129.16",
    # Alibaba Cloud: alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata
    "100.100.100.200",
)

# nft(8), of the family ip.
_PRIORITIES = {"": 0, "filter": 0, "dstnat": -100, "srcnat": 100}
# Of a chain its type, hook, priority and policy; nothing of one that is only jumped to.
Hook = tuple["str | int", ...]

_STAMP = "is_this"
_DNS = "ip daddr @resolvers meta l4proto { tcp, udp } th dport 53"

_TABLES = """
add table ip vmm
delete table ip vmm
add table bridge vmm
delete table bridge vmm
table ip vmm {{
  chain {owner} {{
  }}
  # Only these very rules have a set of this name: what is added on the condition that they stand, is added to it too.
  set {stamp} {{ type mark; elements = {{ 0 }}; }}
  set machines {{ type ipv4_addr; }}
  set own {{ type ipv4_addr . ipv4_addr; }}
  set uplinks {{ type ifname; }}
  set resolvers {{ type ipv4_addr; }}
  set flows {{ type ipv4_addr; size 65535; flags dynamic; }}
  map ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map ports_at {{ type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }}
  chain forwards {{
    meta l4proto {{ tcp, udp }} fib daddr type local dnat ip to meta l4proto . ip daddr . th dport map @ports_at
    meta l4proto {{ tcp, udp }} fib daddr type local dnat ip to meta l4proto . th dport map @ports
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname != "{bridge}" jump forwards
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump forwards
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != {{ "lo", "{bridge}" }} masquerade
    ip saddr 127.0.0.0/8 oifname "{bridge}" masquerade
  }}
  # What was not masqueraded (someone turned off tracking for it) does not leave at all.
  chain outside {{
    type filter hook postrouting priority srcnat + 50; policy accept;
    ip saddr {subnet} oifname != {{ "lo", "{bridge}" }} drop
  }}
  # Behind dstnat: what others have redirected is seen here.
  chain guard {{
    type filter hook prerouting priority -50; policy accept;
    iifname "{bridge}" goto from_machines
    iifname "{taps}" drop
    ip daddr {subnet} ct state established,related goto vetted
    ip daddr {subnet} ct status dnat goto vetted
  }}
  chain from_machines {{
    ip saddr != @machines drop
    ct state invalid drop
    icmp type redirect drop
    ct state related ip saddr . ct original ip saddr != @own ip saddr . ct reply ip saddr != @own drop
    ct direction original ct status dnat drop
    ct state new add @flows {{ ip saddr ct count over {connections} }} drop
    fib daddr type local goto to_host
    fib daddr type != unicast drop
    {dns} goto vetted
    ip daddr {{ {closed} }} drop
    ip daddr {subnet} drop
    goto vetted
  }}
  chain to_host {{
    ct direction reply ct state established,related goto vetted
    icmp type echo-request goto vetted
    {dns} goto vetted
    drop
  }}
  chain vetted {{
    meta mark set meta mark | {vetted:#x} accept
  }}
  # Before iptables' own: its chains are told by the mark what may pass.
  chain forward {{
    type filter hook forward priority filter - 5; policy accept;
    iifname "{bridge}" tcp flags & syn == syn tcp option maxseg size set rt mtu
    oifname "{bridge}" tcp flags & syn == syn tcp option maxseg size set rt mtu
    iifname "{bridge}" goto leaving
    oifname "{bridge}" goto entering
    iifname "{taps}" drop
    oifname "{taps}" drop
  }}
  chain leaving {{
    meta mark & {vetted:#x} == 0 drop
    ip saddr != @machines drop
    oifname "{bridge}" drop
    {dns} goto passed
    ip daddr {{ {closed} }} drop
    ct direction reply ct state established,related goto passed
    oifname @uplinks goto passed
    {allowed}
    reject with icmp type admin-prohibited
  }}
  chain entering {{
    meta mark & {vetted:#x} == 0 drop
    ct state established,related goto passed
    ct status dnat goto passed
    drop
  }}
  chain passed {{
    meta mark set meta mark | {passed:#x} accept
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{bridge}" ip saddr != @machines drop
    iifname "{bridge}" meta mark & {vetted:#x} == 0 drop
    iifname "{bridge}" ct direction reply ct state established,related accept
    iifname "{bridge}" icmp type echo-request accept
    iifname "{bridge}" {dns} accept
    iifname "{bridge}" drop
    iifname "{taps}" drop
  }}
}}
table bridge vmm {{
  chain {owner} {{
  }}
  set senders {{ type ifname . ether_addr . ipv4_addr; }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname != "{taps}" accept
    ether type ip iifname . ether saddr . ip saddr @senders accept
    iifname . ether saddr . arp saddr ip @senders iifname . arp saddr ether . arp saddr ip @senders goto asking
    drop
  }}
  # To answer, the host looks whether the address in question is routed to itself: by the same routing rules.
  chain asking {{
    meta mark set meta mark | {vetted:#x} accept
  }}
  # Frames for 802.1D's group addresses that a bridge cannot forward (LACP) go to the host past the chain above: as the
  # tap's own traffic, which no rule for the bridge's would meet, and with their sender learned.
  chain input {{
    type filter hook input priority -300; policy accept;
    iifname "{taps}" ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop
  }}
}}
"""

# IPv6 is none of the machines': wherever their taps hang, and whoever switches it on there.
_TABLES_6 = """
add table ip6 vmm
delete table ip6 vmm
table ip6 vmm {{
  chain {owner} {{
  }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname "{taps}" drop
    iifname "{bridge}" drop
  }}
}}
"""


def rendered(*, owner: str, bridge: str, subnet: Subnet, allowed: Sequence[str], connections: int, ipv6: bool) -> str:
    """Return the commands that put the tables there anew, without elements. `allowed` are networks (CIDR)."""
    text = _TABLES + (_TABLES_6 if ipv6 else "")
    text = text.format(
        stamp=_STAMP,
        owner=owner,
        bridge=bridge,
        subnet=subnet.cidr,
        taps=tap_pattern(subnet),
        allowed=f"ip daddr {{ {', '.join(allowed)} }} goto passed" if allowed else "",
        closed=", ".join(METADATA),
        connections=connections,
        dns=_DNS,
        vetted=VETTED,
        passed=PASSED,
    )
    return text.replace(_STAMP, stamp(text))


def stamp(text: str) -> str:
    """Return the name of the set that tells these tables from those of another configuration, or of another release."""
    found = re.search(r"set (is_[0-9a-f]{8}) ", text)
    return found[1] if found else f"is_{crc32(text.encode()):08x}"


def removal(*, ipv6: bool) -> str:
    families = ("ip", "bridge", "ip6") if ipv6 else ("ip", "bridge")
    return "".join(f"add table {family} vmm\ndelete table {family} vmm\n" for family in families)


def is_ours(family: str, table: str) -> bool:
    """Whether a table is one of vmm's, by its name."""
    return table == "vmm" and family in ("ip", "bridge", "ip6")


def tap_pattern(subnet: Subnet) -> str:
    """Return nft's pattern of the taps of this subnet's machines, whose names are their addresses in hexadecimal."""
    octets = subnet.cidr.split(".")[: subnet.prefix_length // 8]
    return "vmm-" + "".join(f"{int(octet):02x}" for octet in octets) + "*"


def rule_counts(tables: str) -> dict[tuple[str, str], int]:
    """Return how many rules each chain has, by (family, chain): counted in what `rendered` gave."""
    counts: dict[tuple[str, str], int] = {}
    family = chain = ""
    for line in tables.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            family = words[1]
        elif words[:1] == ["chain"] and not words[1].startswith("of_"):
            chain = words[1]
            counts[family, chain] = 0
        elif words == ["}"]:
            chain = ""
        elif chain and words and words[0] not in ("type", "#"):
            counts[family, chain] += 1
    return counts


def hooks(tables: str) -> dict[tuple[str, str], Hook]:
    """Return where each chain hangs, by (family, chain): read in what `rendered` gave."""
    found: dict[tuple[str, str], Hook] = {}
    family = chain = ""
    for words in (line.split() for line in tables.splitlines()):
        match words:
            case ["table", family, *_]:
                pass
            case ["chain", chain, *_] if not chain.startswith("of_"):
                found[family, chain] = ()
            case ["type", kind, "hook", hook, "priority", *priority, "policy", policy]:
                found[family, chain] = (kind, hook, _priority("".join(priority)), policy.rstrip(";"))
            case _:
                pass
    return found


def _priority(text: str) -> int:
    name, number = re.fullmatch(r"([a-z]*)([+-]?[0-9]*);", text, re.ASCII).groups()  # pyright: ignore[reportOptionalMemberAccess]  # our own text
    return _PRIORITIES[name] + int(number or 0)
