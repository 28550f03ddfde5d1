"""--ssl_config_file: an SSLConfig, whose key and certificates stand in it as text.

[server.tls] names files, which are watched: they are written below the state directory, for the daemon's user
only.
"""

from __future__ import annotations

import os

from fastserve.compat.draft import Draft, WrittenFile
from fastserve.compat.flags import Flags
from fastserve.text_proto import TextProto, read_text_proto

_FILES = (
    # Of the message, of the table, the file, and what its text begins with.
    ("server_cert", "certificate", "server.crt", "CERTIFICATE"),
    ("server_key", "key", "server.key", "PRIVATE KEY"),
    ("custom_ca", "client_ca", "clients.crt", "CERTIFICATE"),
)
_PRIVATE = 0o600


def add_tls(draft: Draft, flags: Flags, state_dir: str) -> None:
    """[server.tls], and the files that it names."""
    file = flags.text("ssl_config_file")
    if not file:
        return
    with draft.trying():
        _add(draft, read_text_proto(file, "tensorflow.serving.SSLConfig"), state_dir)
        if flags.text("grpc_socket_path"):
            draft.set("server.tls", "unix_sockets", True, "as TensorFlow Serving has it")


def _add(draft: Draft, source: TextProto, state_dir: str) -> None:
    config = source.message
    if config.client_verify and not config.custom_ca:
        draft.problem(
            f"{source.at('client_verify')}: client_verify: true needs custom_ca, the certificates of who "
            "signs clients'"
        )
    for field, key, name, holds in _FILES:
        text = getattr(config, field)
        if field == "custom_ca" and not config.client_verify:
            if text:
                draft.note(
                    f"{source.at(field)}: custom_ca has no effect without client_verify: true; clients "
                    "are not asked"
                )
            continue
        if not text:
            if field != "custom_ca":
                draft.problem(f"{source.file}: {field} is missing: expected the text of a PEM file")
            continue
        if "-----BEGIN" not in text or holds not in text:
            draft.problem(
                f"{source.at(field)}: {field} is no PEM text with a {holds}: expected the file's text, "
                "with \\n for the ends of its lines"
            )
            continue
        path = os.path.join(state_dir, "tls", name)
        draft.files.append(WrittenFile(path, text, _PRIVATE))
        draft.set("server.tls", key, path, f"{source.at(field)}")
