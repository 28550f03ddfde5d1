"""What GetModelMetadata tells of a version: from its saved_model.pb, or from its signatures alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unit.saved_model_files import add_signature, meta_graph, tensor_info, write

from fastserve.protos import message
from fastserve.savedmodel import Port, Signature, map_of_signatures, read


def parsed(data: bytes) -> Any:
    return message("tensorflow.serving.SignatureDefMap").FromString(data)


def test_a_meta_graphs_signatures_without_defaults(tmp_path: Path) -> None:
    meta = meta_graph()
    signature = add_signature(meta, "score", {"a": tensor_info("a:0", 1, (2,))}, {"y": tensor_info("y:0", 7, None)})
    signature.defaults["a"] = b"\x08\x01"
    add_signature(meta, "__saved_model_init_op", {}, {"op": message("tensorflow.TensorInfo")(name="NoOp")})
    # What only a later TensorFlow knows passes through.
    signature.MergeFromString(b"\xfa\x3f\x02hi")
    told = parsed(read(write(tmp_path, meta)).signature_def_map)
    assert sorted(told.signature_def) == ["__saved_model_init_op", "score"]
    expected = type(signature)()
    expected.CopyFrom(signature)
    expected.ClearField("defaults")
    assert told.signature_def["score"].SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )
    assert b"\xfa\x3f\x02hi" in told.signature_def["score"].SerializeToString()


def test_a_plug_ins_signatures() -> None:
    signatures = [
        Signature(
            "serving_default",
            "tensorflow/serving/predict",
            (Port("x", "x:0", 1, (-1, 3)), Port("k", "k:0", 9, (), default=b"\x08\x09")),
            (Port("y", "y:0", 7, None),),
        ),
        Signature("empty", "", (), ()),
    ]
    told = parsed(map_of_signatures(signatures)).signature_def
    assert sorted(told) == ["empty", "serving_default"]
    one = told["serving_default"]
    assert one.method_name == "tensorflow/serving/predict"
    assert one.inputs["x"] == tensor_info("x:0", 1, (-1, 3))
    assert one.inputs["k"] == tensor_info("k:0", 9, ())
    assert one.outputs["y"] == tensor_info("y:0", 7, None)
    assert not one.defaults
