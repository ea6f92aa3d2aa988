"""One image file as an array. Whatever an image may mean in two ways raises an error, unless an option decides."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._common.errors import FuncconvError

# Pillow knows more formats, but some of them start other programs (EPS) or are no images for networks (PDF).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
_MODE = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels
_READABLE_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_ORIENTATION = 0x0112  # the number of the EXIF tag
_TRANSPOSES = {  # by the value of that tag
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class DamagedImageError(FuncconvError):
    """The content of a file cannot be decoded, however often it is read."""


@dataclass(frozen=True)
class Decoder:
    """Decodes files to arrays of one shape and dtype. The options are those of `images`."""

    size: tuple[int, int]
    resize: str
    channels: int
    dtype: str
    background: tuple[int, int, int] | None
    animated: str

    def __call__(self, path: str) -> np.ndarray:
        """Return an image, `(height, width, channels)`.

        Raises:
            DamagedImageError: if the file cannot be decoded.
            FuncconvError: if it cannot be read, or an option must say what it means.
        """
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            msg = f"images: {path} cannot be read: {error.strerror}. Check the file, or leave it out with ignore="
            raise FuncconvError(msg) from error
        image = self._converted(self._opened(content, path), path)
        image = _resized(image, self.size, self.resize)
        array = np.asarray(image)
        if image.mode == "F":  # grey, with the values of 16 bits
            grey = np.rint(array / 257).astype(np.uint8) if self.dtype == "uint8" else array / np.float32(65535)
            array = np.repeat(grey[..., None], self.channels, -1)
            array[..., 3:] = 255 if self.dtype == "uint8" else 1  # the opacity, if there is one
            return array
        array = array.reshape(*array.shape[:2], self.channels)  # Pillow has no third axis for grey images
        return array if self.dtype == "uint8" else array / np.float32(255)

    def _opened(self, content: bytes, path: str) -> Any:
        """Return the decoded image of Pillow, upright."""
        from PIL import Image, UnidentifiedImageError

        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            # An MPO file is a photo with previews, so its first picture is the photo.
            is_animated = getattr(image, "is_animated", False) and image.format != "MPO"
            image.load()
            transpose = _TRANSPOSES.get(image.getexif().get(_ORIENTATION, 1))  # after load(), as TIFF files need
        except (MemoryError, Warning):  # of a warning that the user made an error
            raise
        except Image.DecompressionBombError as error:
            msg = f"images: {path} is very large: {error}. If you trust it, set PIL.Image.MAX_IMAGE_PIXELS = None"
            raise FuncconvError(msg) from error
        except Exception as error:  # the decoders of Pillow raise errors of many types
            unknown = f"it begins with {content[:8].hex(' ') or 'nothing'}, like no image file"
            reason = unknown if isinstance(error, UnidentifiedImageError) else error
            msg = f"images: {path} is damaged: {reason}. Get the file again, or leave it out with ignore="
            raise DamagedImageError(msg) from error
        if is_animated and self.animated == "raise":
            msg = f'images: {path} has several pictures. Pass animated="first" to take the first one of such files'
            raise FuncconvError(msg)
        return image.transpose(Image.Transpose[transpose]) if transpose else image

    def _converted(self, image: Any, path: str) -> Any:
        """Return the image in the mode for the channels, or in mode F with the values of 16 bits."""
        if image.mode.startswith("I;16") and not image.has_transparency_data:
            from PIL import Image

            return Image.fromarray(np.asarray(image).astype(np.float32))
        if image.mode not in _READABLE_MODES:
            msg = (
                f"images: {path} has pixels of mode {image.mode!r} in Pillow, whose range is not known. Save it with 8 "
                "or 16 bits without a sign, or leave it out with ignore="
            )
            raise FuncconvError(msg)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if self.channels != 4 and image.getextrema()[3][0] < 255:
                image = self._on_background(image, path)
        return image if image.mode == _MODE[self.channels] else image.convert(_MODE[self.channels])

    def _on_background(self, image: Any, path: str) -> Any:
        from PIL import Image

        if self.background is None:
            msg = (
                f"images: {path} has transparent pixels. Pass background=0 (black), 255 (white) or (red, green, blue) "
                "to put such images on a color, or channels=4 to keep the transparency"
            )
            raise FuncconvError(msg)
        return Image.alpha_composite(Image.new("RGBA", image.size, (*self.background, 255)), image)


def _resized(image: Any, size: tuple[int, int], how: str) -> Any:
    """Return an image of the size (height, width), by linear interpolation with antialiasing."""
    from PIL import Image

    (height, width), bilinear = size, Image.Resampling.BILINEAR
    if image.size == (width, height):
        return image
    if how == "stretch":
        return image.resize((width, height), bilinear)
    scales = width / image.width, height / image.height
    if how == "crop":  # the largest box in the middle with the proportions of the result
        box_width, box_height = width / max(scales), height / max(scales)
        left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
        left, top = max(left, 0.0), max(top, 0.0)  # which rounding may have made negative
        right, bottom = min(left + box_width, image.width), min(top + box_height, image.height)
        return image.resize((width, height), bilinear, box=(left, top, right, bottom))
    inner = max(round(image.width * min(scales)), 1), max(round(image.height * min(scales)), 1)
    padded = Image.new(image.mode, (width, height))  # zeros
    padded.paste(image.resize(inner, bilinear), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return padded
