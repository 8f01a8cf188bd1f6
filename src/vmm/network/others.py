"""Other firewalls of this host: whether a chain of theirs drops what machines need, and the accept that mends it.

An accept in a table of ours cannot overrule another table's drop. Into the chains of iptables, of either variant, vmm
puts rules of its own, marked by their comment; where no accept of ours can help, the command that does is told.
"""

from __future__ import annotations

import shlex

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.host import process
from vmm.model.value import Value, replace
from vmm.network import accepts, glance, iptables_rules, nft_rules
from vmm.network.tables import PASSED, VETTED, is_ours
from vmm.network.verdicts import Chain, Fate, Packet, fate_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.network.verdicts import Chains

_NFT = ("nft", "-j", "list", "ruleset")
# Without the elements of sets, of which a blocklist may have a hundred thousand.
_NFT_TERSE = ("nft", "-j", "-t", "list", "ruleset")
# Chains in its own language, which tells their links.
_NFT_CHAINS = ("nft", "list", "chains")
_KINDS = ("filter", "route", "nat")
_FAMILIES = ("ip", "inet", "bridge", "netdev", "arp")
_AT_A_DEVICE = ("ingress", "egress")
# Before this priority of the hooks where packets begin tracking has not looked at them (NF_IP_PRI_CONNTRACK).
_TRACKED = -200
# Behind this priority of their hook vmm's own chains have marked what may go on.
_GUARD, _FORWARD = -50, -5
_MARK = f"{PASSED:#x}/{PASSED:#x}"
_SENT, _ANSWERS = "what machines send to the world", "the answers to machines"
# Any address of the world.
_WORLD = "9.9.9.9"
_A_TAP = "vmm-ac100002"  # one of them: all have such names


class Way(Value):
    """What machines need to pass a hook of the firewall: a packet of that kind, and the accepts that would let it."""

    hook: str
    what: str
    packet: Packet
    nft: str
    iptables: tuple[str, ...]


class Trouble(Value):
    """A chain that drops what machines need; `certain` is false where its rules do not tell. `by`: what drops it.

    With `untracked` it lets it go on, and keeps connection tracking from it: its addresses are never translated.
    """

    tool: str  # nft, or a variant of iptables
    chain: Chain
    way: Way
    by: str
    certain: bool = True
    path: tuple[tuple[str, int], ...] = ()
    untracked: bool = False


class Listing(Value):
    """The chains of all other firewalls, by the tool that writes them; `unread` says what could not be read."""

    chains: dict[str, Chains]
    unread: tuple[str, ...] = ()


