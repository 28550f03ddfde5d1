"""Raw features to the model's inputs: used by model.py for training and by route.py for serving, so that both
mean the same. Hashing, the vocabulary and packing are fastserve.client.features, in C.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastserve.client.features import Cross, Dense, Hash, Lookup, Packer, Vocabulary

USERS, ADS, TASTES = 10_000, 2_000, 500
COUNTRIES = Vocabulary.from_file(Path(__file__).parent / "countries.txt")  # 0: any other
# Ids of each column of `ids`.
BUCKETS = (USERS, ADS, len(COUNTRIES), TASTES)

pack = Packer(
    {
        "ids": [
            Hash("user", USERS),
            Hash("ad", ADS),
            Lookup("country", COUNTRIES),
            Cross(("country", "category"), TASTES),
        ],
        "counts": Dense(("age", "price", "shown"), log1p=True),
    }
)


def columns_of(request: dict[str, Any]) -> dict[str, np.ndarray]:
    """One column for each raw feature, a row for each ad. KeyError names what is missing."""
    user, ads = request["user"], request["ads"]
    rows = len(ads)
    return {
        "user": np.array([user["id"]] * rows, object),
        "country": np.array([user["country"]] * rows, object),
        "age": np.full(rows, user["age"], np.float32),
        "ad": np.array([ad["id"] for ad in ads], object),
        "category": np.array([ad["category"] for ad in ads], object),
        "price": np.array([ad["price"] for ad in ads], np.float32),
        "shown": np.array([ad["shown"] for ad in ads], np.float32),
    }
