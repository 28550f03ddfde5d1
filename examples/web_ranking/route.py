"""Ad ranking over HTTP: a user and candidates as raw JSON in, the best of them with their scores out.

    pip install 'fastserve[tensorflow]'
    python examples/web_ranking/model.py
    fastserve serve examples/web_ranking/config.toml
    curl http://127.0.0.1:8501/rank -d '{"user": {"id": "u17", "country": "DE", "age": 31},
        "ads": [{"id": "a1", "category": "garden", "price": 9.5, "shown": 12},
                {"id": "a2", "category": "music", "price": 3.0, "shown": 0}]}'

Ids are hashed, the country is looked up in a vocabulary (countries.txt), country and category are crossed,
and numbers go in as their logarithms: features.py, which training uses as well. Every candidate is a row of
one request to the model. Both functions are async, so a worker has up to `concurrency` requests at the model
at once.
"""

from __future__ import annotations

import numpy as np
from features import columns_of, pack

from fastserve.web import BadRequest, Request

MAX_ADS = 1000
TOP = 10


async def preprocess(request: Request) -> dict[str, np.ndarray]:
    body = request.json()
    ads = body.get("ads") if isinstance(body, dict) else None
    if not isinstance(ads, list) or not 1 <= len(ads) <= MAX_ADS:
        raise BadRequest(f'expected {{"user": {{...}}, "ads": [...]}} with 1 to {MAX_ADS} ads')
    try:
        inputs = pack(columns_of(body))
    except KeyError as error:
        raise BadRequest(f"{error.args[0]} is missing") from None
    except (TypeError, ValueError) as error:  # a ColumnError names the column
        raise BadRequest(f"a feature is not what it should be: {error}") from None
    request.state["ads"] = [ad["id"] for ad in ads]
    return inputs


async def postprocess(outputs: dict[str, np.ndarray], request: Request) -> dict[str, object]:
    scores = outputs["score"]
    best = np.argsort(-scores, kind="stable")[:TOP]
    return {"ads": [{"id": request.state["ads"][i], "score": scores[i]} for i in best], "of": request.rows}
