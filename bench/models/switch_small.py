"""Three versions of the 33 MB ranker of dcn.py; see ranker_versions.py."""

from __future__ import annotations

from ranker_versions import main, ranking

if __name__ == "__main__":
    main(__doc__, ranking.MAX_FIELD_ROWS)
