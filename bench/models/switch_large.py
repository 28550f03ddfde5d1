"""Three versions of the ranker of dcn.py with larger tables, 300 MB each; see ranker_versions.py."""

from __future__ import annotations

from ranker_versions import main

# The five largest of the 26 fields have so many rows, of 64 bytes; the others need less.
MOST_FIELD_ROWS = 823_000

if __name__ == "__main__":
    main(__doc__, MOST_FIELD_ROWS)
