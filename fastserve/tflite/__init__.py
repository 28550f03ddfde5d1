"""TFLite models on disk, read without TensorFlow or LiteRT.

Used by sources, trial processes and `fastserve inspect`. Knows the format, not who serves it.
"""

from fastserve.tflite.flatbuffer import BadFlatbuffer
from fastserve.tflite.read import MODEL, TFLiteError, read, why_cut_short, with_rows

__all__ = ["MODEL", "BadFlatbuffer", "TFLiteError", "read", "why_cut_short", "with_rows"]
