"""What nft writes, read: the devices of chains, which the JSON of some releases leaves out."""

from vmm.network import nft_rules

LISTING = """table netdev n {
	chain i {
		type filter hook ingress device "up0" priority filter; policy drop;
	}
	chain j {
		type filter hook egress devices = { up0, "up1" } priority filter; policy accept;
	}
}
table netdev m {
	chain i {
		type filter hook ingress devices = { up2 } priority -5; policy drop;
	}
}
"""


def test_the_devices_of_a_chain() -> None:
    assert nft_rules.devices_in(LISTING) == {
        ("netdev", "n", "i"): ("up0",),
        ("netdev", "n", "j"): ("up0", "up1"),
        ("netdev", "m", "i"): ("up2",),
    }
    assert nft_rules.devices_in("") == {}
