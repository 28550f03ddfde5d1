"""What `fastserve export` has made, on the terminal."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from rich.markup import escape

from fastserve.cli_inspect import print_signatures
from fastserve.workshop.export import Exported, Wanted

_DEFAULT_SIGNATURE = "serving_default"


def show(wanted: Wanted, exported: Exported) -> None:
    """The version's place, how it was compared, and its signatures."""
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    say(f"[bold]{escape(exported.saved_model.path)}[/bold]  from {escape(wanted.source)}, {exported.what}")
    rows = ", ".join(map(str, exported.rows))
    if exported.difference is None:
        say(f"runs at {rows} rows; predictions not compared (--no-compare)")
    else:
        say(
            f"predicts as the source does at {rows} rows; largest difference "
            f"{exported.difference.absolute:.2g}, relative {exported.difference.relative:.2g}"
        )
    for name, chunk in exported.relaxed.items():
        say(f"{escape(name)} takes any number of rows; the source takes {chunk} at a time")
    if exported.warmup_requests:
        count = exported.warmup_requests
        say(f"{count} warm-up request{'' if count == 1 else 's'}, see `fastserve warmup show`")
    # Without what TensorFlow puts in for itself.
    called = tuple(one for one in exported.saved_model.signatures if not one.internal)
    print_signatures(console, replace(exported.saved_model, signatures=called))
    if exported.saved_model.signature(_DEFAULT_SIGNATURE) is None:
        say(f"\nthere is no {_DEFAULT_SIGNATURE}: callers have to name the signature")