class Others(Value):
    """Other firewalls, as the machines of one bridge meet them: their subnet, one of their addresses, the gateway.

    `way_out` is the link to the world, where it is known.

    `resolvers` gives those addresses of the host itself that machines have as their resolvers; it is asked only where
    someone filters what comes to the host. `forwards` gives (protocol, port of the machine) of what is led to machines
    from outside; it is asked only where someone filters what the host passes on.
    """

    bridge: str
    machines: str
    machine: str
    gateway: str
    way_out: str | None = None
    resolvers: Callable[[], Sequence[str]] = tuple
    forwards: Callable[[], Sequence[tuple[str, int]]] = tuple

    def troubles(self, listing: Listing | None = None) -> list[Trouble]:
        """Return every chain that drops what machines need, or may."""
        return self._judge(self.listing() if listing is None else listing)

    def are_dropping(self, listing: str) -> bool:
        """Whether one of them drops what machines need for certain, by a listing of nft's alone, and at once."""
        chains: dict[str, Chains] = {"nft": _foreign(nft_rules.chains_of(listing)) if listing else {}}
        if glance.has_legacy_tables():
            chains["iptables-legacy"] = _saved("iptables-legacy")
        # Which resolvers and forwards there are, every machine's record must be read for: the supervisor does.
        quick = replace(self, resolvers=tuple, forwards=tuple)
        return any(trouble.certain for trouble in quick._judge(Listing(chains=chains)))  # noqa: SLF001

    def accept(self) -> None:
        """Put accepts of ours where they help and overrule nobody, and take out those that do not."""
        for variant, line in accepts.standing_lines():
            # Older releases let everything from and to the bridge pass.
            if line.split()[1] in ("FORWARD", "DOCKER-USER") and _MARK not in line:
                process.run([variant, "-w", "-D", *shlex.split(line)[1:]], check=False)
        listing = self.listing()
        accepts.carry_out(self.plan(listing), listing.chains)

    def listing(self) -> Listing:
        """Read the chains of every other firewall, with the elements of sets where these tell more."""
        listing = read(_NFT_TERSE)
        found = self._judge(replace(listing, chains=accepts.without_ours(listing.chains)))
        return listing if all(trouble.certain for trouble in found) else read(_NFT)

    def plan(self, listing: Listing) -> accepts.Plan:
        """Return what is to be changed of the rules that are ours."""
        troubles = self._judge(replace(listing, chains=accepts.without_ours(listing.chains)))
        return accepts.plan(listing.chains, [trouble for trouble in troubles if self.can_accept(trouble)])

    def can_accept(self, trouble: Trouble) -> bool:
        """Whether a rule of ours may help: not where someone has cut these very machines off on purpose."""
        in_reach = trouble.tool in accepts.VARIANTS and trouble.chain.table == "filter"
        return in_reach and not is_aimed(trouble, self.bridge)

    def _judge(self, listing: Listing) -> list[Trouble]:
        found: list[Trouble] = []
        for tool, chains in listing.chains.items():
            for chain in chains.values():
                found += self._troubles_in(tool, chains, chain)
        return found

    def _troubles_in(self, tool: str, chains: Chains, chain: Chain) -> Iterator[Trouble]:
        if chain.kind not in _KINDS or chain.family not in _FAMILIES:
            return
        for way in self._ways(chain):
            if chain.kind == "nat" and way.packet.get("ct state") == "established":
                # Of a connection only the first packet comes to it.
                continue
            verdict = fate_in(chains, chain, _as_it_comes_to(chain, way.packet))
            if verdict.fate is not Fate.PASSES:
                certain = verdict.fate is Fate.DROPPED
                yield Trouble(tool=tool, chain=chain, way=way, by=verdict.by, certain=certain, path=verdict.path)
        yield from self._untracked_in(tool, chains, chain)

    def _untracked_in(self, tool: str, chains: Chains, chain: Chain) -> Iterator[Trouble]:
        """Give what a chain keeps from connection tracking, of what machines need to be masqueraded."""
        if chain.hook != "prerouting" or chain.family not in ("ip", "inet") or chain.priority >= _TRACKED:
            return
        (sent,) = (way for way in self._routed() if way.hook == "prerouting")
        # They come to this host's own address, at a port that no one knows.
        unknown = ("ip daddr", "tcp dport", "th dport")
        packet = _without(self._packet(iif=self.way_out, source=_WORLD, target=self.machine), *unknown)
        answers = Way(hook="prerouting", what=_ANSWERS, packet=packet, nft="", iptables=())
        for way in (sent, answers):
            by = fate_in(chains, chain, _as_it_comes_to(chain, way.packet)).untracked
            if by:
                yield Trouble(tool=tool, chain=chain, way=way, by=by, untracked=True)

    def _ways(self, chain: Chain) -> list[Way]:
        match chain.family:
            case "inet" if chain.hook in _AT_A_DEVICE:
                return [way for way in self._at_a_device(chain.devices) if way.hook == chain.hook]
            case "ip" | "inet":
                found = [way for way in self._routed() if way.hook == chain.hook]
                if chain.hook == "input":
                    found += [self._asks(address) for address in self.resolvers()]
                if chain.hook == "forward":
                    found += [self._led(*forward) for forward in self.forwards()]
                return found if chain.hook != "forward" or chain.priority > _FORWARD else self._early(found)
            case "bridge" | "arp":
                return [way for way in self._bridged(chain.family) if way.hook == chain.hook]
            case _:
                return [way for way in self._at_a_device(chain.devices) if way.hook == chain.hook]

    def _routed(self) -> list[Way]:
        bridge = self.bridge
        out = self._packet(iif=bridge, oif=self.way_out, source=self.machine, target=_WORLD, state="new")
        back = self._packet(iif=self.way_out, oif=bridge, source=_WORLD, target=self.machine, state="established")
        to_guest = self._packet(oif=bridge, source=self.gateway, target=self.machine, state="new", port="22")
        answer = self._packet(iif=bridge, source=self.machine, target=self.gateway, state="established")
        tracked = "ct state established,related accept"
        # What vmm's own rules have let pass, and nothing else: neither whole interfaces nor a container's closed ports.
        passed_nft, passed = f"meta mark & {PASSED:#x} == {PASSED:#x} accept", ("-m", "mark", "--mark", _MARK)
        states = ("-m", "conntrack", "--ctstate")
        sent, answers = _SENT, _ANSWERS
        from_bridge, to_bridge = f'iifname "{bridge}" accept', f'oifname "{bridge}" accept'
        replies = ("-i", bridge, *states, "RELATED,ESTABLISHED")
        # Behind masquerading its addresses are others, and there is no link it came in by.
        late, late_back = (_without(each, "iifname", "ip saddr", "ip daddr") for each in (out, back))
        ways = (
            ("forward", sent, out, passed_nft, passed),
            ("forward", answers, back, passed_nft, passed),
            ("prerouting", sent, _without(out, "oifname"), from_bridge, ("-i", bridge)),
            ("postrouting", sent, late, passed_nft, passed),
            ("postrouting", answers, late_back, passed_nft, passed),
            ("output", "what this host sends to machines", to_guest, to_bridge, ("-o", bridge)),
            ("input", "what machines answer this host", answer, f'iifname "{bridge}" {tracked}', replies),
        )
        return [Way(hook=h, what=what, packet=packet, nft=nft, iptables=rule) for h, what, packet, nft, rule in ways]

    def _early(self, ways: list[Way]) -> list[Way]:
        """Return the ways of a chain that is before vmm's own: nothing is marked yet, and the links tell."""
        tracked = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")
        by_link = {
            _SENT: (f'iifname "{self.bridge}" accept', ("-i", self.bridge)),
            _ANSWERS: (f'oifname "{self.bridge}" ct state established,related accept', ("-o", self.bridge, *tracked)),
        }
        led = f'oifname "{self.bridge}" ct status dnat accept', ("-o", self.bridge, *tracked[:-1], "DNAT")
        found = [(way, by_link.get(way.what, led)) for way in ways]
        return [replace(way, nft=nft, iptables=iptables) for way, (nft, iptables) in found]

    def _led(self, protocol: str, port: int) -> Way:
        """Return the way of what a forward leads to a machine, from the world."""
        packet = self._packet(
            iif=self.way_out, oif=self.bridge, source=_WORLD, target=self.machine, state="new", port=str(port),
            over=protocol,
        )  # fmt: skip
        return Way(
            hook="forward",
            what=f"what is led to machines, port {port}/{protocol}",
            packet={**packet, "ct status": "dnat"},
            nft=f"meta mark & {PASSED:#x} == {PASSED:#x} accept",
            iptables=("-m", "mark", "--mark", _MARK),
        )

    def _asks(self, address: str) -> Way:
        """Return the way to a resolver that is the host's own."""
        packet = self._packet(iif=self.bridge, source=self.machine, target=address, state="new", port="53", over="udp")
        return Way(
            hook="input",
            what=f"what machines ask the resolver {address}",
            packet=packet,
            nft=f'iifname "{self.bridge}" ip daddr {address} meta l4proto {{ tcp, udp }} th dport 53 accept',
            iptables=("-i", self.bridge, "-d", f"{address}/32", "-p", "udp", "-m", "udp", "--dport", "53"),
        )

    def _bridged(self, family: str) -> list[Way]:
        sent, received = "what machines send", "what is sent to machines"
        if family == "arp":
            into, out_of = {"iifname": self.bridge}, {"oifname": self.bridge}
            names = f'iifname "{self.bridge}" accept', f'oifname "{self.bridge}" accept'
            hooks = (("input", sent, into, names[0]), ("output", received, out_of, names[1]))
        else:
            # By their taps: `meta ibrname` and `obrname` need a module (nft_meta_bridge) that not every kernel has.
            into = {**self._packet(iif=_A_TAP, source=self.machine, target=_WORLD), "ibrname": self.bridge}
            out_of = {**self._packet(oif=_A_TAP, source=_WORLD, target=self.machine), "obrname": self.bridge}
            names = 'iifname "vmm-*" accept', 'oifname "vmm-*" accept'
            hooks = (
                ("prerouting", sent, into, names[0]),
                ("input", sent, into, names[0]),
                ("output", received, out_of, names[1]),
                ("postrouting", received, out_of, names[1]),
            )
        return [Way(hook=h, what=what, packet=packet, nft=rule, iptables=()) for h, what, packet, rule in hooks]

    def _at_a_device(self, devices: Sequence[str]) -> list[Way]:
        links = [name for name in devices if name in (self.bridge, self.way_out) or name.startswith("vmm-")]
        packet = self._packet(source=self.machine, target=_WORLD)
        # Both directions pass both hooks of both links; which addresses they have there depends on masquerading. Of the
        # link to the world an accept would let in all that the host keeps out there: whoever wrote the chain knows it.
        nothing = {key: value for key, value in packet.items() if key not in ("ip saddr", "ip daddr")}
        return [
            Way(
                hook=hook,
                what=f"what machines send or are sent over {link}",
                packet={**nothing, key: link},
                nft="" if link == self.way_out else f'{key} "{link}" accept',
                iptables=(),
            )
            for link in links[:1]
            for hook, key in zip(_AT_A_DEVICE, ("iifname", "oifname"), strict=True)
        ]

    def _packet(
        self, *, source: str, target: str, iif: str | None = None, oif: str | None = None, state: str | None = None,
        port: str = "443", over: str = "tcp",
    ) -> Packet:  # fmt: skip
        known = {
            "nfproto": "ipv4", "protocol": "ip", "ether type": "ip", "l4proto": over, "ip protocol": over,
            f"{over} dport": port, "th dport": port, "ip saddr": source, "ip daddr": target,
            "ct original ip saddr": self.machine, "ct original saddr": self.machine, "mark": "0", "ct mark": "0",
            "pkttype": "host", "fib daddr type": "unicast", "fib saddr type": "unicast", "iifgroup": "0",
        }  # fmt: skip
        optional = {
            "iifname": iif,
            "oifname": oif,
            "ct state": state,
            "ct status": "none" if state else None,
            "ct direction": state and ("original" if state == "new" else "reply"),
        }
        return known | {key: value for key, value in optional.items() if value is not None}


