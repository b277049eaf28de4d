"""The options of log drivers: which there are, and what is a value of each.

Rule: an option a driver does not have is refused in Docker's words, before anything is made.
"""

from __future__ import annotations

import re

from engine.containers import logtag
from engine.containers.logwire import Address, files_of, parse_address
from engine.containers.times import duration_seconds
from oci.errors import InvalidArgument

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_COMMON = ("labels", "labels-regex", "env", "env-regex", "tag")
OPTIONS: dict[str, tuple[str, ...]] = {
    "json-file": ("max-size", "max-file", "compress", *_COMMON),
    "local": ("max-size", "max-file", "compress", *_COMMON),
    "none": (),
    "syslog": (
        *("syslog-address", "syslog-facility", "syslog-format", "syslog-tls-ca-cert", "syslog-tls-cert"),
        *("syslog-tls-key", "syslog-tls-skip-verify", *_COMMON),
    ),
    "journald": _COMMON,
    # The raw log is the buffer: a container never waits, and a message is sent until it was taken. Docker's settings of
    # the buffer and of when to give up are checked and change nothing.
    "fluentd": (
        *("fluentd-address", "fluentd-async", "fluentd-async-connect", "fluentd-sub-second-precision"),
        *("fluentd-async-reconnect-interval", "fluentd-buffer-limit", "fluentd-retry-wait", "fluentd-max-retries"),
        *("fluentd-request-ack", "fluentd-write-timeout", *_COMMON),
    ),
}
EVERYWHERE = ("mode", "max-buffer-size")
_SYSTEM_FACILITIES = "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp"
FACILITIES = [*_SYSTEM_FACILITIES.split(), *("",) * 4, *(f"local{number}" for number in range(8))]
"""Names by number; 12 to 15 have numbers only (RFC 5424, table 1)."""

_FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
_FLUENTD_FLAGS = ("fluentd-async", "fluentd-async-connect", "fluentd-sub-second-precision", "fluentd-request-ack")
_FLUENTD_TIMES = ("fluentd-retry-wait", "fluentd-async-reconnect-interval", "fluentd-write-timeout")
_RECONNECT_SECONDS = (0.1, 10.0)
FIRST_PAUSE = 0.5
"""Seconds before what a server did not take is sent again, where no option says so."""


def check_options(driver: str, options: dict[str, str]) -> None:
    """Raises ``InvalidArgument`` in Docker's words for options a driver does not have."""
    known = OPTIONS.get(driver)
    if known is None:
        raise InvalidArgument(f"logger: no log driver named '{driver}' is registered")
    for name in options:
        if name not in known and name not in EVERYWHERE:
            raise InvalidArgument(f"unknown log opt '{name}' for {driver} log driver")
    if "max-size" in options:
        parse_size(options["max-size"])
    files = _positive(options.get("max-file", "1"), "max-file")
    for name in ("labels-regex", "env-regex"):
        _check_pattern(options.get(name, ""), name)
    packed = flag(options.get("compress", "false"), "compress") and driver == "json-file"
    if packed and (files < 2 or "max-size" not in options):
        raise InvalidArgument("compress cannot be true when max-file is less than 2 or max-size is not set")
    logtag.check(options.get("tag", ""))
    _check_mode(options)
    if driver == "syslog":
        _check_syslog(options)
    elif driver == "fluentd":
        _check_fluentd(options)


def _check_mode(options: dict[str, str]) -> None:
    mode = options.get("mode", "blocking")
    if mode not in ("blocking", "non-blocking"):
        raise InvalidArgument(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise InvalidArgument("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        parse_size(options["max-buffer-size"], "max-buffer-size")


def _check_syslog(options: dict[str, str]) -> None:
    address = syslog_address(options)
    facility, format_ = options.get("syslog-facility", "daemon"), options.get("syslog-format", "")
    named = facility and facility in FACILITIES
    if not named and not (facility.isdecimal() and int(facility) < len(FACILITIES)):
        raise InvalidArgument(
            f"invalid syslog facility: {facility!r}", hint="daemon, user, local0 to local7, 0 to 23 …"
        )
    if format_ not in _FORMATS:
        raise InvalidArgument(f"invalid syslog format: {format_!r}", hint="rfc3164, rfc5424 or rfc5424micro")
    trust = files_of(options, "syslog")
    if "syslog-tls-skip-verify" in options:
        flag(options["syslog-tls-skip-verify"], "syslog-tls-skip-verify")
    if bool(trust.certificate) != bool(trust.key):
        raise InvalidArgument("syslog-tls-cert and syslog-tls-key go together: one of them is missing")
    if address.kind == "tls":
        try:
            trust.context()
        except OSError as error:
            raise InvalidArgument(f"invalid syslog-tls-* files: {error}") from None


def syslog_address(options: dict[str, str]) -> Address:
    """Where syslog is. Raises ``InvalidArgument``."""
    kinds = {"unix": "unix", "unixgram": "unixgram", "udp": "udp", "tcp": "tcp", "tcp+tls": "tls"}
    text = options.get("syslog-address") or "unixgram:///dev/log"
    return parse_address(text, kinds, 514, "syslog-address")


def fluentd_address(options: dict[str, str]) -> Address:
    """Where fluentd is. Raises ``InvalidArgument``."""
    text = options.get("fluentd-address") or "127.0.0.1"
    text = text if "://" in text else f"tcp://{text}"
    return parse_address(text, {"tcp": "tcp", "tls": "tls", "unix": "unixstream"}, 24224, "fluentd-address")


def _check_fluentd(options: dict[str, str]) -> None:
    fluentd_address(options)
    for name in _FLUENTD_FLAGS:
        flag(options.get(name, "false"), name)
    for name in _FLUENTD_TIMES:
        _seconds(options, name)
    if "fluentd-buffer-limit" in options:
        parse_size(options["fluentd-buffer-limit"], "fluentd-buffer-limit")
    if not options.get("fluentd-max-retries", "0").isdecimal():
        raise InvalidArgument(f"invalid value for fluentd-max-retries: {options['fluentd-max-retries']!r}")
    least, most = _RECONNECT_SECONDS
    if not least <= (_seconds(options, "fluentd-async-reconnect-interval") or least) <= most:
        raise InvalidArgument("invalid fluentd-async-reconnect-interval: value must be between 100ms and 10s")


def _seconds(options: dict[str, str], name: str) -> float:
    seconds = duration_seconds(options[name]) if name in options else 0.0
    if seconds is None:
        raise InvalidArgument(f"invalid value for {name}: {options[name]!r}: a duration such as 1s is expected")
    return seconds


def first_pause(options: dict[str, str]) -> float:
    """Seconds before a batch that was not taken is sent again for the first time."""
    return (
        _seconds(options, "fluentd-async-reconnect-interval") or _seconds(options, "fluentd-retry-wait") or FIRST_PAUSE
    )


def parse_size(text: str, name: str = "max-size") -> int:
    """``10m`` in bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"invalid value for {name}: invalid size: '{text}'")
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
