"""Tests of sampling.py, from docs/recipe.md: numpy's own Philox, numpy's padding, scipy's interpolation."""

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from torch_reference.data.sampling import (
    Augmentation,
    augment,
    class_batches,
    draw_augmentation,
    dropout_mask,
    elastic_normal,
    epoch_order,
    generator,
    normalise,
)

N, H, W, C = 6, 7, 9, 3
IMAGES = np.random.default_rng(1).integers(0, 256, (N, H, W, C), dtype=np.uint8)
ONE, ZERO = torch.ones(C, dtype=torch.float64), torch.zeros(C, dtype=torch.float64)


def draws(text):
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def augmented(augmentation, epoch=0, mean=ZERO):
    drawn = draw_augmentation(augmentation, 5, epoch, N, H, W)
    return augment(torch.from_numpy(IMAGES), drawn, augmentation, mean, ONE).permute(0, 2, 3, 1).numpy()


def test_generator_is_keyed_by_purpose_index_and_seed():
    for purpose, index, seed in (("order", 3, 7), ("weights", "head.prototypes", 0)):
        expected = draws(f"arcface/{purpose}/{index}/{seed}").random(5)
        np.testing.assert_array_equal(generator(seed, purpose, index).random(5), expected)
    # the first number of Philox 4x64-10 for a key, worked out from its definition (Salmon et al. 2011)
    key = int.from_bytes(hashlib.sha256(b"arcface/order/0/0").digest()[:16], "little")
    assert generator(0, "order").random() == (philox_first(key) >> 11) * 2.0**-53


def philox_first(key):
    mask, (k0, k1) = 2**64 - 1, (key & (2**64 - 1), key >> 64)
    x = [1, 0, 0, 0]  # numpy counts up before it draws
    for _ in range(10):
        a, b = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
        x = [(b >> 64) ^ x[1] ^ k0, b & mask, (a >> 64) ^ x[3] ^ k1, a & mask]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return x[0]


def test_order_is_the_recipes():
    u = draws("arcface/order/2/5").random(50).tolist()
    assert epoch_order(5, 2, 50).tolist() == sorted(range(50), key=u.__getitem__)


