"""runc-py: an OCI runtime. Standard library only, single-threaded, fast to start."""
