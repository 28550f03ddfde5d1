"""What a client can be told beside its addresses. Times are seconds. Each checks itself when it is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve.client.errors import TlsError, status_code

BALANCES = ("round_robin", "least_outstanding")
COMPRESSIONS = (None, "gzip", "deflate")

# What a call waits for a connection to take bytes, once it is made.
STALL_S = 20.0
# Between attempts to connect to an address that refuses.
RECONNECT_FIRST_S, RECONNECT_MAX_S = 0.05, 5.0
# Decoded, a reply may take so many times what it may take on the wire.
DECODED_PER_REPLY_BYTE = 4


@dataclass(frozen=True)
class Tls:
    """TLS to the servers. Paths of PEM files, or the PEM itself as bytes.

    ca: whom to trust (default: the system's list); certificate, key: our own, for servers that ask;
    server_name: what the servers' certificates must be for (default: the host of each address); verify: False
    takes any certificate, and is then open to whoever sits between.
    """

    ca: str | Path | bytes | None = None
    certificate: str | Path | bytes | None = None
    key: str | Path | bytes | None = None
    server_name: str | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("Tls: certificate and key go together")

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None, bool]:
        """The PEM of ca, certificate and key. TlsError names the file that cannot be read."""
        return (
            _pem("ca", self.ca),
            _pem("certificate", self.certificate),
            _pem("key", self.key),
            self.verify,
        )


@dataclass(frozen=True)
class Retry:
    """Calls that fail are made again, at another server if there is one.

    attempts: of one call in all; codes: statuses after which; backoff, backoff_max: the first pause and the
    longest, doubling, with jitter; ratio, burst: every call allows so much of a retry, and so many may be
    saved up, so that a server that is down is not hit with a multiple of the calls. A call that no server has
    looked at is made again anyway, at once.
    """

    attempts: int = 3
    codes: tuple[str, ...] = ("UNAVAILABLE",)
    backoff: float = 0.01
    backoff_max: float = 1.0
    ratio: float = 0.1
    burst: float = 10.0

    def __post_init__(self) -> None:
        if isinstance(self.codes, str):
            raise TypeError(f"Retry: codes is a tuple of names: ({self.codes!r},)")
        for name in self.codes:
            status_code(name)
        _check(
            "Retry", self, attempts=(1, 100), backoff=(0, 3600), backoff_max=(0, 3600), ratio=(0, 100),
            burst=(0, 1e9),
        )  # fmt: skip


@dataclass(frozen=True)
class Hedge:
    """A call that takes longer than most gets a second attempt at another server, and the first answer
    counts.

    percentile: longer than so many percent of the calls before it; at_least: never sooner; ratio, burst: a
    budget as for retries: with 0.05, five in a hundred calls.
    """

    percentile: float = 95.0
    at_least: float = 0.001
    ratio: float = 0.05
    burst: float = 10.0

    def __post_init__(self) -> None:
        _check("Hedge", self, percentile=(1, 100), at_least=(0, 3600), ratio=(0, 1), burst=(0, 1e9))


@dataclass(frozen=True)
class Eject:
    """A server that fails is left out for a while, then tried with one call.

    failures: in a row, connections refused or lost, UNAVAILABLE and deadlines; duration: for so long,
    doubling each time up to 16 times; at_most: share of the servers that may be out at once. The last is
    never.
    """

    failures: int = 5
    duration: float = 5.0
    at_most: float = 0.5

    def __post_init__(self) -> None:
        _check("Eject", self, failures=(1, 1e6), duration=(0, 86400), at_most=(0, 1))


@dataclass(frozen=True)
class Keepalive:
    """A PING after so long without a byte while calls are open; when nothing answers it within `timeout`, the
    connection is lost and its calls with it. Servers on gRPC's C++ core, TensorFlow Serving among them, end a
    connection that gets more than a few in five minutes while a call has no answer: after four times
    `after`."""

    after: float = 60.0
    timeout: float = 10.0

    def __post_init__(self) -> None:
        _check("Keepalive", self, after=(0.01, 86400), timeout=(0.01, 86400))


@dataclass(frozen=True)
class Options:
    """All of a client's arguments but its addresses."""

    tls: Tls | None
    balance: str
    connections: int
    timeout: float | None
    connect_timeout: float
    retry: Retry | None
    hedge: Hedge | None
    eject: Eject | None
    keepalive: Keepalive | None
    max_reply_bytes: int
    compression: str | None
    metadata: Iterable[tuple[str, str | bytes]]
    wait_for_ready: bool

    def __post_init__(self) -> None:
        for name, kind in (
            ("tls", Tls), ("retry", Retry), ("hedge", Hedge), ("eject", Eject), ("keepalive", Keepalive)
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} is {kind.__name__}(...) or None, not {value!r}")
        if self.balance not in BALANCES:
            raise ValueError(f"balance is {BALANCES[0]!r} or {BALANCES[1]!r}, not {self.balance!r}")
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"compression is None, 'gzip' or 'deflate', not {self.compression!r}")
        _check(
            "client",
            self,
            connections=(1, 1024),
            connect_timeout=(0.001, 86400),
            max_reply_bytes=(1, (1 << 32) - 1),
        )
        if self.timeout is not None:
            _check("client", self, timeout=(0, 1e9))

    def settings(self, server_name: str, authority: str, metadata: tuple[Any, ...]) -> dict[str, Any]:
        """What fastserve._native.client.Channel takes. Reads the files of `tls`. TlsError."""
        retry = self.retry or Retry(attempts=1, codes=())
        hedge = self.hedge or Hedge()
        eject = self.eject or Eject()
        return {
            "tls": self.tls.read() if self.tls is not None else None,
            "server_name": server_name,
            "authority": authority,
            "metadata": metadata,
            "compression": self.compression,
            "connections": self.connections,
            "balance": self.balance,
            "max_reply_bytes": self.max_reply_bytes,
            "max_decoded_bytes": self.max_reply_bytes * DECODED_PER_REPLY_BYTE,
            "connect_timeout": self.connect_timeout,
            "stall_timeout": STALL_S,
            "keepalive": self.keepalive.after if self.keepalive is not None else 0,
            "keepalive_timeout": self.keepalive.timeout if self.keepalive is not None else 0,
            "reconnect_first": RECONNECT_FIRST_S,
            "reconnect_max": RECONNECT_MAX_S,
            "max_attempts": retry.attempts,
            "retry_codes": [status_code(name) for name in retry.codes],
            "backoff_first": retry.backoff,
            "backoff_max": max(retry.backoff, retry.backoff_max),
            "retry_ratio": retry.ratio,
            "retry_burst": retry.burst,
            "hedge_percentile": hedge.percentile if self.hedge is not None else 0,
            "hedge_min": hedge.at_least,
            "hedge_ratio": hedge.ratio,
            "hedge_burst": hedge.burst,
            "eject_failures": eject.failures if self.eject is not None else 0,
            "eject_for": eject.duration,
            "eject_at_most": eject.at_most,
            "wait_for_ready": self.wait_for_ready,
        }


def _pem(what: str, source: str | Path | bytes | None) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise TlsError("UNAVAILABLE", f"TLS: {what} {str(source)!r}: {error.strerror}") from None


def _check(what: str, value: object, **ranges: tuple[float, float]) -> None:
    for name, (least, most) in ranges.items():
        number = getattr(value, name)
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"{what}: {name} is a number, not {number!r}")
        if isinstance(least, int) and isinstance(most, int) and name in _WHOLE and int(number) != number:
            raise ValueError(f"{what}: {name} is a whole number, not {number!r}")
        if not least <= number <= most:
            raise ValueError(f"{what}: {name} is from {least:g} to {most:g}, not {number!r}")


_WHOLE = {"attempts", "failures", "connections", "max_reply_bytes"}
