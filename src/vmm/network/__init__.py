"""One bridge, one tap a machine, one nftables table a family."""
