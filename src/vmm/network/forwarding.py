"""Forwarding, link by link: what machines send comes in by their bridge, and the answers by the links to the world.

The switch for the whole host (net.ipv4.ip_forward) would make a router between all its networks of it, and hide from
Docker that it must close what it opens. A link's own (net.ipv4.conf.LINK.forwarding) is what the kernel asks, of the
link by which a packet came in. What vmm switched on is recorded before, and switched off by `teardown`; what only
forwards needed, with the last of these.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import NetworkError
from vmm.host import files, identity
from vmm.host.reading import read_text
from vmm.model.value import Value
from vmm.network import links, netlink, uplinks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm.model.network import Subnet

_CONF = Path("/proc/sys/net/ipv4/conf")
_NETWORK = "/proc/self/ns/net"


class Forwarding(Value):
    """The links of one bridge's machines. `record` is the file that says what vmm has switched on.

    `reaches_more`: machines may reach other networks than the way out, whose answers come in by any link.
    """

    bridge: str
    subnet: Subnet
    host_interface: str | None
    record: Path
    reaches_more: bool = False

    def missing(self, *, published: bool, ways: Sequence[str] | None = None) -> list[str]:
        """Return the links that should forward and do not.

        `published`: a forward lets the outside in, by any link that has an address. `ways`: the links that lead out,
        where the caller knows them already.
        """
        return [link for link in self._needed(ways, published=published) if not _is_on(link)]

    def turn_on(self, *, published: bool, ways: Sequence[str] | None = None) -> None:
        """Let every link forward that should.

        Raises:
            NetworkError: the kernel refuses, as where /proc/sys is mounted read-only.
        """
        missing = self.missing(published=published, ways=ways)
        if not missing:
            return
        # The bridge goes with its own switch, and is vmm's.
        self._note(link for link in missing if link != self.bridge)
        for link in missing:
            _switch(link, on=True)

    def give_back(self) -> None:
        """Switch off what vmm has switched on; what someone has switched on for all links since then stays on."""
        if not _is_on("all"):
            for link in self._noted():
                with contextlib.suppress(NetworkError):
                    _switch(link, on=False)
        self.record.unlink(missing_ok=True)

    def turn_off_needless(self, *, published: bool) -> None:
        """Switch off what vmm has switched on for forwards, and no forward needs any more."""
        noted, needed = self._noted(), self._needed(None, published=published)
        needless = [link for link in noted if link not in needed]
        if not needless:
            return
        # What someone has switched on for all links since then stays on, and is no more vmm's.
        for link in [] if _is_on("all") else needless:
            _switch(link, on=False)
        self._write([link for link in noted if link in needed])

    def _needed(self, ways: Sequence[str] | None, *, published: bool) -> list[str]:
        if ways is None:
            ways = [self.host_interface] if self.host_interface else uplinks.uplinks(self.bridge, self.subnet)
        others = _with_address() if published or self.reaches_more else []
        return [link for link in dict.fromkeys([self.bridge, *ways, *others]) if link != "lo"]

    def _noted(self) -> list[str]:
        import json

        try:
            noted = json.loads(read_text(self.record))
            # After a reboot, and in another network, it says nothing.
            return [str(link) for link in noted["links"]] if noted["of"] == _here() else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _note(self, switched: Iterable[str]) -> None:
        before = self._noted()
        after = list(dict.fromkeys([*before, *switched]))
        if after != before:
            self._write(after)

    def _write(self, noted: Sequence[str]) -> None:
        import json

        files.make_dir(self.record.parent)
        files.write_atomic(self.record, json.dumps({"of": _here(), "links": list(noted)}), durable=False)


def _here() -> list[str]:
    return [identity.boot_id(), os.readlink(_NETWORK)]  # noqa: PTH115  # its text is what tells one from another


def _with_address() -> list[str]:
    """Return the links that have an IPv4 address."""
    return [name for _, name in socket.if_nameindex() if links.address_of(name) is not None]


def _is_on(link: str) -> bool:
    """Whether a link forwards. One that is gone has nothing to forward."""
    try:
        return read_text(_CONF / link / "forwarding").strip() == "1"
    except FileNotFoundError:
        return True
    except OSError as error:
        raise netlink.told(error, f"Whether the link {link} forwards cannot be seen.") from error


def _switch(link: str, *, on: bool) -> None:
    try:
        (_CONF / link / "forwarding").write_text("1" if on else "0", encoding="ascii")
    except FileNotFoundError:
        return
    except OSError as error:
        raise netlink.told(error, f"Forwarding cannot be switched {'on' if on else 'off'} for {link}.") from error
