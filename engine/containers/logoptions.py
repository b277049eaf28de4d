"""The options of log drivers: which there are, and what is a value of each.

Rule: an option a driver does not have is refused in Docker's words, before anything is made.
"""

from __future__ import annotations

import re

from oci.errors import InvalidArgument

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_COMMON = ("labels", "labels-regex", "env", "env-regex", "tag")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "json-file": ("max-size", "max-file", "compress", *_COMMON),
    "local": ("max-size", "max-file", "compress", *_COMMON),
    "none": (),
    "syslog": ("syslog-address", "syslog-facility", "syslog-format", *_COMMON),
    "journald": _COMMON,
    # The raw log is the buffer, and a message is sent until it was taken: Docker's settings for both change nothing.
    "fluentd": (
        *("fluentd-address", "fluentd-async", "fluentd-async-connect", "fluentd-sub-second-precision"),
        *("fluentd-buffer-limit", "fluentd-retry-wait", "fluentd-max-retries", *_COMMON),
    ),
}
_EVERYWHERE = ("mode", "max-buffer-size")


def check_options(driver: str, options: dict[str, str]) -> None:
    """Raises ``InvalidArgument`` in Docker's words for options a driver does not have."""
    known = _OPTIONS.get(driver)
    if known is None:
        raise InvalidArgument(f"logger: no log driver named '{driver}' is registered")
    for name in options:
        if name not in known and name not in _EVERYWHERE:
            raise InvalidArgument(f"unknown log opt '{name}' for {driver} log driver")
    if "max-size" in options:
        parse_size(options["max-size"])
    files = _positive(options.get("max-file", "1"), "max-file")
    for name in ("labels-regex", "env-regex"):
        _check_pattern(options.get(name, ""), name)
    packed = flag(options.get("compress", "false"), "compress") and driver == "json-file"
    if packed and (files < 2 or "max-size" not in options):
        raise InvalidArgument("compress cannot be true when max-file is less than 2 or max-size is not set")


def parse_size(text: str) -> int:
    """``10m`` in bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"invalid value for max-size: invalid size: '{text}'")
    return int(float(match[1]) * 1024 ** _POWER[match[2].lower()])


def _positive(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InvalidArgument(f"invalid value for {name}: {text!r}: a number above zero is expected")
    return int(text)


def _check_pattern(text: str, name: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise InvalidArgument(f"invalid value for {name}: {text!r}: {error}") from None


def flag(text: str, name: str) -> bool:
    """A truth value of ``name``; raises ``InvalidArgument``."""
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise InvalidArgument(f"invalid value for {name}: {text!r}: true or false is expected")
    return text.lower() in ("true", "t", "1")
