"""Sandboxes that run: groups of tasks with one life, each held together by a shim."""
