"""Containers, execs, their logs and attached clients: one state machine per container over containerd's services."""
