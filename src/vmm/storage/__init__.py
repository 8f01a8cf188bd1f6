"""What vmm remembers: the database, and each machine's own files."""
