"""The certificates of tests/certificates as grpcio, the core and configuration files want them."""

from __future__ import annotations

from pathlib import Path

import grpc

FOLDER = Path(__file__).resolve().parent / "certificates"


def pem(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def credentials_command(
    certificate: str = "server", *, client_ca: bool = False, tokens: dict[str, list[str]] | None = None
) -> dict[str, object]:
    """The parameters of the core's `credentials`. tokens: digests, by model."""
    return {
        "tls": {
            "certificate": pem(f"{certificate}.pem").decode(),
            "key": pem(f"{certificate}.key").decode(),
            "client_ca": pem("ca.pem").decode() if client_ca else None,
        },
        "tokens": tokens or {},
    }


def channel_credentials(client: str | None = None, ca: str = "ca") -> grpc.ChannelCredentials:
    """grpcio's, trusting `ca` and showing the certificate of `client`."""
    return grpc.ssl_channel_credentials(
        root_certificates=pem(f"{ca}.pem"),
        private_key=pem(f"{client}.key") if client else None,
        certificate_chain=pem(f"{client}.pem") if client else None,
    )


def secure_channel(address: str, client: str | None = None, ca: str = "ca") -> grpc.Channel:
    """A channel with a connection of its own, to a server whose certificate must be localhost's."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]
    return grpc.secure_channel(address, channel_credentials(client, ca), options=options)
