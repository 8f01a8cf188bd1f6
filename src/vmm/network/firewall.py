"""The firewall: one nftables table `vmm` a family, rendered whole in one transaction, changed by elements only.

The cost of a start or stop so does not grow with the number of machines. What the rules promise:

- machines reach the world, masqueraded, and nothing reaches them but answers and forwards;
- a machine reaches no other machine: its bridge port is isolated, and what goes round over the gateway is dropped;
- a machine reaches no port of the host (it may ping it), and no cloud metadata (169.254.0.0/16);
- a machine sends with its own MAC and address, and nothing but IPv4 and ARP;
- a forward takes only what is addressed to the host itself: forwarding port 443 leaves the machines' own HTTPS alone;
- a forward is for the world and the host: a machine reaches no other machine's published port.
"""

from __future__ import annotations

import _thread
import re

from vmm import TYPE_CHECKING
from vmm.errors import HostError, NetworkError
from vmm.host import process
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vmm.model.network import Lease, PortForward, Subnet

_ANY = "0.0.0.0"  # noqa: S104  # how forwards write "every address of the host"
_COMMENT = "vmm"

_TABLES = """
add table ip vmm
delete table ip vmm
add table bridge vmm
delete table bridge vmm
table ip vmm {{
  set machines {{ type ipv4_addr; }}
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
    ip saddr {subnet} oifname {out} masquerade
    ip saddr 127.0.0.0/8 oifname "{bridge}" masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{bridge}" ip saddr != @machines drop
    iifname "{bridge}" oifname "{bridge}" drop
    iifname "{bridge}" ip daddr 169.254.0.0/16 drop
    iifname "{bridge}" accept
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" ct status dnat accept
    oifname "{bridge}" drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "vmm-*" iifname != "{bridge}" drop
    iifname "{bridge}" ip saddr != @machines drop
    iifname "{bridge}" ct state established,related accept
    iifname "{bridge}" icmp type echo-request accept
    iifname "{bridge}" drop
  }}
}}
table bridge vmm {{
  set senders {{ type ifname . ether_addr . ipv4_addr; }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname != "vmm-*" accept
    ether type ip iifname . ether saddr . ip saddr @senders accept
    iifname . ether saddr . arp saddr ip @senders iifname . arp saddr ether . arp saddr ip @senders accept
    drop
  }}
  # Frames for 802.1D's group addresses that a bridge cannot forward (LACP) go to the host past the chain above: as the
  # tap's own traffic, which no rule for the bridge's would meet, and with their sender learned.
  chain input {{
    type filter hook input priority -300; policy accept;
    iifname "vmm-*" ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop
  }}
}}
"""


class Firewall(Value):
    """The rules for one bridge and subnet; `host_interface` limits the way out to one interface."""

    bridge: str
    subnet: Subnet
    host_interface: str | None = None

    def replace(self, attached: Iterable[tuple[Lease, Sequence[PortForward]]]) -> None:
        """Replace the tables by what these machines need, in one transaction."""
        elements = [line for lease, forwards in attached for line in _elements("add", lease, forwards)]
        _nft(self._tables() + "\n".join(elements) + "\n")

    def exists(self) -> bool:
        """Whether a table of ours is there."""
        return process.run(["nft", "list", "table", "ip", "vmm"], check=False).code == 0

    def differences(self, attached: Iterable[tuple[Lease, Sequence[PortForward]]]) -> list[str]:
        """Return what of the tables is not as these machines need it, a sentence each."""
        from vmm.network import inspection

        names = (("ip", "machines"), ("ip", "ports"), ("ip", "ports_at"), ("bridge", "senders"))
        wanted: inspection.Elements = {name: set() for name in names}
        for lease, forwards in attached:
            wanted["ip", "machines"].add((lease.address,))
            wanted["bridge", "senders"].add((lease.tap, lease.mac, lease.address))
            for forward in forwards:
                target = (lease.address, str(forward.guest_port))
                if forward.host_address == _ANY:
                    wanted["ip", "ports"].add((forward.protocol.value, str(forward.host_port), *target))
                else:
                    key = (forward.protocol.value, forward.host_address, str(forward.host_port))
                    wanted["ip", "ports_at"].add((*key, *target))
        return inspection.differences(wanted, _rule_counts(), inspection.rules_of(self._tables()))

    def _tables(self) -> str:
        out = f'"{self.host_interface}"' if self.host_interface else f'!= "{self.bridge}"'
        return _TABLES.format(bridge=self.bridge, subnet=self.subnet.cidr, out=out)

    def begin_admit(self, lease: Lease, forwards: Sequence[PortForward]) -> Callable[[], bool]:
        """Begin to add one machine's elements, and return what waits for the end of it.

        That returns False when the tables are not there, or hold something else of that name.
        """
        try:
            begun = process.begin(["nft", "-f", "-"], stdin="\n".join(_elements("add", lease, forwards)) + "\n")
        except HostError as error:
            raise _no_nft(error) from error
        return lambda: begun.finish() == 0

    def dismiss(self, lease: Lease, forwards: Sequence[PortForward]) -> bool:
        """Remove one machine's elements; False when the tables are not there.

        nft refuses to delete what is not there; added in the same transaction it always is.
        """
        lines = (*_elements("add", lease, forwards), *_elements("delete", lease, forwards))
        return _worked_together("\n".join(lines))

    def open(self, lease: Lease, forward: PortForward) -> bool:
        return _nft_worked(_forward("add", lease, forward))

    def close(self, lease: Lease, forward: PortForward) -> bool:
        return _nft_worked(f"{_forward('add', lease, forward)}\n{_forward('delete', lease, forward)}")

    def remove(self) -> None:
        """Remove the tables, and what was put into others' chains."""
        _nft("add table ip vmm\ndelete table ip vmm\nadd table bridge vmm\ndelete table bridge vmm\n")
        for chain, rule in _iptables_rules():
            process.run(["iptables", "-w", "-D", chain, *rule], check=False)

    def accept_where_others_drop(self) -> None:
        """Let the machines' traffic pass where Docker, ufw or someone else made iptables' FORWARD policy drop.

        An accept in a table of ours cannot overrule another table's drop; so a rule of ours, marked by its comment,
        goes into their chain: into DOCKER-USER, which Docker keeps for this, or at the top of FORWARD.
        """
        chain, missing = self._missing_accepts()
        for rule in missing:
            marked = [*rule, "-m", "comment", "--comment", _COMMENT, "-j", "ACCEPT"]
            process.run(["iptables", "-w", "-I", chain, *marked])

    def is_dropped_by_others(self) -> bool:
        """Whether a chain of someone else's drops what machines send, and lacks the rule of ours that lets it pass."""
        return bool(self._missing_accepts()[1])

    def _missing_accepts(self) -> tuple[str, list[list[str]]]:
        """Return the chain that drops, and the rules of ours that it should have and has not."""
        listing = _iptables_listing()
        chain = "DOCKER-USER" if "-N DOCKER-USER" in listing else "FORWARD"
        if chain == "FORWARD" and "-P FORWARD DROP" not in listing:
            return chain, []
        present = [rule for where, rule in _iptables_rules(listing) if where == chain]
        wanted = [
            ["-o", self.bridge, "-m", "conntrack", "--ctstate", "DNAT,RELATED,ESTABLISHED"],
            ["-i", self.bridge],
        ]
        # Its direction and interface tell each of ours; iptables writes the rest its own way.
        return chain, [rule for rule in wanted if not any(set(rule[:2]) <= set(known) for known in present)]


