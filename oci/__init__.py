"""Leaf room: OCI types, digests, references, host paths and the error taxonomy. It imports no other room."""
