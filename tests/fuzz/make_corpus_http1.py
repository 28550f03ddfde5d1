"""Writes tests/fuzz/corpus/http1: answers of HTTP servers, good and bad; the first byte chooses pieces."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "corpus/http1"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
ANSWERS = {
    "length": OK + b"content-length: 5\r\n\r\nhello",
    "two": (OK + b"content-length: 2\r\n\r\nok") * 2,
    "chunked": CHUNKED + b"5\r\nhello\r\na;x=y\r\n0123456789\r\n0\r\nt: 1\r\n\r\n",
    "close": OK + b"connection: close\r\n\r\nto the end",
    "old": b"HTTP/1.0 404 Not Found\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 0\r\n\r\n",
    "empty": b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 304 Not Modified\r\n\r\n",
    "long": OK + b"x: " + b"y" * 600 + b"\r\ncontent-length: 1\r\n\r\nx",
    "cut": OK + b"content-length: 100\r\n\r\nnot all",
    "lengths": OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "size": CHUNKED + b"fffffffffffffff\r\nx",
    "other": b"SSH-2.0-OpenSSH_9.2p1\r\n",
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number, (name, answer) in enumerate(ANSWERS.items()):
        (FOLDER / name).write_bytes(bytes([number]) + answer)


if __name__ == "__main__":
    main()
