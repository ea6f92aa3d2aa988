"""Folders of images: what is read, in which order, what is refused, and that runs on them are resumed exactly."""

import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from available import needed

import funcconv as fc

Image = needed("PIL.Image")
pytestmark = pytest.mark.usefixtures("climate_of_a_user")

COLORS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def written(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = COLORS if image is None else image
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def read(path, **options):
    """Return the only image of a class, at its own size unless `size` is given."""
    data = fc.train.images(path.parents[1], 1, **{"size": COLORS.shape[:2], "dtype": "uint8"} | options)
    assert data.files == (f"{path.parent.name}/{path.name}",)
    return np.asarray(next(data)["image"][0])


@pytest.fixture
def photos(tmp_path, rng):
    """Three classes of 7 images, of which each has a color of its own."""
    for name in ("cat", "dog", "owl"):
        for i in range(7):
            image = np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (6, 5, 3))
            written(tmp_path / "photos" / name / f"{i}.png", np.array(image))
    return tmp_path / "photos"


# what is read -------------------------------------------------------------------------------------------------


def test_files_and_labels_are_in_the_order_of_names(photos, monkeypatch):
    data = fc.train.images(photos, 7, size=4)
    assert data.classes == ("cat", "dog", "owl")
    assert data.files[6:8] == ("cat/6.png", "dog/0.png")
    assert data.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert repr(data) == "Images(21 examples, batches of 7, next batch 0)"
    batch = next(data)
    assert batch["image"].shape == (7, 4, 4, 3)
    assert (batch["image"].dtype, batch["label"].dtype) == (np.float32, np.int32)
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: _Reversed(scandir(path)))
    assert fc.train.images(photos, 7, size=4).files == data.files


class _Reversed:
    """The entries of a folder, as another file system may list them."""

    def __init__(self, entries):
        self.entries = entries

    def __enter__(self):
        return reversed(list(self.entries))

    def __exit__(self, *_):
        self.entries.close()


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_batches_are_found_again(photos, prefetch):
    def make():
        return fc.train.images(photos, 8, jax.random.key(0), size=5, drop_last=False, prefetch=prefetch)

    through = make()
    expected = [next(through) for _ in range(7)]
    again = make().seek(4)
    for batch in expected[4:]:
        jax.tree.map(np.testing.assert_array_equal, next(again), batch)
    labels = np.concatenate([batch["label"] for batch in expected[:3]])
    assert sorted(labels.tolist()) == sorted(through.labels.tolist())
    assert labels.tolist() != through.labels.tolist()
    assert expected[2]["image"].shape == (5, 5, 5, 3)


def test_shards_make_up_the_batch(photos):
    parts = [next(fc.train.images(photos, 6, jax.random.key(1), size=4, shard=(i, 3))) for i in range(3)]
    whole = next(fc.train.images(photos, 6, jax.random.key(1), size=4))
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_batches_are_spread_over_devices(photos):
    spread = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
    batch = next(fc.train.images(photos, 6, size=4, sharding=spread))
    assert batch["image"].sharding == spread
    np.testing.assert_array_equal(batch["image"], fc.train.images(photos, 6, size=4)[0]["image"])


def test_the_next_batches_are_decoded_while_one_is_used(photos):
    threads = set()
    data = fc.train.images(photos, 3, size=4, prefetch=2, workers=2)
    decoder = data._examples._decoder
    data._examples._decoder = _Watched(decoder, threads)
    next(data)
    begun = time.monotonic()
    while data._examples._decoder.count < 9 and time.monotonic() < begun + 60:
        time.sleep(0.001)
    assert data._examples._decoder.count == 9
    assert threading.get_ident() not in threads


class _Watched:
    def __init__(self, decoder, threads):
        self.decoder, self.threads, self.count = decoder, threads, 0
        self.size, self.channels, self.dtype, self.lock = (
            decoder.size,
            decoder.channels,
            decoder.dtype,
            threading.Lock(),
        )

    def __call__(self, path):
        with self.lock:
            self.count += 1
            self.threads.add(threading.get_ident())
        return self.decoder(path)


