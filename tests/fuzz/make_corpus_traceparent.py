"""Writes tests/fuzz/corpus/traceparent: traceparent headers, good and bad, one a line."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "corpus/traceparent"
TRACE, PARENT = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
GOOD = b"00-" + TRACE + b"-" + PARENT + b"-01"
HEADERS = {
    "sampled": GOOD,
    "not-sampled": GOOD[:-1] + b"0",
    "twice": GOOD + b"\n" + GOOD,
    "bad-then-good": b"nonsense\n" + GOOD,
    "later": b"cc" + GOOD[2:] + b"-what-comes",
    "later-without-dash": b"cc" + GOOD[2:] + b"0",
    "longer": GOOD + b"-",
    "shorter": GOOD[:-1],
    "version-ff": b"ff" + GOOD[2:],
    "upper": GOOD.upper(),
    "no-trace": b"00-" + b"0" * 32 + b"-" + PARENT + b"-01",
    "no-parent": b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
    "dots": GOOD.replace(b"-", b"."),
    "later-zero-byte": b"cc" + GOOD[2:] + b"-\0",
    "zero-byte": GOOD[:20] + b"\0" + GOOD[21:],
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, header in HEADERS.items():
        (FOLDER / name).write_bytes(header)


if __name__ == "__main__":
    main()
