"""SavedModels on disk, read and rewritten without TensorFlow.

Used by `fastserve inspect` and by trial processes. Knows the format, not who serves it.
"""

from fastserve.savedmodel.metadata import map_of_signatures
from fastserve.savedmodel.read import SavedModelError, read
from fastserve.savedmodel.rewrite import prepare
from fastserve.savedmodel.signature import INTERNAL, Feature, Port, SavedModel, Signature

__all__ = [
    "INTERNAL",
    "Feature",
    "Port",
    "SavedModel",
    "SavedModelError",
    "Signature",
    "map_of_signatures",
    "prepare",
    "read",
]
