"""What the configuration's credential files hold, checked: [server.tls] and the models' token_file.

The control process reads them and the core is told, so that it need not be a user who may. What is wrong is
said with the key, the file, and what would be right; no text has a secret in it. Used at the start, by
reloads and by `fastserve check`. The files are read, nothing else is touched.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fastserve._native.tls import ServerTls, TlsRefused
from fastserve.config import Config
from fastserve.config import ServerTls as Settings
from fastserve.errors import ConfigError

_FILE_MAX_BYTES = 1 << 20
# RFC 6750's, and the longest that csrc/bearer.h looks at.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_TOKEN_MAX_BYTES = 4096
_TOKENS_MAX = 1000
_DIGEST = "sha256:"


@dataclass(frozen=True)
class Tls:
    """PEM, and until when the certificate is valid."""

    certificate: str
    key: str
    client_ca: str | None
    until: datetime = field(compare=False)


@dataclass(frozen=True)
class Credentials:
    """`tokens`: by model, SHA-256 in hexadecimal."""

    tls: Tls | None
    tokens: dict[str, tuple[str, ...]]

    def command(self) -> dict[str, Any]:
        """The parameters of the core's `credentials` command."""
        tls = None
        if self.tls is not None:
            tls = {
                "certificate": self.tls.certificate,
                "key": self.tls.key,
                "client_ca": self.tls.client_ca,
            }
        return {"tls": tls, "tokens": self.tokens}


def files_of(config: Config) -> list[str]:
    """The files that `read_credentials` reads."""
    tls = config.server.tls
    paths = [tls.certificate, tls.key, tls.client_ca, *(model.token_file for model in config.models)]
    return [path for path in paths if path]


def read_credentials(config: Config, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Credentials:
    """ConfigError lists everything that is wrong."""
    problems: list[str] = []
    tls = _read_tls(config.server.tls, now(), problems) if config.server.tls.certificate else None
    tokens = {}
    for model in config.models:
        if model.token_file:
            where = f'[[models]] {model.name}, token_file = "{model.token_file}"'
            tokens[model.name] = _read_tokens(where, model.token_file, problems)
    if problems:
        raise ConfigError(problems)
    return Credentials(tls, tokens)


# ---- TLS --------------------------------------------------------------------------------------------


def _read_tls(settings: Settings, now: datetime, problems: list[str]) -> Tls | None:
    before = len(problems)
    pem: dict[str, bytes | None] = {}
    for key in ("certificate", "key", "client_ca"):
        path = getattr(settings, key)
        pem[key] = _read(_where(settings, key), path, problems) if path else None
    certificate, key_pem, client_ca = pem["certificate"], pem["key"], pem["client_ca"]
    if len(problems) > before or certificate is None or key_pem is None:
        return None
    try:
        valid_for_s, left_s = ServerTls(certificate, key_pem, client_ca).validity()
    except TlsRefused as refused:
        problems.append(_explain(settings, str(refused)))
        return None
    since, until = now - timedelta(seconds=valid_for_s), now + timedelta(seconds=left_s)
    if left_s < 0:
        problems.append(
            f"{_where(settings, 'certificate')}: expired on {_date(until)}: put a new one there, with its key"
        )
    elif valid_for_s < 0:
        problems.append(
            f"{_where(settings, 'certificate')}: is not valid before {_date(since)}: "
            f"wait until then, or correct this machine's clock, which says {_date(now)}"
        )
    return Tls(_text(certificate), _text(key_pem), _text(client_ca) if client_ca else None, until)


def _explain(settings: Settings, why: str) -> str:
    """csrc/tls.c's words, with the file that they are about."""
    files = {"the CA": "client_ca", "the certificate": "certificate", "the private key": "key"}
    key = next((key for words, key in files.items() if why.startswith(words)), None)
    if key is None:
        return f"[server.tls]: {why}"
    remedy = ""
    if "does not belong" in why:
        remedy = (
            f": {settings.certificate} has another public key than {settings.key}; compare "
            f"openssl x509 -noout -pubkey -in {settings.certificate} "
            f"and openssl pkey -pubout -in {settings.key}"
        )
    return f"{_where(settings, key)}: {why}{remedy}"


def _where(settings: Settings, key: str) -> str:
    return f'[server.tls] {key} = "{getattr(settings, key)}"'


def _date(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


# ---- tokens -----------------------------------------------------------------------------------------


def _read_tokens(where: str, path: str, problems: list[str]) -> tuple[str, ...]:
    """Digests of the tokens in a file. Its lines are tokens, or "sha256:" and the digest of one; empty ones
    and those that begin with # are passed over."""
    data = _read(where, path, problems)
    if data is None:
        return ()
    found: dict[str, None] = {}
    for number, line in enumerate(_text(data).splitlines(), start=1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        if token.startswith(_DIGEST):
            digest = token.removeprefix(_DIGEST).lower()
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                problems.append(f"{where}, line {number}: expected 64 hexadecimal digits after {_DIGEST}")
                return ()
        elif not _TOKEN.fullmatch(token) or len(token) > _TOKEN_MAX_BYTES:
            problems.append(
                f"{where}, line {number}: no bearer token: it has letters, digits and -._~+/ only, then "
                f"perhaps =, and at most {_TOKEN_MAX_BYTES} characters"
            )
            return ()
        else:
            digest = hashlib.sha256(token.encode()).hexdigest()
        found[digest] = None
    if not found:
        problems.append(
            f"{where}: has no token: expected one a line, or remove token_file to let everybody in"
        )
    elif len(found) > _TOKENS_MAX:
        problems.append(f"{where}: has {len(found)} tokens, expected at most {_TOKENS_MAX}")
    return tuple(found)


# ---- files ------------------------------------------------------------------------------------------


def _read(where: str, path: str, problems: list[str]) -> bytes | None:
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        problems.append(f"{where}: no such file")
    except PermissionError:
        problems.append(f"{where}: user {os.geteuid()}, who runs fastserve, may not read it")
    except OSError as error:
        problems.append(f"{where}: cannot be read: {error.strerror}")
    else:
        if len(data) <= _FILE_MAX_BYTES:
            return data
        problems.append(f"{where}: has more than {_FILE_MAX_BYTES >> 20} MiB: is it the right file?")
    return None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# What changes when a file does; None for one that is not there.
Marks = list[tuple[int, int, int] | None]


def marks(paths: Sequence[str]) -> Marks:
    """Of each file."""
    found: Marks = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return found
