"""vmm: real virtual machines on your own Linux host."""

VERSION = "0.1.0"

# What typing's own says at run time. Importing typing takes 3 ms, and a listing has no other use for it.
TYPE_CHECKING = False