@pytest.mark.parametrize(("classes", "each"), [(2, 3), (3, 4), (5, 1), (4, 2)])
def test_batches_of_classes_are_the_recipes(classes, each):
    """Class 4 has fewer examples than some of its batches take, class 2 many."""
    labels = np.array([0] * 7 + [1] * 6 + [2] * 20 + [3] * 9 + [4] * 2)[np.random.default_rng(0).permutation(44)]
    found = class_batches(5, 2, labels, classes * each, classes)
    u = draws("arcface/classes/2/5").random((44 // (classes * each), 5))
    order = epoch_order(5, 2, 44).tolist()
    queues = {j: [i for i in order if labels[i] == j] for j in range(5)}
    wrapped = 0
    for step, row in enumerate(u.tolist()):
        expected = []
        for j in sorted(range(5), key=row.__getitem__)[:classes]:
            for _ in range(each):
                expected.append(queues[j][0])
                queues[j].append(queues[j].pop(0))
                wrapped += expected.count(expected[-1]) > 1
        assert found[step].tolist() == expected
    assert len(found) == len(u)
    assert (wrapped > 0) == (each > 2)


def test_batches_of_classes_that_cannot_be_made():
    with pytest.raises(ValueError, match="class 1 has no example"):
        class_batches(0, 0, np.array([0, 0, 2, 2]), 4, 2)
    with pytest.raises(ValueError, match="4 of 3 classes cannot make a batch of 4"):
        class_batches(0, 0, np.array([0, 1, 2, 2]), 4, 4)
    with pytest.raises(ValueError, match="2 of 3 classes cannot make a batch of 3"):
        class_batches(0, 0, np.array([0, 1, 2, 2]), 3, 2)


def test_elastic_draws_are_the_recipes_and_normal():
    expected = []
    for u0, u1 in draws("arcface/elastic/4/5").random((3, 2)).tolist():
        expected.append(math.sqrt(-2 * math.log(1 - u0)) * math.cos(2 * math.pi * u1))
    found = elastic_normal(5, 4, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    many = elastic_normal(0, 0, 20_000)
    assert stats.kstest(many, "norm").pvalue > 0.01


def test_dropout_keeps_what_is_not_below_its_rate():
    expected = draws("arcface/dropout/4/5").random((3, 8)) >= 0.3
    np.testing.assert_array_equal(dropout_mask(5, 4, 3, 8, 0.3), expected)


def test_normalise():
    mean, scale = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, 2.0])
    expected = (IMAGES.astype(float) - [1, 2, 3]) * [0.5, 0.25, 2.0]
    np.testing.assert_array_equal(normalise(torch.from_numpy(IMAGES), mean, scale), expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("shift", [1, 4, 10])
def test_shift_cuts_a_window_out_of_numpys_padded_image(shift):
    rows, columns = np.floor(draws("arcface/shift/3/5").random((N, 2)) * (2 * shift + 1)).astype(int).T
    padded = np.pad(IMAGES, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="reflect")
    expected = [padded[i, rows[i] : rows[i] + H, columns[i] : columns[i] + W] for i in range(N)]
    np.testing.assert_array_equal(augmented(Augmentation(shift=shift), epoch=3), expected)


def test_two_epochs_show_both_sides():
    coin = draws("arcface/flip/0/5").random(N) < 0.5
    assert 0 < coin.sum() < N
    for epoch in range(4):
        flipped = coin if epoch % 2 == 0 else ~coin
        expected = [image[:, ::-1] if flip else image for image, flip in zip(IMAGES, flipped, strict=True)]
        np.testing.assert_array_equal(augmented(Augmentation(flip=True), epoch), expected)


def test_the_shift_comes_before_the_flip():
    shifted = augmented(Augmentation(shift=2))
    coin = draws("arcface/flip/0/5").random(N) < 0.5
    expected = [image[:, ::-1] if flip else image for image, flip in zip(shifted, coin, strict=True)]
    np.testing.assert_array_equal(augmented(Augmentation(shift=2, flip=True)), expected)


@pytest.mark.parametrize(("rotate", "zoom"), [(0.3, 0.0), (0.0, 0.2), (math.pi, 1.0)])
def test_affine_is_scipys_bilinear_interpolation(rotate, zoom):
    u = draws("arcface/affine/1/5").random((N, 2))
    expected = []
    for (u0, u1), image in zip(u, IMAGES, strict=True):
        t, g = (2 * u0 - 1) * rotate, math.exp((2 * u1 - 1) * math.log1p(zoom))
        r, c = np.mgrid[:H, :W] - np.array([(H - 1) / 2, (W - 1) / 2]).reshape(2, 1, 1)
        rows = (H - 1) / 2 + (math.cos(t) * r + math.sin(t) * c) / g
        columns = (W - 1) / 2 + (-math.sin(t) * r + math.cos(t) * c) / g
        channels = [
            ndimage.map_coordinates(image[..., k].astype(float), [rows, columns], order=1, mode="grid-constant")
            for k in range(C)
        ]
        expected.append(np.stack(channels, axis=-1))
    # the matrix is rounded to float32
    np.testing.assert_allclose(augmented(Augmentation(rotate=rotate, zoom=zoom), epoch=1), expected, atol=5e-4)


@pytest.mark.parametrize("side", [1, 4, 5, 40])
def test_cutout_is_the_mean_colour_and_nothing_else_changes(side):
    places = np.floor(draws("arcface/cutout/2/5").random((N, 2)) * (H, W)).astype(int)
    expected = IMAGES.astype(float) - 100
    for image, (y, x) in zip(expected, places, strict=True):
        top, left = y - side // 2, x - side // 2
        image[max(top, 0) : top + side, max(left, 0) : left + side] = 0
    found = augmented(Augmentation(cutout=side), epoch=2, mean=100 * ONE)
    np.testing.assert_array_equal(found, expected)
    assert (found == 0).any()


def test_examples_are_drawn_for_by_their_number():
    augmentation = Augmentation(rotate=0.1, zoom=0.1, shift=2, flip=True, cutout=3)
    drawn = draw_augmentation(augmentation, 0, 0, N, H, W)
    images, chosen = torch.from_numpy(IMAGES), torch.tensor([4, 1])
    whole = augment(images, drawn, augmentation, ZERO, ONE)
    assert torch.equal(augment(images[chosen], drawn.take(chosen), augmentation, ZERO, ONE), whole[chosen])
