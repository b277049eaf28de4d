"""``ctypes`` as far as the runtime's calls need it: the C module alone, which is half of what ``import ctypes`` costs.

Rule: the names and the behaviour are those of ``ctypes``.
"""

from __future__ import annotations

from runc_py.light import TYPE_CHECKING

if TYPE_CHECKING:
    from ctypes import (
        PyDLL,
        Structure,
        addressof,
        byref,
        c_char,
        c_char_p,
        c_int,
        c_int32,
        c_long,
        c_size_t,
        c_uint,
        c_uint32,
        c_uint64,
        c_ulong,
        c_ushort,
        c_void_p,
        create_string_buffer,
        get_errno,
        memmove,
        sizeof,
    )
else:
    import _ctypes
    from _ctypes import addressof, byref, get_errno, sizeof

    _FLAGS = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI | _ctypes.FUNCFLAG_USE_ERRNO

    def _simple(code):
        return type(f"c_{code}", (_ctypes._SimpleCData,), {"_type_": code})

    c_int, c_long, c_char_p, c_void_p = map(_simple, "ilzP")
    _CODES = {"c_char": "c", "c_ushort": "H", "c_uint": "I", "c_uint32": "I", "c_ulong": "L", "c_size_t": "L"}
    _CODES |= {"c_int32": "i", "c_uint64": "Q"}

    def __getattr__(name):
        """The other types are made for those who ask: each is a class, and two for C."""
        if name == "Structure":
            return _ctypes.Structure
        if name not in _CODES:
            raise AttributeError(name)
        return globals().setdefault(name, _simple(_CODES[name]))

    class _Function(_ctypes.CFuncPtr):
        _flags_ = _FLAGS
        _restype_ = c_int

    class PyDLL:
        """``ctypes.PyDLL(name, use_errno=True)``."""

        def __init__(self, name, *, use_errno):
            assert use_errno
            self._name, self._handle = name, _ctypes.dlopen(name, 0)

        def __getitem__(self, name):
            return _Function((name, self))

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            setattr(self, name, self[name])
            return self.__dict__[name]

    def create_string_buffer(init, size=None):
        character = __getattr__("c_char")
        if isinstance(init, int):
            return (character * init)()
        buffer = (character * (size or len(init) + 1))()
        buffer.raw = init.ljust(len(buffer), b"\0")
        return buffer

    def memmove(target, source, size):
        _memmove(target, source, size)

    _memmove = PyDLL(None, use_errno=True)["memmove"]
    _memmove.argtypes, _memmove.restype = (c_void_p, c_void_p, c_long), c_void_p

__all__ = [
    "PyDLL",
    "Structure",
    "addressof",
    "byref",
    "c_char",
    "c_char_p",
    "c_int",
    "c_int32",
    "c_long",
    "c_size_t",
    "c_uint",
    "c_uint32",
    "c_uint64",
    "c_ulong",
    "c_ushort",
    "c_void_p",
    "create_string_buffer",
    "get_errno",
    "memmove",
    "sizeof",
]
