"""How a machine runs: firecracker and qemu, twins behind one contract."""
