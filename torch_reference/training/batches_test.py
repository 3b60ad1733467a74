"""Tests of batches.py."""

import numpy as np
import pytest
import torch

from torch_reference import data
from torch_reference.data.sampling import class_batches
from torch_reference.training.batches import Batches, Images, first_of_each_class


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_batches_hold_as_many_classes_as_asked_for(digits):
    train = Images.of(digits.train, *data.channel_statistics(digits.train.images))
    batches = Batches(train, 100, classes_per_batch=5)
    drawn = class_batches(0, 1, digits.train.labels, 100, 5)
    found = list(batches.epoch(1, start=3))
    assert len(batches) == 14
    assert len(found) == 11
    for (_, labels), chosen in zip(found, drawn[3:], strict=True):
        assert labels.tolist() == digits.train.labels[chosen].tolist()
        assert labels.unique(return_counts=True)[1].tolist() == [20] * 5


def test_the_first_images_of_each_class(digits):
    labels = digits.train.labels.tolist()
    found = first_of_each_class(digits.train, 10, images=95)
    for j in range(10):
        expected = [i for i, label in enumerate(labels) if label == j][:10]  # 95 / 10, rounded up
        np.testing.assert_array_equal(found.images[found.labels == j], digits.train.images[expected])
    assert len(first_of_each_class(digits.train, 10).labels) == len(labels)


def test_evaluation_sees_every_image_once_in_order(digits):
    mean, std = data.channel_statistics(digits.train.images)
    images, labels = map(torch.cat, zip(*Images.of(digits.test, mean, std), strict=True))
    assert labels.tolist() == digits.test.labels.tolist()
    expected = ((digits.test.images - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)