def _rule_counts() -> dict[tuple[str, str], int]:
    """Return how many rules each chain of ours has, by (family, chain): counted in what they are rendered from."""
    counts: dict[tuple[str, str], int] = {}
    family = chain = ""
    for line in _TABLES.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            family = words[1]
        elif words[:1] == ["chain"]:
            chain = words[1]
            counts[family, chain] = 0
        elif words == ["}}"]:
            chain = ""
        elif chain and words and words[0] != "type":
            counts[family, chain] += 1
    return counts


def _elements(verb: str, lease: Lease, forwards: Sequence[PortForward]) -> list[str]:
    # One in each table: nothing is added where one of them is not there.
    sender = f"{verb} element bridge vmm senders {{ {lease.tap} . {lease.mac} . {lease.address} }}"
    machine = f"{verb} element ip vmm machines {{ {lease.address} }}"
    return [sender, machine, *(_forward(verb, lease, forward) for forward in forwards)]


def _forward(verb: str, lease: Lease, forward: PortForward) -> str:
    target = f"{lease.address} . {forward.guest_port}"
    if forward.host_address == _ANY:
        return f"{verb} element ip vmm ports {{ {forward.protocol} . {forward.host_port} : {target} }}"
    key = f"{forward.protocol} . {forward.host_address} . {forward.host_port}"
    return f"{verb} element ip vmm ports_at {{ {key} : {target} }}"


class _Wish:
    """Commands that one thread wants done; `worked` is None until they were tried."""

    def __init__(self, commands: str) -> None:
        self.commands = commands
        self.worked: bool | None = None


_turn = _thread.allocate_lock()
_waiting: list[_Wish] = []


def _worked_together(commands: str) -> bool:
    """Do what nft is given here; what other threads of this command want meanwhile is done by one nft for all of them.

    Fifty machines that are stopped at once would start it fifty times otherwise.
    """
    mine = _Wish(commands)
    _waiting.append(mine)
    with _turn:
        if mine.worked is None:
            count = len(_waiting)
            # Ours is not among them where another was interrupted while it did it for us.
            batch = [mine, *(wish for wish in _waiting[:count] if wish is not mine)]
            del _waiting[:count]
            worked = _nft_worked("\n".join(wish.commands for wish in batch))
            for wish in batch:
                # One that cannot be done keeps no other from it.
                wish.worked = worked or (len(batch) > 1 and _nft_worked(wish.commands))
        return mine.worked is True


def _nft_worked(commands: str) -> bool:
    return _run(commands, check=False) == 0


def _nft(commands: str) -> None:
    _run(commands, check=True)


def _run(commands: str, *, check: bool) -> int:
    try:
        done = process.run(["nft", "-f", "-"], stdin=commands + "\n", timeout_s=30, check=False)
    except HostError as error:
        raise _no_nft(error) from error
    if check and done.code != 0:
        raise NetworkError(
            "The firewall cannot be set.",
            details=done.words,
            resolution="Check that this kernel has nftables, with its bridge family: vmm doctor",
        )
    return done.code


def _no_nft(error: HostError) -> NetworkError:
    missing = isinstance(error.__cause__, FileNotFoundError)
    resolution = "sudo apt-get install nftables" if missing else error.resolution
    return NetworkError(error.brief, details=error.details, resolution=resolution)


def _iptables_listing() -> str:
    """Return the filter table as iptables -S writes it; empty where there is no iptables."""
    try:
        return process.run(["iptables", "-w", "-S"], check=False).stdout
    except HostError:
        return ""


def _iptables_rules(listing: str | None = None) -> list[tuple[str, list[str]]]:
    """Return (chain, rule) of the rules that carry our comment."""
    found: list[tuple[str, list[str]]] = []
    for line in (_iptables_listing() if listing is None else listing).splitlines():
        match = re.fullmatch(rf"-A (\S+) (.*--comment \"?{_COMMENT}\"? .*)", line)
        if match:
            found.append((match[1], match[2].replace('"', "").split()))
    return found
