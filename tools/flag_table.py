"""Writes docs/tfserving_flags.md, the table of tensorflow_model_server's flags, from the one in the code.

python tools/flag_table.py           # writes it
python tools/flag_table.py OUTPUT    # writes it elsewhere (the test that compares the two)
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fastserve.compat.flag_table import FLAGS, Flag, Verdict  # noqa: E402

HEAD = """# TensorFlow Serving's flags

What `tensorflow_model_server` and `fastserve tfserving` make of each flag. *works*: the key of the
configuration that says the same. *no effect*: it is accepted, and a line with the reason is printed when it
is given. *refused*: the start ends before anything is started, with what to use instead. `fastserve import`
writes the keys into a `config.toml`.

This file is made by `python tools/flag_table.py` from `fastserve/compat/flag_table.py`.

| flag | type | default | here | |
|---|---|---|---|---|
"""


def row(flag: Flag) -> str:
    default = f"`{flag.shown_default}`" if flag.shown_default else ""
    if flag.default is None:
        default = "by the processors"
    text = flag.text.replace("|", "\\|")
    return f"| `--{flag.name}` | {flag.kind} | {default} | {flag.verdict.value} | {text} |\n"


def main(output: Path) -> None:
    counts = ", ".join(
        f"{sum(flag.verdict is verdict for flag in FLAGS)} {verdict.value}" for verdict in Verdict
    )
    text = HEAD + "".join(map(row, FLAGS)) + f"\n{len(FLAGS)} flags: {counts}.\n"
    output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "tfserving_flags.md")
