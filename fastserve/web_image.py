"""Images: a file's bytes to a decoded image, within bounds. Used by fastserve.web alone; any thread."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from fastserve.web import BadRequest

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels, in decoders that many have looked at. Pillow knows others that start programs (EPS: Ghostscript), or
# that hardly anybody uses but who looks for holes.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def open_image(data: bytes, mode: str, max_pixels: int) -> Image:
    """The image in `data`, the first frame of one that moves. BadRequest; ImportError without Pillow."""
    try:
        from PIL import Image, UnidentifiedImageError

        Image.init()
    except ImportError:
        raise ImportError("Request.image() needs Pillow: pip install 'fastserve[image]'") from None

    if not data:
        raise BadRequest("there is no image: the body is empty")
    try:
        with warnings.catch_warnings():
            # What Pillow notes about damaged files, and about sizes: our own limit is the one that counts.
            warnings.simplefilter("ignore")
            formats = [name for name in _FORMATS if name in Image.OPEN]
            image = Image.open(io.BytesIO(data), formats=formats)
            if image.width * image.height <= max_pixels:
                image.load()
    except (Image.DecompressionBombError, MemoryError):
        raise BadRequest("the image has too many pixels", 413) from None
    except UnidentifiedImageError:
        raise BadRequest("this is not an image, or in a format that is not known", 415) from None
    except Exception as error:  # what damaged files make the decoders raise has no common base
        raise BadRequest(f"the image cannot be decoded: {error}") from None
    if image.width * image.height > max_pixels:
        raise BadRequest(
            f"the image has {image.width} x {image.height} pixels, more than {max_pixels} in all", 413
        )
    return image.convert(mode)