def read(command: tuple[str, ...] = _NFT) -> Listing:
    """Read the chains of every other firewall.

    Raises:
        HostError: nft is not there, or cannot be asked.
    """
    return parse(process.run(command, timeout_s=20).stdout)


def parse(listing: str) -> Listing:
    """Return the chains of every other firewall. `listing` is nft's; what belongs to iptables is asked of iptables."""
    native = _foreign(nft_rules.chains_of(listing))
    of_iptables = {key[:2] for key, chain in native.items() if nft_rules.is_of_iptables(chain)}
    found: dict[str, Chains] = {}
    if any(family == "ip" for family, _ in of_iptables) and (saved := _saved("iptables-nft")):
        # nft does not tell what iptables' own matches ask.
        found["iptables-nft"] = saved
        native = {key: chain for key, chain in native.items() if key[:2] not in of_iptables}
    unread: tuple[str, ...] = ()
    if glance.has_legacy_tables():
        found["iptables-legacy"] = _saved("iptables-legacy")
        if not found["iptables-legacy"]:
            unread = ("there are tables of the old iptables, and no iptables-legacy-save to read them with",)
    return Listing(chains={"nft": native, **found}, unread=unread)


def _foreign(chains: Chains) -> Chains:
    found = {key: chain for key, chain in chains.items() if not is_ours(*key[:2])}
    bare = [key for key, chain in found.items() if chain.hook in _AT_A_DEVICE and not chain.devices]
    if not bare:
        return found
    # The JSON of nft 1.0.6 leaves the devices out; its own language tells them.
    told = nft_rules.devices_in(process.run(_NFT_CHAINS, timeout_s=20, check=False).stdout)
    return {**found, **{key: replace(found[key], devices=told.get(key, ())) for key in bare}}


