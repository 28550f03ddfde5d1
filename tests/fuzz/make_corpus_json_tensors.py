"""Writes tests/fuzz/corpus/json_tensors: a byte for the inputs' types, and a request or a number."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "corpus/json_tensors"
# The first type of the target's list, and the one at INT64 for the second input.
FLOAT, FLOAT_AND_INT64, BOOL, UINT64 = 0, 6 * 11, 2, 10
CASES: dict[str, tuple[int, bytes]] = {
    "columns": (FLOAT_AND_INT64, b'{"inputs":{"x":[[1.5,-2],[3e2,0.1]],"ids":[7,-8]}}'),
    "rows": (FLOAT_AND_INT64, b'{"instances":[{"x":[1.5,-2],"ids":7},{"ids":-8,"x":[3,0.25]}]}'),
    "signature": (FLOAT, b'{"signature_name":"scores","instances":[[1],[2]]}'),
    "signature-last": (FLOAT, b'{"instances":[1],"signature_name":"scores"}'),
    "space": (FLOAT, b' {\n"inputs"\t:\r[ 1 , 2 ] } '),
    "scalar": (BOOL, b'{"inputs":true}'),
    "bools": (BOOL, b'{"inputs":[true,false]}'),
    "large": (UINT64, b'{"inputs":[9999999999999999999,18446744073709551615]}'),
    "deep": (FLOAT, b'{"inputs":[[[[[[[[1]]]]]]]]}'),
    "deeper": (FLOAT, b'{"inputs":[[[[[[[[[1]]]]]]]]]}'),
    "ragged": (FLOAT, b'{"inputs":[[1],[2,3]]}'),
    "empty": (FLOAT, b'{"inputs":[]}'),
    "twice": (FLOAT, b'{"inputs":{"x":[1],"x":[2]}}'),
    "cut": (FLOAT, b'{"instances":[{"x":[1.'),
    "strings": (FLOAT, b'{"inputs":["a",{"b64":"AA=="}]}'),
    "escaped": (FLOAT, rb'{"inp\u0075ts":[1]}'),
    "not-finite": (FLOAT, b'{"inputs":[NaN,-Infinity]}'),
    "number-17-digits": (FLOAT, b"0.12345678955316544"),
    "number-middle": (FLOAT, b"9007199254740993e3"),
    "number-long": (FLOAT, b"0.000000000000000000000000012345678901234567"),
    "number-exponent": (FLOAT, b"-1.5E-27"),
    "number-large": (FLOAT, b"9999999999999999999e27"),
    "number-minus-zero": (FLOAT, b"-0.0"),
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (types, text) in CASES.items():
        (FOLDER / name).write_bytes(bytes([types]) + text)


if __name__ == "__main__":
    main()
