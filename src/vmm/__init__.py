"""vmm: real virtual machines on your own Linux host."""

VERSION = "0.1.0"