def test_parts_by_the_hash_of_the_name(photos):
    parts = [
        fc.train.images(photos, 1, size=4, split=split).files for split in ((0, 0.5), (0.5, 0.75), (0.75, 1), (0, 1))
    ]
    assert sorted(parts[0] + parts[1] + parts[2]) == sorted(parts[3])
    assert len(parts[3]) == 21
    for file in parts[3]:
        place = int(hashlib.sha256(file[4:].encode()).hexdigest()[:12], 16) / 16**12
        assert (file in parts[0], file in parts[1], file in parts[2]) == (
            place < 0.5,
            0.5 <= place < 0.75,
            place >= 0.75,
        )
    written(photos / "cat" / "new.png")
    assert set(parts[0]) <= set(fc.train.images(photos, 1, size=4, split=(0, 0.5)).files)


def test_classes_of_the_training_data(photos):
    train = fc.train.images(photos, 1, size=4)
    shutil.rmtree(photos / "cat")
    assert fc.train.images(photos, 1, size=4, classes=train.classes).labels.tolist() == [1] * 7 + [2] * 7
    with pytest.raises(fc.FuncconvError, match="owl: not in classes; known are 'cat', 'dog'"):
        fc.train.images(photos, 1, size=4, classes=["cat", "dog"])


# what an image is ---------------------------------------------------------------------------------------------

