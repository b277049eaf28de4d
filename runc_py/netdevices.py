"""Host network devices that become the container's (``linux.netDevices``).

Rule: a device is moved, renamed, given its addresses again and set up, in that order, because the kernel drops the
addresses of a device that changes its network namespace. Plain rtnetlink over two sockets, one in each namespace.
Sources: runtime-spec ``config-linux.md#network-devices``, rtnetlink(7).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from runc_py import syscalls
from runc_py.errors import InvalidSpec, RuntimeFailure
from runc_py.light import os

_RTM_SETLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 19, 18, 20, 22
_REQUEST, _ACK, _CREATE, _EXCL, _DUMP = 0x1, 0x4, 0x400, 0x200, 0x300
_ERROR, _DONE = 2, 3
_IFLA_IFNAME, _IFLA_NET_NS_FD = 3, 28
_IFA_CACHEINFO = 6
_IFF_UP, _PERMANENT = 1, 0x80
_MAX_NAME = 15


class Address(NamedTuple):
    """An address of a device: the ``ifaddrmsg`` header without its index, and its attributes as they came."""

    header: tuple[int, int, int, int]
    attributes: bytes


def check_net_devices(devices: Any, kinds: frozenset[str]) -> None:
    """Raise InvalidSpec for devices that cannot be moved."""
    if not isinstance(devices, Mapping):
        raise InvalidSpec("linux.netDevices: must be an object")
    if "network" not in kinds:
        raise InvalidSpec("linux.netDevices: need a network namespace")
    taken: set[str] = set()
    for name, entry in devices.items():
        wanted = (entry or {}).get("name") or name if isinstance(entry or {}, Mapping) else None
        for one in (name, wanted):
            if not isinstance(one, str) or not _is_name(one):
                raise InvalidSpec(f'linux.netDevices["{name}"]: "{one}" is not a name of a network device')
        if wanted in taken:
            raise InvalidSpec(f'linux.netDevices["{name}"].name: "{wanted}" is given twice')
        taken.add(str(wanted))


def _is_name(text: str) -> bool:
    plain = 0 < len(text.encode()) <= _MAX_NAME and text not in (".", "..")
    return plain and not any(c in "/:%" or c.isspace() or c == "\0" for c in text)


def move_devices(devices: Mapping[str, Any], pid: int) -> None:
    """Give ``devices`` (name → object with an optional new ``name``) to the network namespace of ``pid``."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _Netlink() as here, _socket_in(namespace) as there:
            for name, entry in devices.items():
                wanted = (entry or {}).get("name") or name
                try:
                    _move(here, there, name, wanted, namespace)
                except OSError as error:
                    raise RuntimeFailure(f'linux.netDevices["{name}"]: {error.strerror}') from error
    finally:
        os.close(namespace)


def _move(here: _Netlink, there: _Netlink, name: str, wanted: str, namespace: int) -> None:
    index = socket.if_nametoindex(name)
    addresses = list(here.addresses(index))
    here.change_link(index, up=False)
    here.change_link(index, ((_IFLA_NET_NS_FD, struct.pack("=I", namespace)), (_IFLA_IFNAME, wanted.encode() + b"\0")))
    index = there.index_of(wanted)
    for address in addresses:
        there.add_address(index, address)
    there.change_link(index, up=True)


def _socket_in(namespace: int) -> _Netlink:
    """A socket stays in the namespace it was made in."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(namespace, syscalls.CLONE_NEWNET, "network namespace")
        try:
            return _Netlink()
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWNET, "own network namespace")
    finally:
        os.close(own)


class _Netlink:
    """A NETLINK_ROUTE socket."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._sequence = 0

    def __enter__(self) -> _Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def change_link(self, index: int, attributes: tuple[tuple[int, bytes], ...] = (), up: bool | None = None) -> None:
        """Attributes of a link and whether it is up; None leaves that."""
        header = struct.pack("=BxHiII", 0, 0, index, _IFF_UP if up else 0, 0 if up is None else _IFF_UP)
        self._ask(_RTM_SETLINK, _ACK, header + b"".join(_attribute(kind, value) for kind, value in attributes))

    def index_of(self, name: str) -> int:
        """The index of a link by name."""
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        for payload in self._ask(_RTM_GETLINK, 0, body):
            return int(struct.unpack_from("=i", payload, 4)[0])
        raise OSError(19, os.strerror(19), name)

    def addresses(self, index: int) -> Iterator[Address]:
        """The permanent addresses of a link."""
        for payload in self._ask(_RTM_GETADDR, _DUMP, struct.pack("=BBBBi", 0, 0, 0, 0, 0)):
            family, prefix, flags, scope, owner = struct.unpack_from("=BBBBi", payload)
            if owner == index and flags & _PERMANENT and scope < 253:
                kept = b"".join(_attribute(kind, data) for kind, data in _attributes(payload[8:]) if kind not in _STALE)
                yield Address((family, prefix, flags, scope), kept)

    def add_address(self, index: int, address: Address) -> None:
        """Give a link an address that another one had."""
        header = struct.pack("=BBBBi", *address.header, index)
        self._ask(_RTM_NEWADDR, _ACK | _CREATE | _EXCL, header + address.attributes)

    def _ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, self._sequence, 0) + body)
        found: list[bytes] = []
        while True:
            for answer, payload in _messages(self._socket.recv(1 << 18)):
                if answer == _ERROR:
                    code = -int(struct.unpack_from("=i", payload)[0])
                    if code:
                        raise OSError(code, os.strerror(code))
                    return found
                if answer == _DONE:
                    return found
                found.append(payload)
            if not flags & (_DUMP | _ACK):
                return found


_STALE = (_IFA_CACHEINFO,)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        yield kind, data[16:length]
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:length]
        data = data[(length + 3) & ~3 :]


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)
