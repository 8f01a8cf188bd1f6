"""Firecracker: the engine that vmm is for."""