FLIPS = {  # what must be done to the stored pixels, by the orientation of EXIF
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", FLIPS)
def test_images_are_turned_upright(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path / "a" / f"x.{kind}", exif=exif, **({"lossless": True} if kind == "webp" else {}))
    expected = FLIPS[orientation](COLORS)
    np.testing.assert_array_equal(read(path, size=expected.shape[:2]), expected)


def test_grey_and_palettes(tmp_path):
    grey = COLORS[..., 0]
    expected = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(read(written(tmp_path / "1" / "a" / "x.png", grey)), expected)
    np.testing.assert_array_equal(read(written(tmp_path / "1" / "a" / "x.png", grey), channels=1), grey[..., None])
    palette = Image.frombytes("P", (20, 12), (grey // 16).tobytes())
    palette.putpalette(COLORS.ravel().tolist()[:48])
    path = written(tmp_path / "2" / "a" / "x.png", palette)
    np.testing.assert_array_equal(read(path), COLORS.reshape(-1, 3)[grey // 16])
    bits = grey > 99
    path = written(tmp_path / "3" / "a" / "x.png", Image.fromarray(255 * bits.astype(np.uint8)).convert("1"))
    np.testing.assert_array_equal(read(path, channels=1)[..., 0], 255 * bits)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_grey_images_of_16_bits_are_scaled(tmp_path, rng, kind):
    values = rng.integers(0, 1 << 16, (12, 20), dtype=np.uint16)
    path = written(tmp_path / "a" / f"x.{kind}", values)
    expected = np.repeat(values[..., None] / np.float32(65535), 3, -1)
    np.testing.assert_allclose(read(path, dtype="float32"), expected, rtol=1e-6)
    rounded = np.rint(values / 257)[..., None]
    np.testing.assert_array_equal(read(path, channels=1), rounded)
    with_opacity = read(path, channels=4)
    np.testing.assert_array_equal(with_opacity[..., :3], np.repeat(rounded, 3, -1))
    assert (with_opacity[..., 3] == 255).all()


def test_cmyk(tmp_path, rng):
    inks = rng.integers(0, 256, (12, 20, 4), dtype=np.uint8)
    path = written(tmp_path / "a" / "x.tif", Image.frombytes("CMYK", (20, 12), inks.tobytes()))
    expected = (255 - inks[..., :3].astype(int)) * (255 - inks[..., 3:].astype(int)) / 255
    assert abs(read(path) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_transparent_pixels_need_a_background(tmp_path, kind):
    opacity = np.full((12, 20), 255, np.uint8)
    opaque = Image.fromarray(np.dstack([COLORS, opacity])).convert("RGBA" if kind == "P" else kind)
    color = np.asarray(opaque.convert("RGB"))
    path = written(tmp_path / "1" / "a" / "x.png", opaque)
    np.testing.assert_array_equal(read(path), color)  # no pixel is transparent
    opacity[:, 10:] = 0 if kind == "P" else 51
    image = Image.fromarray(np.dstack([COLORS, opacity]))
    if kind == "P":
        image = image.quantize(256)
        color = np.asarray(image.convert("RGBA"))[..., :3]
    else:
        image = image.convert(kind)
    path = written(tmp_path / "2" / "a" / "x.png", image)
    with pytest.raises(fc.FuncconvError, match=r"a/x\.png has transparent pixels\. Pass background=0"):
        read(path)
    weight = opacity[..., None] / 255
    expected = weight * color + (1 - weight) * np.array([10, 20, 30])
    assert abs(read(path, background=(10, 20, 30)) - expected).max() <= 1
    np.testing.assert_array_equal(read(path, channels=4)[..., 3], opacity)


def test_pixels_without_a_known_range_are_refused(tmp_path):
    path = written(tmp_path / "a" / "x.tif", np.ones((12, 20), np.float32))
    with pytest.raises(fc.FuncconvError, match=r"x\.tif has pixels of mode 'F'"):
        read(path)


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff"])
def test_several_pictures_in_a_file(tmp_path, kind):
    first, second = Image.fromarray(COLORS), Image.fromarray(COLORS[::-1])
    path = written(tmp_path / "a" / f"x.{kind}", first, save_all=True, append_images=[second])
    with pytest.raises(fc.FuncconvError, match=f'x.{kind} has several pictures. Pass animated="first"'):
        read(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read(path, animated="first"), expected)


def test_a_photo_with_a_preview_is_one_picture(tmp_path):
    photo = Image.fromarray(COLORS)
    path = written(tmp_path / "a" / "x.jpg", photo, format="MPO", save_all=True, append_images=[photo.resize((4, 4))])
    assert read(path).shape == COLORS.shape


def test_other_sizes(tmp_path):
    path = written(tmp_path / "a" / "x.png")
    np.testing.assert_array_equal(read(path, size=12), COLORS[:, 4:16])
    np.testing.assert_array_equal(read(path, size=20, resize="pad")[4:16], COLORS)
    assert not read(path, size=20, resize="pad")[[*range(4), *range(16, 20)]].any()
    for how, size, part in (
        ("stretch", (5, 9), slice(0, 9)),
        ("crop", (6, 6), slice(2, 8)),
        ("pad", (6, 10), slice(0, 10)),
    ):
        scaled_size = size if how == "stretch" else (6, 10)
        expected = jax.image.resize(COLORS.astype(np.float32), (*scaled_size, 3), "linear")[:, part]
        assert abs(read(path, size=size, resize=how) - np.asarray(expected)).max() < 1.01
    assert read(path, size=(1, 40), resize="pad").shape == (1, 40, 3)
    assert read(path, size=(40, 1)).shape == (40, 1, 3)


def test_floats_are_between_0_and_1(tmp_path):
    path = written(tmp_path / "a" / "x.png")
    np.testing.assert_array_equal(read(path, dtype="float32"), COLORS / np.float32(255))


def test_the_content_decides_how_a_file_is_decoded(tmp_path):
    path = written(tmp_path / "a" / "x.jpg", format="PNG")
    np.testing.assert_array_equal(read(path), COLORS)


# what else is in a folder ---------------------------------------------------------------------------------------


def test_everything_that_is_no_image_is_named(photos):
    (photos / "read.me").write_text("")
    (photos / "cat" / "notes.txt").write_text("")
    (photos / "cat" / "x.png").mkdir()
    (photos / "dog" / "lost.png").symlink_to("nowhere")
    (photos / "dog" / "round.png").symlink_to("round.png")
    os.mkfifo(photos / "owl" / "pipe.png")
    with pytest.raises(fc.FuncconvError) as caught:
        fc.train.images(photos, 1, size=4)
    for line in (
        "cat/notes.txt: its name does not end like that of an image",
        "cat/x.png: a folder, not a file",
        "dog/lost.png: a broken link, not a file",
        "dog/round.png: a broken link, not a file",
        "owl/pipe.png: a device or pipe, not a file",
        "and 1 more",
    ):
        assert line in str(caught.value)
    with pytest.raises(fc.FuncconvError, match=r"read\.me: a file, not a folder"):
        fc.train.images(photos, 1, size=4, ignore="*/*")
    ignore = ["read.me", "*.txt", "cat/x.png", "dog/[lr]o*", "pipe.*"]
    assert len(fc.train.images(photos, 1, size=4, ignore=ignore).files) == 21


def test_hidden_files_are_left_out_and_links_are_followed(photos, tmp_path):
    (photos / ".DS_Store").write_text("")
    (photos / "cat" / "._0.png").write_text("")
    (photos / ".cache").mkdir()
    assert len(fc.train.images(photos, 1, size=4).files) == 21
    (photos / "cat" / "link.png").symlink_to(photos / "dog" / "0.png")
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(photos / name)
    data = fc.train.images(tmp_path / "linked", 15, size=4)
    assert "cat/link.png" in data.files
    np.testing.assert_array_equal(data[0]["image"][7], data[0]["image"][8])


def test_an_empty_class_is_refused_unless_it_is_named(photos):
    (photos / "yak").mkdir()
    with pytest.raises(fc.FuncconvError, match="classes without images: 'yak' "):
        fc.train.images(photos, 1, size=4)
    assert fc.train.images(photos, 1, size=4, ignore="yak").classes == ("cat", "dog", "owl")
    names = ["yak", "owl", "dog", "cat"]
    assert fc.train.images(photos, 1, size=4, classes=names).labels.tolist() == [1] * 7 + [2] * 7 + [3] * 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size must be an int of at least 1, or a pair"),
        ({"size": (4, 4, 3)}, "or a pair"),
        ({"size": 4.0}, "or a pair"),
        ({"resize": "Crop"}, "resize must be one of 'crop', 'stretch', 'pad'; got 'Crop'; did you mean 'crop'?"),
        ({"channels": 2}, "channels must be one of 1, 3, 4; got 2"),
        ({"channels": True}, "channels must be one of 1, 3, 4; got True"),
        ({"dtype": np.uint8}, "dtype must be one of 'float32', 'uint8'"),
        ({"background": 256}, "background must be an int from 0 to 255"),
        ({"background": (1, 2)}, "background must be"),
        ({"classes": "cat"}, "classes must be a list"),
        ({"classes": ["cat", "cat"]}, "different names"),
        ({"split": 0.8}, "split must be a pair"),
        ({"split": (0.8, 0.8)}, "0 <= low < high <= 1"),
        ({"split": (0.2, 0.2 + 1e-9)}, "has 21 images, and none in the part"),
        ({"ignore": [1]}, "ignore must be a list of texts"),
        ({"ignore": "*"}, "has 0 images"),
        ({"corrupt": "ignore"}, "corrupt must be one of 'raise', 'skip'"),
        ({"animated": "last"}, "animated must be one of"),
        ({"workers": 0}, "workers must be an integer of at least 1"),
        ({"batch_size": 22}, "images: batch_size must be at most the 21 examples"),
        ({"folder": "nowhere"}, "nowhere cannot be read: No such file"),
        ({"folder": __file__}, "is a file; pass the path of a folder"),
    ],
)
def test_refused(photos, options, said):
    with pytest.raises(fc.FuncconvError) as caught:
        fc.train.images(**{"folder": photos, "batch_size": 1, "size": 4} | options)
    assert said in str(caught.value)


def test_without_pillow(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(fc.FuncconvError, match=r"pip install '\.\[images\]'"):
        fc.train.images(photos, 1, size=4)


# damage ---------------------------------------------------------------------------------------------------------


def damaged(path, how):
    if how == "truncated":
        written(path.with_suffix(".jpg"), np.kron(COLORS, np.ones((8, 8, 1), np.uint8))).replace(path)
        path.write_bytes(path.read_bytes()[:-500])
    else:
        path.write_bytes({"empty": b"", "text": b"not an image", "zeros": bytes(99)}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "zeros"])
def test_a_damaged_file_is_named_when_its_batch_is_due(photos, how):
    damaged(photos / "cat" / "5.png", how)
    data = fc.train.images(photos, 2, size=4)
    next(data), next(data)
    for _ in range(2):
        with pytest.raises(fc.FuncconvError, match=r"photos/cat/5\.png is damaged: .*leave it out with ignore="):
            next(data)
    assert data.position == 2
    written(photos / "cat" / "5.png", COLORS)
    assert next(data)["label"].tolist() == [0, 0]
    assert data.position == 3


@pytest.mark.filterwarnings("ignore:images")
def test_the_next_readable_file_takes_the_place_of_a_damaged_one(photos):
    whole = fc.train.images(photos, 7, size=4)[0]["image"]
    for i in (2, 3):
        damaged(photos / "cat" / f"{i}.png", "empty")
    data = fc.train.images(photos, 7, size=4, corrupt="skip")
    np.testing.assert_array_equal(next(data)["image"], whole[[0, 1, 4, 4, 4, 5, 6]])
    data = fc.train.images(photos, 4, jax.random.key(0), size=4, corrupt="skip", workers=3)
    expected = [next(data) for _ in range(12)]
    for number in (11, 3, 7):  # whatever was read before
        fresh = fc.train.images(photos, 4, jax.random.key(0), size=4, corrupt="skip", workers=1).seek(number)
        jax.tree.map(np.testing.assert_array_equal, next(fresh), expected[number])


def test_each_damaged_file_is_told_of_once(photos):
    damaged(photos / "owl" / "6.png", "text")  # the last file, whose place the first one takes
    data = fc.train.images(photos, 21, size=4, corrupt="skip")
    with pytest.warns(UserWarning, match=r"owl/6\.png is damaged.*It is skipped") as told:
        batch = next(data)
    assert len(told) == 1
    np.testing.assert_array_equal(batch["image"][20], batch["image"][0])
    assert batch["label"][20] == 0
    next(data)
    for path in photos.glob("*/*"):
        damaged(path, "empty")
    with pytest.raises(fc.FuncconvError, match=r"all 21 files in .* are damaged"):
        next(fc.train.images(photos, 1, size=4, corrupt="skip"))


def test_a_file_that_cannot_be_read_is_not_skipped(photos):
    data = fc.train.images(photos, 21, size=4, corrupt="skip")
    (photos / "dog" / "0.png").unlink()
    with pytest.raises(fc.FuncconvError, match=r"dog/0\.png cannot be read: No such file"):
        next(data)


@contextmanager
def as_another_user():
    """Root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["dog/0.png", "dog"])
def test_without_permission(photos, name):
    with tempfile.TemporaryDirectory() as folder:  # since other users have no access to `tmp_path`
        root = shutil.copytree(photos, Path(folder, "photos"))
        Path(folder).chmod(0o755)
        (root / name).chmod(0)
        next(fc.train.images(photos, 1, size=4))  # which imports what the other user may not read
        said = rf"photos/{name} cannot be read: Permission denied"
        with as_another_user(), pytest.raises(fc.FuncconvError, match=said):
            next(fc.train.images(root, 21, size=4, corrupt="skip"))
        (root / name).chmod(0o755)  # so that it can be removed


def test_an_image_that_is_very_large(photos, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(fc.FuncconvError, match="is very large: Image size"):
        next(fc.train.images(photos, 1, size=4, corrupt="skip"))


# runs -----------------------------------------------------------------------------------------------------------


def loss(params, batch, *, key, state):
    del key, state
    return jnp.square(batch["image"].mean((1, 2)) @ params["w"] - batch["label"]).mean()


def trained(photos, steps, data=None, **options):
    init, step = fc.train.make_step(loss, optax.adam(0.1))
    state = init({"w": jnp.zeros(3)}, jax.random.key(0))
    if data is None:
        data = fc.train.images(photos, 4, jax.random.key(1), size=4, corrupt="skip")
    state, _ = fc.train.fit(step, state, data, steps=steps, progress=False, **options)
    return fc.train.digest(state)


@pytest.mark.filterwarnings("ignore:images")
def test_a_run_is_resumed_at_the_right_image(photos, tmp_path):
    damaged(photos / "dog" / "3.png", "empty")
    expected = trained(photos, 13)
    for steps in (3, 4, 9, 13):
        result = trained(photos, steps, checkpoint=tmp_path / "run")
    assert result == expected
    data = fc.train.images(photos, 4, jax.random.key(1), size=4, corrupt="skip")
    for steps in (5, 13):  # the same iterator, without what it has read ahead
        result = trained(photos, steps, data, checkpoint=tmp_path / "second")
    assert result == expected


def test_a_damaged_file_ends_a_run_at_its_step(photos, tmp_path):
    def data():
        return fc.train.images(photos, 4, size=4)

    expected = trained(photos, 5, data())
    shutil.copy(photos / "dog" / "3.png", tmp_path / "kept.png")
    damaged(photos / "dog" / "3.png", "truncated")
    with pytest.raises(fc.FuncconvError, match=r"dog/3\.png is damaged"):
        trained(photos, 5, data(), checkpoint=tmp_path / "run")
    assert fc.train.about(tmp_path / "run")["step"] == 2
    shutil.copy(tmp_path / "kept.png", photos / "dog" / "3.png")
    assert trained(photos, 5, data(), checkpoint=tmp_path / "run") == expected


def test_other_files_or_options_are_told(photos, tmp_path):
    trained(photos, 2, checkpoint=tmp_path)
    (photos / "dog" / "0.png").rename(photos / "dog" / "new.png")
    data = fc.train.images(photos, 4, jax.random.key(1), size=5)
    with pytest.warns(UserWarning, match="other settings") as told:
        trained(photos, 3, data, checkpoint=tmp_path)
    text = str(told[0].message)
    assert "batches: files: 21 (sha256 " in text
    assert "batches: size: (4, 4) then, (5, 5) now" in text
    assert "batches: corrupt: skip then, raise now" in text
