"""Whatever befalls the cache, the arrays are right; and nothing is decoded twice."""

import os
import threading

import numpy as np
import pytest

from jax_arcface import data
from jax_arcface.data.cache import fingerprint, read_entry, write_entry
from jax_arcface.data.conftest import assert_same, break_image, save_image
from jax_arcface.errors import UserError


def entries(cache):
    return sorted(path.name for path in cache.iterdir())


def test_folder_is_decoded_once(pets, cache, monkeypatch):
    first = data.load(str(pets), cache_dir=cache)
    monkeypatch.setattr("jax_arcface.data.images.read_image", lambda *args: pytest.fail("an image was read again"))
    second = data.load(str(pets), cache_dir=cache)
    assert isinstance(second.train.images, np.memmap)
    assert (second.name, len(entries(cache))) == ("pets", 1)
    assert_same(first, second)


def test_each_image_size_has_its_own_entry(pets, cache):
    assert data.load(str(pets), cache_dir=cache).image_shape == (8, 8, 1)
    assert data.load(str(pets), image_size=4, cache_dir=cache).image_shape == (4, 4, 1)
    assert data.load(str(pets), cache_dir=cache).image_shape == (8, 8, 1)


def test_changed_image_is_seen_though_size_and_date_are_the_same(pets, cache):
    path = pets / "train" / "dog" / "1.png"
    before = path.stat()
    assert data.load(str(pets), cache_dir=cache).train.images[-1].max() == 20
    save_image(path, 21)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert data.load(str(pets), cache_dir=cache).train.images[-1].max() == 21


def test_renamed_image_is_seen(pets, cache):
    data.load(str(pets), cache_dir=cache)
    (pets / "train" / "cat" / "1.png").rename(pets / "train" / "cat" / "3.png")
    assert data.load(str(pets), cache_dir=cache).train.images[:2, 0, 0, 0].tolist() == [10, 0]


def test_fingerprint_tells_names_of_the_same_file_apart(tmp_path):
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    one.write_text("an image")
    os.link(one, other)
    assert fingerprint(tmp_path, [one]) == fingerprint(tmp_path, [one])
    assert fingerprint(tmp_path, [one]) != fingerprint(tmp_path, [other])


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "pixel": lambda entry: flip_last_byte(entry / "train_images.npy"),
    "label": lambda entry: flip_last_byte(entry / "test_labels.npy"),
    "shape": lambda entry: (entry / "train_images.npy").write_bytes(
        (entry / "train_images.npy").read_bytes().replace(b"(3, 8, 8, 1)", b"(3, 4, 16,1)")
    ),
    "cut off": lambda entry: os.truncate(entry / "train_images.npy", 200),
    "empty file": lambda entry: os.truncate(entry / "train_labels.npy", 0),
    "missing file": lambda entry: (entry / "test_images.npy").unlink(),
    "class names": lambda entry: flip_last_byte(entry / "names.npy"),
    "no checksums": lambda entry: (entry / "crc32.json").unlink(),
    "checksums cut off": lambda entry: os.truncate(entry / "crc32.json", 20),
    "no entry in the checksums": lambda entry: (entry / "crc32.json").write_text("{}"),
    "a list of checksums": lambda entry: (entry / "crc32.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_cache_is_decoded_again_and_repaired(damage, pets, cache):
    good = data.load(str(pets), cache_dir=cache)
    expected = data.Dataset(
        good.name,
        data.Split(good.train.images.copy(), good.train.labels.copy()),
        data.Split(good.test.images.copy(), good.test.labels.copy()),
        good.class_names,
    )
    (name,) = entries(cache)
    damage(cache / name)
    assert read_entry(cache / name) is None
    assert_same(data.load(str(pets), cache_dir=cache), expected)
    assert entries(cache) == [name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax_arcface.data.images.read_image", lambda *args: pytest.fail("the entry was not repaired"))
        assert_same(data.load(str(pets), cache_dir=cache), expected)


def test_failed_decoding_leaves_nothing_behind(pets, cache):
    break_image(pets)
    with pytest.raises(UserError):
        data.load(str(pets), cache_dir=cache)
    assert not cache.exists() or entries(cache) == []


def test_interrupted_writing_leaves_nothing_behind(pets, cache, monkeypatch):
    save = np.save

    def interrupted(path, array):
        if path.name == "test_images.npy":
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load(str(pets), cache_dir=cache)
    assert entries(cache) == []


def test_cache_that_cannot_be_written_is_done_without(pets, tmp_path, caplog):
    (tmp_path / "file").write_text("a file, not a folder")
    loaded = data.load(str(pets), cache_dir=tmp_path / "file" / "cache")
    assert loaded.train.images[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert "cannot be written" in caplog.text


def test_full_disk_is_done_without_the_cache(pets, cache, monkeypatch):
    def full(path, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert data.load(str(pets), cache_dir=cache).train.images[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert entries(cache) == []


def test_writers_at_the_same_time(pets, cache, monkeypatch):
    """All decode before any of them writes, and all come out with the same arrays and one entry."""
    barrier = threading.Barrier(6)
    write = write_entry

    def write_together(*args):
        barrier.wait(timeout=60)
        write(*args)

    monkeypatch.setattr("jax_arcface.data.cache.write_entry", write_together)
    results = []
    threads = [threading.Thread(target=lambda: results.append(data.load(str(pets), cache_dir=cache))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert len(entries(cache)) == 1
    for result in results:
        assert result.train.images[:, 0, 0, 0].tolist() == [0, 10, 20]


def test_the_users_cache_folder_is_the_default(pets, tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *args, **kwargs: str(tmp_path / args[0]))
    data.load(str(pets))
    assert len(entries(tmp_path / "jax-arcface")) == 1
