"""The live page as it is served at `/`: index.html's bytes, and the headers to send with them.

Called by the monitor's HTTP application, on control's loop; whoever calls first reads the file. The page is
one file whose style and scripts stand in it, and needs nothing but history.json and events beside it. It
knows of no other host: the policy in `headers` lets a browser run exactly these scripts and ask nobody else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("index.html")


@cache
def body() -> bytes:
    """The document, UTF-8."""
    return _FILE.read_bytes()


@cache
def headers() -> dict[str, str]:
    """What goes with it. The policy names scripts and styles by their hashes, so it fits this body only."""
    policy = {
        "default-src": "'none'",
        "script-src": _hashes("script"),
        "style-src": _hashes("style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hashes(tag: str) -> str:
    """The inline elements of one kind, as a policy's sources."""
    found = re.findall(rf"<{tag}(?:\s[^>]*)?>(.*?)</{tag}>".encode(), body(), re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found)
