"""Snapshotters: layered root file systems, by overlay or by copying.

Rule: a snapshot is a row of ``meta.db`` plus the directory its id names; the row alone says what exists.
"""
