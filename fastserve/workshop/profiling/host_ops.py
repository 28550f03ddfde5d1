"""Ops that work for the model what its caller could do cheaper: strings, vocabularies, parsing, one-hot
vectors, feature columns. What each is, and what would take its place. Pure.

They run on the server, inside the run that everybody waits for, and most of them XLA does not compile. A
caller has fastserve.client.features, which does the same in C for all rows at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastserve.workshop.profiling.graph import Node

STRINGS, LOOKUPS, PARSING, ONE_HOT, COLUMNS = "strings", "lookup", "parsing", "one-hot", "feature column"

_STRING_OPS = re.compile(
    r"^(String\w+|RegexReplace|RegexFullMatch|StaticRegex\w+|AsString|Substr|ReduceJoin|UnsortedSegmentJoin|Unicode\w+"
    r"|DecodeBase64|EncodeBase64|Fingerprint)$"
)
_LOOKUP_OPS = re.compile(
    r"^(LookupTable(Find|Import|Size)\w*|(Mutable|Anonymous)?\w*HashTable\w*|InitializeTable\w*)$"
)
_PARSING_OPS = re.compile(
    r"^(Parse(Single|Sequence|SingleSequence)?Example\w*|ParseTensor|DecodeProto\w*|DecodeRaw|DecodePaddedRaw|DecodeCSV"
    r"|DecodeJSONExample|Decode(Jpeg|Png|Image|Bmp|Gif|AndCropJpeg|Compressed|Wav))$"
)
_ONE_HOT_OPS = frozenset({"OneHot"})
_BUCKET_OPS = frozenset({"Bucketize", "SparseCross", "SparseCrossV2", "SparseCrossHashed"})
_COLUMN_SCOPES = re.compile(
    r"(^|/)(dense_features(_\d+)?|input_layer(_\d+)?|linear_model(_\d+)?|sequence_features(_\d+)?|[^/]*_(bucketized"
    r"|indicator|embedding_weights|weighted_sum|hash_bucket|X_[^/]*))(/|$)"
)
# Between a one-hot vector and the product with it: ops that only move or add values.
_CARRY = frozenset(
    {
        "Identity",
        "Reshape",
        "Cast",
        "ExpandDims",
        "Squeeze",
        "ConcatV2",
        "Concat",
        "Sum",
        "Mean",
        "Transpose",
        "Pack",
    }
)
_PRODUCTS = frozenset({"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "_FusedMatMul", "Einsum"})
_CARRY_DEPTH = 6

_HASHES = "fastserve.client.features: Hash(column, buckets) gives the same ids; send them as int64"
_REPLACEMENTS: Mapping[str, str] = {
    STRINGS: "do it where the request is made, and send numbers",
    LOOKUPS: "fastserve.client.features: Lookup(column, Vocabulary.from_file(...)) gives the same ids; send "
    "them as int64",
    PARSING: "a signature that takes tensors: fastserve.client.features.Packer makes them of columns; "
    "tf.Examples are parsed inside the run",
    ONE_HOT: "send the ids and look the rows up (tf.gather), or leave the vector out where it only selects",
    COLUMNS: "fastserve.client.features.Packer: Hash, Cross, Bucketize, Lookup, Dense make the same values",
}
_SPECIAL: Mapping[str, str] = {
    "StringToHashBucketFast": _HASHES,
    "StringToHashBucketStrong": _HASHES + " (kind and key as in the graph)",
    "StringToHashBucket": "StringToHashBucketFast in the model: its ids fastserve.client.features.Hash gives",
    "StringToNumber": "send the numbers",
    "AsString": "send what it leads to; fastserve.client.features.Hash hashes integers by their decimal text",
    "Bucketize": "fastserve.client.features: Bucketize(column, boundaries) gives the same buckets",
    "SparseCross": "fastserve.client.features: Cross gives the same ids",
    "SparseCrossV2": "fastserve.client.features: Cross gives the same ids",
    "SparseCrossHashed": "fastserve.client.features: Cross gives the same ids",
    "DecodeRaw": "send the numbers as a tensor",
    "DecodeCSV": "send the columns as tensors",
    "DecodeJpeg": "send the pixels as a tensor, or decode in a route's preprocess (see Web service)",
    "DecodePng": "send the pixels as a tensor, or decode in a route's preprocess (see Web service)",
    "DecodeImage": "send the pixels as a tensor, or decode in a route's preprocess (see Web service)",
}


@dataclass(frozen=True, slots=True)
class HostOp:
    """A node that belongs before the model. `feeds`: of a one-hot vector the product that it goes into, or
    empty."""

    node: str
    op: str
    kind: str
    replacement: str
    feeds: str = ""


def find_host_ops(nodes: Sequence[Node]) -> list[HostOp]:
    """In the graph's order."""
    consumers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            consumers.setdefault(name, []).append(node)
    found = []
    for node in nodes:
        kind = kind_of(node)
        if not kind:
            continue
        replacement, feeds = _SPECIAL.get(node.op, _REPLACEMENTS[kind]), ""
        if kind == ONE_HOT:
            product = _product(node, consumers)
            if product is not None:
                feeds = product.name
                replacement = (
                    "tf.gather (embedding_lookup) of the matrix's rows by the ids instead of the product"
                )
        found.append(HostOp(node.name, node.op, kind, replacement, feeds))
    return found


def kind_of(node: Node) -> str:
    """Empty for what is the model's own work."""
    if _PARSING_OPS.match(node.op):
        return PARSING
    if _LOOKUP_OPS.match(node.op):
        # The table itself takes no time.
        return LOOKUPS if node.op.startswith("LookupTableFind") else ""
    if _STRING_OPS.match(node.op):
        return STRINGS
    if node.op in _ONE_HOT_OPS:
        return ONE_HOT
    if node.op in _BUCKET_OPS or (node.op.startswith("Sparse") and _COLUMN_SCOPES.search(node.name)):
        return COLUMNS
    return ""


def _product(start: Node, consumers: Mapping[str, Sequence[Node]]) -> Node | None:
    """The first matrix product that the vector goes into, through ops that only carry it."""
    front = [start]
    for _ in range(_CARRY_DEPTH):
        following = [node for name in front for node in consumers.get(name.name, ())]
        for node in following:
            if node.op in _PRODUCTS:
                return node
        front = [node for node in following if node.op in _CARRY]
    return None