def _saved(variant: str) -> Chains:
    """Return the chains of a variant of iptables; none where it is not there."""
    try:
        return iptables_rules.chains_of(process.run([f"{variant}-save"], check=False).stdout)
    except HostError:
        return {}


def is_aimed(trouble: Trouble, bridge: str) -> bool:
    """Whether a rule of iptables drops by these machines' link, or by an address: whoever wrote it meant it so."""
    words = trouble.by.split()
    if words[:1] != ["-A"] or "-j" not in words:
        return False
    named = [at for at, word in enumerate(words) if word in ("-s", "-d") or word == bridge]
    # But for some address says nothing about these.
    return any("!" not in words[max(at - 2, 0) : at] for at in named)


def _as_it_comes_to(chain: Chain, packet: Packet) -> Packet:
    """Return the packet with what is known of it where a chain meets it: its mark, its connection."""
    mark = 0
    if chain.hook in ("input", "postrouting") or (chain.hook == "prerouting" and chain.priority > _GUARD):
        mark = VETTED
    if chain.hook == "postrouting" or (chain.hook == "forward" and chain.priority > _FORWARD):
        mark = VETTED | PASSED
    if chain.hook == "output":
        mark = 0
    known = {**packet, "mark": str(mark)}
    # By these hooks it has been through the one where tracking begins, whatever their chain's priority.
    is_tracked = chain.priority > _TRACKED or chain.hook in ("input", "forward", "postrouting")
    return known if is_tracked else {k: v for k, v in known.items() if not k.startswith("ct ")}


def _without(packet: Packet, *keys: str) -> Packet:
    return {name: value for name, value in packet.items() if name not in keys}
