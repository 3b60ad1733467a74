"""TFDS gives the published arrays in the published order."""

import numpy as np
import pytest

from jax_arcface import data
from jax_arcface.data.conftest import REAL, assert_same, needs_files
from jax_arcface.errors import UserError


@pytest.mark.slow
@needs_files
@pytest.mark.parametrize(("name", "file_format"), [("mnist", "tfrecord"), ("cifar10", "array_record")])
def test_tfds_gives_the_same_arrays_in_the_same_order(name, file_format, cache, tmp_path):
    """A real build, from the published files and without the network; then read without those files."""
    pytest.importorskip("tensorflow_datasets")
    tfds_dir = tmp_path / "tfds"
    prepared = data.prepare_tfds(name, REAL, tfds_dir, file_format=file_format)
    assert prepared.is_relative_to(tfds_dir)
    assert list(prepared.glob(f"*.{file_format}-*"))
    assert [path.name for path in tfds_dir.iterdir()] == [name]  # no downloads that are none
    from_tfds = data.load(name, tfds_dir, cache_dir=cache)
    assert_same(from_tfds, data.load(name, REAL, cache_dir=tmp_path / "other"))


def test_damaged_tfds_data_set_is_named(cache, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    prepared = tmp_path / "mnist" / "3.0.1"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"mnist/3\.0\.1 is not a TFDS data set that can be read"):
        data.load("mnist", tmp_path, cache_dir=cache)


def test_tfds_data_set_of_other_content_is_refused(cache, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    prepared = tmp_path / "mnist" / "3.0.1"
    build_little_mnist(prepared)
    with pytest.raises(
        UserError,
        match=r"mnist/3\.0\.1 is not mnist as published: the SHA-256 of its train split is \w+, expected edc0d109",
    ):
        data.load("mnist", tmp_path, cache_dir=cache)


def build_little_mnist(folder):
    """A TFDS data set with MNIST's features but six examples, written with TFDS's own writer."""
    import tensorflow_datasets as tfds

    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")
        pkg_dir_path = folder.parent

        def _info(self):
            image, label = tfds.features.Image(shape=(28, 28, 1)), tfds.features.ClassLabel(num_classes=10)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

        def _generate_examples(self, n):
            for i in range(n):
                yield i, {"image": np.full((28, 28, 1), i, np.uint8), "label": i}

    Mnist(data_dir=str(folder.parents[1]), file_format="array_record").download_and_prepare()
    assert (folder / "dataset_info.json").is_file()


def test_prepare_tfds_rejects_other_names(tmp_path):
    with pytest.raises(UserError, match=r"mnist, cifar10, not for 'digits'"):
        data.prepare_tfds("digits", tmp_path, tmp_path / "tfds")


def test_prepare_tfds_names_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"MNIST/raw lacks train-images-idx3-ubyte\.gz, "):
        data.prepare_tfds("mnist", tmp_path, tmp_path / "tfds")
