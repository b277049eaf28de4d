"""File systems that the daemon mounts for its clients (containerd's mount manager)."""
