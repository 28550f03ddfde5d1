"""The live page's file: nothing from elsewhere, nothing that its policy forbids, colours that can be read.

What it does in a browser is in tests/e2e/test_page.py.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import product

import pytest

from fastserve.monitor import page

TEXT = page.body().decode()
# What is text, and what it stands on.
WORDS = ("ink", "soft", "accent", "good", "busy", "warn", "bad")
GROUNDS = ("back", "panel", "raised")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.inline: list[tuple[str, str]] = []
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style") and data.strip():
            self.inline.append((self._open, data))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


@pytest.fixture(scope="module")
def tags() -> Tags:
    tags = Tags()
    tags.feed(TEXT)
    return tags


def test_it_names_no_other_host(tags: Tags) -> None:
    assert set(re.findall(r"https?://[\w.:-]+", TEXT)) <= {
        "http://www.w3.org"
    }  # svg's name, which nobody asks
    places = [value for _, name, value in tags.attributes if name in ("src", "href", "action", "srcset")]
    assert places
    assert all(re.match(r"data:|#|[\w./]+$", place) and not place.startswith("/") for place in places)
    assert not re.search(r"@import|url\(", TEXT)


def test_the_policy_allows_its_scripts_and_styles_and_nothing_else(tags: Tags) -> None:
    policy = dict(part.split(" ", 1) for part in page.headers()["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy) and "*" not in str(policy)
    kinds = [kind for kind, _ in tags.inline]
    assert kinds.count("style") == 1 and kinds.count("script") == 2
    for kind in ("script", "style"):
        digests = [hashlib.sha256(text.encode()).digest() for of, text in tags.inline if of == kind]
        assert policy[f"{kind}-src"].split() == [f"'sha256-{base64.b64encode(d).decode()}'" for d in digests]


def test_it_has_no_inline_attributes_that_the_policy_would_refuse(tags: Tags) -> None:
    assert not [name for _, name, _ in tags.attributes if name == "style" or name.startswith("on")]


def test_what_the_daemon_says_cannot_become_markup() -> None:
    names = "innerHTML outerHTML insertAdjacentHTML document.write eval( Function( createContextualFragment"
    assert not [name for name in names.split() if name in TEXT]


def test_ids_are_there_once_and_what_is_named_exists(tags: Tags) -> None:
    ids = [value for _, name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("([\w-]+)"\)', TEXT)) <= set(ids)
    labels = [value for _, name, value in tags.attributes if name == "aria-labelledby"]
    assert labels and set(labels) <= set(ids)


def test_it_is_small() -> None:
    assert len(page.body()) < 100_000


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(theme: str) -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for lines of charts."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", TEXT)
    colours = {name: light if theme == "light" else dark for name, light, dark in pairs}

    def contrast(one: str, other: str) -> float:
        high, low = sorted((_luminance(colours[one]), _luminance(colours[other])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert not {pair: contrast(*pair) for pair in product(WORDS, GROUNDS) if contrast(*pair) < 4.5}
    lines = ("requests", "p50", "p99", "p999", "waiting", "errors", "expired", "shed", "cancelled", "idle")
    assert not {name: contrast(name, "panel") for name in lines if contrast(name, "panel") < 3}
