"""The DNS server of containers: a process of its own that answers while every daemon is dead.

Rule: standard library only, one thread, nothing from the engine but ``netlink`` and ``nft``: it starts fast and stays
small. The engine hands records over (``control``); names are answered from them (``table``), all else is asked of the
host's servers (``forward``).
"""
