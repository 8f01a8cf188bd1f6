"""qemu's microvm: the engine where hardware virtualization is missing."""
