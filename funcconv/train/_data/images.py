"""Batches of image files, which threads decode while earlier batches are used."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, Literal

import numpy as np

from ..._common.errors import FuncconvError
from ..._common.optional_packages import needs
from ..._common.paths import checked_path
from ..._common.types import Array
from .batches import Batches
from .decode import DamagedImageError, Decoder
from .folder import Listing, listed
from .image_options import (
    Dtype,
    OnAnimation,
    OnDamage,
    Resize,
    check_choices,
    checked_classes,
    checked_color,
    checked_patterns,
    checked_size,
    checked_split,
    checked_workers,
)


class Images(Batches):
    """Batches of image files; `images` makes one.

    Attributes:
        classes: the names of the classes, by label.
        files: the path of each image, relative to the folder.
        labels: the label of each image, int32, `(examples,)`.
    """

    _op = "images"

    def __init__(self, examples: "_ImageFiles", listing: Listing, *args: Any, **options: Any) -> None:
        super().__init__(examples, *args, **options)
        self.classes, self.files, self.labels = listing.classes, listing.files, listing.labels.copy()


class _ImageFiles:
    """Image files as `Examples`."""

    def __init__(self, root: str, listing: Listing, decoder: Decoder, corrupt: OnDamage, workers: int | None) -> None:
        self._root, self._listing, self._decoder, self._corrupt = root, listing, decoder, corrupt
        self.count = len(listing.files)
        self._damaged: dict[int, str] = {}  # reasons by the number of the file
        self._reported: set[int] = set()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="funcconv-images")

    def read(self, order: np.ndarray, part: slice) -> "_Decoding":
        """Begin to decode the images `order[part]`."""
        places, decoder = range(part.start, part.stop), self._decoder
        batch = {
            "image": np.empty((len(places), *decoder.size, decoder.channels), decoder.dtype),
            "label": np.empty(len(places), np.int32),
        }
        tasks = [self._threads.submit(self._decode, order, place, batch, i) for i, place in enumerate(places)]
        return _Decoding(self, batch, tasks)

    def options(self) -> dict[str, Any]:
        """Return the options, and a digest of the names of the files."""
        names = "\n".join([*self._listing.classes, "", *self._listing.files])
        digest = hashlib.sha256(os.fsencode(names)).hexdigest()[:16]
        return {"files": f"{self.count} (sha256 {digest})", **vars(self._decoder), "corrupt": self._corrupt}

    def report_damaged(self) -> None:
        """Warn of each file that was skipped, once."""
        for number in sorted(set(self._damaged) - self._reported):
            self._reported.add(number)
            warnings.warn(f"{self._damaged[number]}. It is skipped, and another file is in its place.", stacklevel=6)

    def _decode(self, order: np.ndarray, place: int, batch: dict[str, np.ndarray], i: int) -> None:
        """Write example `i` of a batch: the first readable file of the epoch's order, from `place` on.

        So the batch depends only on its number and on the files, not on the order in which threads find damage.
        """
        for j in chain(range(place, len(order)), range(place)):
            number = int(order[j])
            if number in self._damaged:
                continue
            try:
                batch["image"][i] = self._decoder(os.path.join(self._root, self._listing.files[number]))
            except DamagedImageError as error:
                if self._corrupt == "raise":
                    raise
                self._damaged[number] = str(error)
                continue
            batch["label"][i] = self._listing.labels[number]
            return
        msg = f"images: all {len(order)} files in {self._root} are damaged; for example {self._damaged[int(order[0])]}"
        raise FuncconvError(msg)


class _Decoding:
    """A batch of images that threads decode."""

    def __init__(self, files: _ImageFiles, batch: dict[str, np.ndarray], tasks: list[Future[None]]) -> None:
        self._files, self._batch, self._tasks = files, batch, tasks

    def is_ready(self) -> bool:
        return all(task.done() and task.exception() is None for task in self._tasks)

    def result(self) -> dict[str, np.ndarray]:
        for task in self._tasks:
            task.result()
        self._files.report_damaged()
        return self._batch


def images(
    folder: str | os.PathLike[str],
    batch_size: int,
    key: Array | None = None,
    *,
    size: int | tuple[int, int],
    resize: Resize = "crop",
    channels: Literal[1, 3, 4] = 3,
    dtype: Dtype = "float32",
    background: int | tuple[int, int, int] | None = None,
    classes: Sequence[str] | None = None,
    split: tuple[float, float] | None = None,
    ignore: str | Sequence[str] = (),
    corrupt: OnDamage = "raise",
    animated: OnAnimation = "raise",
    epochs: int | None = None,
    drop_last: bool = True,
    shard: tuple[int, int] | None = None,
    sharding: Any = None,
    prefetch: int = 2,
    workers: int | None = None,
) -> Images:
    """Make an iterator over batches of image files in a folder that has one subfolder for each class.

    Threads decode the next batches while you use the last one. As with `batches`, the order of an epoch depends only on
    the key and the number of the epoch. So `fit` resumes a run at the right image, and the result is the same to the
    bit for the same files and the same version of Pillow.

    The subfolders contain images only: BMP, GIF, JPEG, PNG, PPM, TIFF and WebP files, with the usual endings. The
    content of a file decides how it is decoded, not its ending. Files and folders whose names begin with a dot are
    left out. Links are followed. Anything else, such as a text file or a folder within a class, raises an error that
    names it, unless `ignore` matches it.

    Images are turned upright as their EXIF orientation says. Color profiles are not applied. Images of all modes are
    converted: grey and palette images, CMYK as Pillow converts it without a profile, color to grey by ITU-R 601. Grey
    images of 16 bits are scaled by 1 / 65535; of color images of 16 bits, Pillow reads the upper 8 bits.

    Args:
        folder: the path of the folder, such as `"photos"` for `photos/cat/001.jpg`.
        batch_size: the number of images in a batch.
        key: the random key of the order. Default: the order of the names, class by class.
        size: the height and width of the images, `(height, width)`; an int for both.
        resize: how an image of another size is resized, by linear interpolation with antialiasing. `"crop"` scales it
            until it covers the size, and cuts off what is too much on both sides. `"pad"` scales it until it fits, and
            fills both sides with zeros. `"stretch"` changes its proportions. Default: `"crop"`.
        channels: 1 for grey, 3 for RGB or 4 for RGB and opacity. Default: 3.
        dtype: `"float32"` for values from 0 to 1, or `"uint8"` for values from 0 to 255. With uint8, a quarter of the
            bytes is copied to the device; divide by 255 in the loss. Default: `"float32"`.
        background: the color that transparent pixels are put on, from 0 to 255: an int, or `(red, green, blue)`.
            Default: an image with transparent pixels raises an error, unless `channels` is 4.
        classes: the names of the classes, in the order of their labels. Pass `classes=train.classes` for test data, so
            that both have the same labels. A class may then have no images. Default: the sorted names of the
            subfolders, each of which must have an image.
        split: `(low, high)` selects the images for which a hash of the file's name lies from `low` to below `high`,
            within 0 and 1. For example `(0, 0.8)` for training and `(0.8, 1)` for testing: the parts have no image in
            common, about 80 % and 20 % of the images, and a new image does not move the others. Images of one name in
            several classes are in the same part. Default: all images. If the parts are in folders of their own, call
            `images("photos/train", ...)` and `images("photos/test", ...)`.
        ignore: a pattern, or several, of names or paths to leave out: `"*.txt"`, `"cat/007.jpg"`, `"unlabelled"`.
            `*` matches anything. Default: none.
        corrupt: what happens if a file is damaged, so that it cannot be decoded. `"raise"` raises an error that names
            it. `"skip"` warns, and the next readable file in the order of the epoch takes its place, so that batches
            keep their size; that file is then used twice in the epoch. Which files are used depends only on the
            files, so a resumed run uses the same ones. A file that cannot be read, for example without permission, is
            not skipped, because it may be readable again when the run is resumed. Default: `"raise"`.
        animated: what happens if a file has several pictures: `"raise"` or `"first"`. Default: `"raise"`.
        epochs: how many times to go through all images. Default: without end.
        drop_last: whether to leave out the last images of an epoch if they do not fill a batch. False returns them as a
            smaller batch. Default: True.
        shard: `(i, n)` decodes and returns only the i-th of n equal parts of each batch, which is what the i-th of n
            processes needs. Default: `(jax.process_index(), jax.process_count())` with a `sharding`; otherwise the
            whole batch.
        sharding: a `jax.sharding.Sharding` that spreads the whole batch over devices. Default: the default device.
        prefetch: how many batches are decoded and copied to the device before you ask for them. Default: 2.
        workers: the number of threads. Default: that of `concurrent.futures.ThreadPoolExecutor`.

    Returns:
        An iterator over batches `{"image": (batch, height, width, channels), "label": (batch,)}` of the given dtype and
        int32. It has these attributes: `classes`, `files` (paths within the folder), `labels` (one for each file),
        `position` (the number of batches taken), `seek(position)`, `per_epoch` (the number of batches in an epoch), and
        `[number]`, which returns a batch in the memory of the host.

    Raises:
        FuncconvError: if Pillow is missing, an option is out of range, or the folder has other entries, an empty class
            or no images. The iterator raises it for a file that cannot be read or decoded, when it returns its batch.

    Example:
        >>> import funcconv as fc, numpy as np, os, tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, value in (("dark", 0), ("light", 255)):
        ...         os.mkdir(os.path.join(folder, name))
        ...         Image.new("RGB", (12, 8), (value,) * 3).save(os.path.join(folder, name, "1.png"))
        ...     data = fc.train.images(folder, 2, size=8)
        ...     batch = next(data)
        >>> data.classes, batch["image"].shape, batch["label"].tolist(), float(batch["image"][1].min())
        (('dark', 'light'), (2, 8, 8, 3), [0, 1], 1.0)
    """
    root = str(checked_path("images", folder, wants="folder").absolute())
    check_choices(resize=resize, channels=channels, dtype=dtype, corrupt=corrupt, animated=animated)
    decoder = Decoder(checked_size(size), resize, channels, dtype, checked_color(background), animated)
    threads = checked_workers(workers)
    with needs("images", "images"):
        from PIL import Image
    Image.init()  # loads the decoders of all formats
    listing = listed(root, checked_classes(classes), checked_split(split), checked_patterns(ignore))
    return Images(
        _ImageFiles(root, listing, decoder, corrupt, threads),
        listing,
        batch_size,
        key,
        epochs=epochs,
        drop_last=drop_last,
        shard=shard,
        sharding=sharding,
        prefetch=prefetch,
    )
