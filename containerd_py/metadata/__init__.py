"""Metadata: what containerd-py knows, in one SQLite database, and the stores over it."""
