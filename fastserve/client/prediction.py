"""What predict gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]


class Prediction(dict[str, "Array"]):
    """The outputs, arrays by name. They lie over the reply that was received, so keeping one keeps all.

    model, version and signature say what answered, as far as the server told (version: None, texts: "" where
    it did not).
    """

    __slots__ = ("model", "signature", "version")

    model: str
    version: int | None
    signature: str

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self.items())
        return f"<Prediction of {self.model!r} version {self.version}: {outputs}>"
