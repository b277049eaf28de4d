"""Garbage collection: what nothing refers to any more goes."""
