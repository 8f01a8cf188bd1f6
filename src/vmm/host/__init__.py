"""The one set of hands: processes, files, systemd, and the checks of `vmm doctor`."""
