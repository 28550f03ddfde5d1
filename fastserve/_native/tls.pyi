class TlsRefused(Exception):
    """PEM that cannot be used, in words."""

class ServerTls:
    """A server's certificate and key, and whose clients it lets in. PEM; raises TlsRefused."""

    def __init__(self, certificate: bytes, key: bytes, client_ca: bytes | None = None) -> None: ...
    def validity(self) -> tuple[int, int]:
        """For how many seconds the certificate has been valid, and will be. Negative: not yet, or not any
        more."""
