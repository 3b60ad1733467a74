"""Training against float64 numpy written from `docs/recipe.md`, and its ways of running against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_arcface.cli import runs
from jax_arcface.data import Dataset, Split, channel_statistics
from jax_arcface.errors import UserError
from jax_arcface.evaluation import accuracy
from jax_arcface.losses import fused
from jax_arcface.losses.registry import Inputs
from jax_arcface.models import weights
from jax_arcface.models.backbones import whitening_filters
from jax_arcface.training import fit as training
from jax_arcface.training.config import TrainConfig
from jax_arcface.training.fit import fit, learning_rate_schedule, make_optimizer

CONFIG = TrainConfig(
    width=0.05, embedding_dim=4, epochs=2, batch_size=8, shift=1, dropout=0.2, margin_warmup_epochs=1, clip_norm=3.0
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Three classes told apart by which third of the image is bright; 26 to train on, 11 to test on."""
    rng = np.random.default_rng(0)
    labels = (np.arange(37) % 3).astype(np.int32)
    images = rng.integers(0, 60, (37, 9, 9, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3] += 150
    return Dataset(
        "bands", Split(images[:26], labels[:26]), Split(images[26:], labels[26:]), ("top", "middle", "bottom")
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 2 warm-up steps of 10: thirds of the peak, then 8 steps from x = 0 to 7/8
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.9619397, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602]),
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_learning_rate(schedule, expected):
    config = TrainConfig(epochs=2, warmup_epochs=0.4, learning_rate=0.5, schedule=schedule)
    rate = learning_rate_schedule(config, steps_per_epoch=5)
    np.testing.assert_allclose([rate(step) for step in range(10)], 0.5 * np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])
def test_optimiser_follows_the_recipe(name):
    config = TrainConfig(
        optimizer=name, epochs=1, warmup_epochs=0.2, learning_rate=0.3, momentum=0.8, weight_decay=0.1, clip_norm=2.0
    )
    rng = np.random.default_rng(0)
    w = {"matrix": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    with jax.enable_x64(True):
        optimizer = make_optimizer(config, steps_per_epoch=10)
        params = jax.tree.map(jnp.asarray, w)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        first, second = ({key: np.zeros_like(value) for key, value in w.items()} for _ in range(2))
        for step in range(10):
            gradients = {key: rng.normal(size=value.shape) for key, value in w.items()}
            updates, state = update(jax.tree.map(jnp.asarray, gradients), state, params)
            params = jax.tree.map(jnp.add, params, updates)

            x = (step - 2) / 8
            rate = 0.3 * ((step + 1) / 3 if step < 2 else (1 + np.cos(np.pi * x)) / 2)
            norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
            for key in w:
                g = gradients[key] * min(1, 2 / norm)
                decay = 0.1 if key == "matrix" else 0
                if name == "adamw":
                    first[key] = 0.8 * first[key] + 0.2 * g
                    second[key] = 0.999 * second[key] + 0.001 * g**2
                    unbiased = first[key] / (1 - 0.8 ** (step + 1)), second[key] / (1 - 0.999 ** (step + 1))
                    w[key] = w[key] - rate * (unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8) + decay * w[key])
                else:
                    g = g + decay * w[key]
                    first[key] = 0.8 * first[key] + g
                    w[key] = w[key] - rate * (g + 0.8 * first[key] if name == "nesterov" else first[key])
            for key in w:
                np.testing.assert_allclose(params[key], w[key], rtol=1e-12, atol=1e-12)


class Recorder(training.Reporter):
    """Keeps what it is told, and asks to stop after some steps."""

    def __init__(self, stop_after: int = 10**9):
        self.losses, self.records, self.stop_after = [], [], stop_after

    def on_step(self, replica, epoch, step, metrics):
        self.losses.append(float(metrics.loss))

    def on_epoch(self, replica, record, state):
        self.records.append((replica, record))

    def stop(self):
        return len(self.losses) >= self.stop_after


def flat(state: training.TrainState) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves((state.params, state.stats, state.optimizer))])


@pytest.fixture(scope="module")
def trained(dataset):
    """Two epochs of three steps, uninterrupted."""
    recorder = Recorder()
    (state,) = fit([CONFIG], dataset, reporter=recorder)
    return state, recorder


def test_what_an_epoch_reports(dataset, trained):
    state, recorder = trained
    assert int(state.step) == 6
    assert len(recorder.losses) == 6
    (_, first), (_, second) = recorder.records
    assert (first.epoch, first.step, second.epoch, second.step) == (1, 3, 2, 6)
    np.testing.assert_allclose(second.train_loss, np.mean(recorder.losses[3:]), rtol=1e-6)
    np.testing.assert_allclose(second.learning_rate, learning_rate_schedule(CONFIG, 3)(5), rtol=1e-6)
    assert second.images_per_second == pytest.approx(24 / second.seconds)


def test_learns(dataset):
    config = dataclasses.replace(CONFIG, epochs=25, shift=0, dropout=0.0, width=0.1)
    recorder = Recorder()
    fit([config], dataset, reporter=recorder)
    _, last = recorder.records[-1]
    assert last.test_accuracy == 1.0
    assert last.train_accuracy > 0.9
    assert last.train_loss < 0.3 * recorder.records[0][1].train_loss


def test_the_first_steps_loss_is_the_equations(dataset):
    """ArcFace, equation 3, in float64 numpy, on the embeddings of the initial network."""
    config = dataclasses.replace(CONFIG, dropout=0.0, margin_warmup_epochs=0, shift=0, clip_norm=0.0, epochs=1)
    recorder = Recorder(stop_after=1)
    fit([config], dataset, reporter=recorder, stop=recorder.stop)
    graphdef, empty = training.abstract_model(config, dataset.image_shape, 3)
    initial = training.initial_weights(config, dataset)
    state = weights.from_pytorch(empty, initial)
    index = training.host_batches(config, dataset, 0, 0)["index"][0]
    mean, std = channel_statistics(dataset.train.images)
    images = jnp.asarray((dataset.train.images[index] - mean) / std, jnp.float32)
    embed = jax.jit(lambda images: nnx.merge(graphdef, state, copy=True).backbone(images, train=True))
    x = np.asarray(embed(images), np.float64)
    w = initial["head.prototypes"].astype(np.float64)
    cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    labels, rows = dataset.train.labels[index], np.arange(8)
    logits = 16 * cosine
    logits[rows, labels] = 16 * np.cos(np.arccos(cosine[rows, labels]) + 0.5)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[rows, labels])
    np.testing.assert_allclose(recorder.losses[0], expected, rtol=1e-4)


def test_a_stopped_training_goes_on_where_it_was(dataset, trained):
    recorder = Recorder(stop_after=4)  # in the middle of the second epoch
    states = fit([CONFIG], dataset, reporter=recorder, stop=recorder.stop)
    assert int(states[0].step) == 4
    assert len(recorder.records) == 1
    (state,) = fit([CONFIG], dataset, states, reporter=recorder)
    np.testing.assert_array_equal(flat(state), flat(trained[0]))
    for (_, resumed), (_, whole) in zip(recorder.records, trained[1].records, strict=True):
        assert resumed._replace(seconds=0, images_per_second=0) == whole._replace(seconds=0, images_per_second=0)


def test_replicas_as_one_program_are_as_good_as_one_by_one(dataset, trained):
    others = [dataclasses.replace(CONFIG, seed=1), dataclasses.replace(CONFIG, margin=0.2)]
    recorder = Recorder()
    together = fit([CONFIG, *others], dataset, reporter=recorder)
    np.testing.assert_allclose(flat(together[0]), flat(trained[0]), rtol=1e-3, atol=1e-4)
    for config, state in zip(others, together[1:], strict=True):
        (alone,) = fit([config], dataset)
        np.testing.assert_allclose(flat(state), flat(alone), rtol=1e-3, atol=1e-4)
        assert np.abs(flat(alone) - flat(trained[0])).max() > 1e-2
    assert [replica for replica, _ in recorder.records] == [0, 1, 2, 0, 1, 2]


def test_a_scanned_epoch_is_the_same_as_its_steps(dataset):
    optimizer = make_optimizer(CONFIG, 3)
    graphdef, _ = training.abstract_model(CONFIG, dataset.image_shape, 3)
    step = training.make_step(CONFIG, graphdef, optimizer, 3)
    data = training.device_data(dataset.train, *channel_statistics(dataset.train.images))
    batches = training.host_batches(CONFIG, dataset, 0, 6)
    results = []
    for scan in (False, True):
        state = training.initial_state(CONFIG, dataset, optimizer)
        losses = []
        for reached, metrics in training.make_epoch(step, scan=scan)(state, data, batches, CONFIG.margin_value):
            state = reached
            losses += np.ravel(metrics.loss).tolist()
        results.append((flat(state), losses))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)


def test_evaluation_leaves_no_example_out(dataset, trained):
    graphdef, _ = training.abstract_model(CONFIG, dataset.image_shape, 3)
    embed = training.make_embed(graphdef)
    data = training.device_data(dataset.test, *channel_statistics(dataset.train.images))
    state = training.model_state(trained[0])
    whole = embed(state, data)
    assert whole.shape == (11, 4)
    np.testing.assert_allclose(embed(state, data, batch_size=4), whole, rtol=1e-5, atol=1e-6)
    prototypes = trained[0].params["head"]["prototypes"][...]
    cosine = whole @ (prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)).T
    expected = np.mean(cosine.argmax(1) == dataset.test.labels)
    assert trained[1].records[-1][1].test_accuracy == accuracy(whole, prototypes, dataset.test.labels) == expected


def test_bfloat16_keeps_parameters_in_float32(dataset):
    config = dataclasses.replace(CONFIG, precision="bfloat16", epochs=1)
    recorder = Recorder()
    (state,) = fit([config], dataset, reporter=recorder)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.stats))} == {jnp.dtype(jnp.float32)}
    full = Recorder()
    fit([dataclasses.replace(config, precision="float32")], dataset, reporter=full)
    assert recorder.losses != full.losses
    np.testing.assert_allclose(recorder.losses[0], full.losses[0], rtol=0.1)


def test_a_loss_that_is_not_finite_stops_the_training(dataset):
    config = dataclasses.replace(CONFIG, learning_rate=1e30, warmup_epochs=0, clip_norm=0.0, optimizer="sgd")
    with pytest.raises(training.Diverged, match=r"loss of step \d is (nan|inf); try a smaller --learning-rate"):
        fit([config], dataset)


def test_a_network_that_gives_nan_is_not_taken_for_one_that_gives_zero(dataset):
    (state,) = fit([dataclasses.replace(CONFIG, epochs=0)], dataset)
    kernel = state.params["backbone"]["stages"][0]["conv1"]["kernel"]
    kernel[...] = kernel[...].at[0].set(jnp.nan)
    with pytest.raises(training.Diverged, match="loss of step 1 is nan"):
        fit([CONFIG], dataset, [state])


def test_airnets_first_layer_whitens_the_training_images(dataset):
    config = dataclasses.replace(CONFIG, backbone="airnet")
    filters = training.initial_weights(config, dataset)["backbone.whiten.weight"]
    mean, std = dataset.train.images.mean(), dataset.train.images.std()
    np.testing.assert_allclose(filters, whitening_filters((dataset.train.images - mean) / std), rtol=1e-3, atol=1e-4)


def test_zero_epochs_leave_the_initial_weights(dataset):
    config = dataclasses.replace(CONFIG, epochs=0)
    (state,) = fit([config], dataset)
    final = weights.to_pytorch(training.model_state(state))
    for name, value in training.initial_weights(config, dataset).items():
        np.testing.assert_array_equal(final[name], value)


PAIRS = dataclasses.replace(CONFIG, loss="supcon", margin_warmup_epochs=0)
STATEFUL = dataclasses.replace(
    CONFIG, loss="adaface+center:0.1+center_learnt:0.1+triplet:0.1", classes_per_batch=2, epochs=2
)


def test_losses_with_a_state_are_resumed_from_a_checkpoint_bit_for_bit(dataset, tmp_path):
    (whole,) = fit([STATEFUL], dataset)
    recorder = Recorder(stop_after=4)
    (stopped,) = fit([STATEFUL], dataset, reporter=recorder, stop=recorder.stop)
    assert set(stopped.losses) == {"adaface", "center"}
    assert np.abs(stopped.losses["center"]["centers"]).max() > 0
    runs.write_checkpoint(tmp_path, stopped)
    template = training.initial_state(STATEFUL, dataset, make_optimizer(STATEFUL, 3))
    (resumed,) = fit([STATEFUL], dataset, [runs.read_checkpoint(tmp_path, template)])
    for here, there in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(here, there)


def test_losses_with_a_state_as_replicas_of_one_program(dataset):
    configs = [STATEFUL, dataclasses.replace(STATEFUL, seed=1)]
    for config, state in zip(configs, fit(configs, dataset), strict=True):
        (alone,) = fit([config], dataset)
        np.testing.assert_allclose(flat(state), flat(alone), rtol=1e-3, atol=1e-4)
        for here, there in zip(jax.tree.leaves(state.losses), jax.tree.leaves(alone.losses), strict=True):
            np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4)


def test_learnt_centres_are_not_decayed():
    params = {"centers": jnp.ones((3, 2)), "prototypes": jnp.ones((3, 2))}
    optimizer = make_optimizer(TrainConfig(optimizer="sgd", weight_decay=0.5, warmup_epochs=0), 1)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert np.abs(updates["centers"]).max() == 0
    assert np.abs(updates["prototypes"]).min() > 0


def test_pair_losses_alone_classify_by_the_mean_of_each_class(dataset):
    config, recorder = PAIRS, Recorder()
    (state,) = fit([config], dataset, reporter=recorder)
    found = weights.to_pytorch(training.model_state(state))["head.prototypes"]
    graphdef, _ = training.abstract_model(config, dataset.image_shape, 3)
    embed, statistics = training.make_embed(graphdef), channel_statistics(dataset.train.images)
    train, test = (
        embed(training.model_state(state), training.device_data(split, *statistics)).astype(np.float64)
        for split in (dataset.train, dataset.test)
    )
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    means = np.stack([unit[dataset.train.labels == label].mean(axis=0) for label in range(3)])
    np.testing.assert_allclose(found, means, rtol=1e-5, atol=1e-6)
    assert np.abs(found - training.initial_weights(config, dataset)["head.prototypes"]).max() > 0.01
    cosine = test @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    assert recorder.records[-1][1].test_accuracy == np.mean(cosine.argmax(axis=1) == dataset.test.labels)


def test_class_means_are_of_the_first_images_of_each_class():
    labels = np.array([2, 0, 1, 2, 2, 0, 1, 2])
    images = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)
    dataset = Dataset("few", Split(images, labels), Split(images, labels), ("a", "b", "c"))
    first = training._first_of_each(dataset, images=5)  # 2 of each class
    assert first.images.ravel().tolist() == [0, 1, 2, 3, 5, 6]
    assert first.labels.tolist() == [2, 0, 1, 2, 0, 1]


def test_a_batch_counts_as_right_by_its_nearest_other_example_with_pair_losses_alone(dataset):
    embeddings = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.2]])  # nearest: 1, 0, 3, 1
    inputs = Inputs(embeddings, jnp.array([0, 0, 1, 1]), jnp.zeros((2, 2)))
    assert training._batch_accuracy(PAIRS, inputs) == 0.75


def test_softmax_classifies_by_its_logits(dataset):
    config = dataclasses.replace(CONFIG, loss="softmax", margin_warmup_epochs=0)
    recorder = Recorder()
    (state,) = fit([config], dataset, reporter=recorder)
    found = weights.to_pytorch(training.model_state(state))
    assert np.abs(found["head.bias"]).max() > 0
    graphdef, _ = training.abstract_model(config, dataset.image_shape, 3)
    data = training.device_data(dataset.test, *channel_statistics(dataset.train.images))
    logits = training.make_embed(graphdef)(training.model_state(state), data) @ found["head.prototypes"].T
    expected = np.mean((logits + found["head.bias"]).argmax(axis=1) == dataset.test.labels)
    assert recorder.records[-1][1].test_accuracy == expected
    # a bias that decides
    inputs = Inputs(jnp.eye(2), jnp.array([1, 1]), jnp.eye(2), bias=jnp.array([0.0, 5.0]))
    assert training._batch_accuracy(config, inputs) == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes_per_batch": 4}, "--classes-per-batch is 4, but there are only 3 classes"),
        ({"batch_size": 27}, "--batch-size is 27, but there are only 26 training images"),
    ],
)
def test_too_few_images_or_classes_are_refused(changes, said, dataset):
    with pytest.raises(UserError, match=said):
        fit([dataclasses.replace(CONFIG, **changes)], dataset)


def test_adacos_of_two_classes_is_refused(dataset):
    two = dataclasses.replace(dataset, class_names=("a", "b"))
    with pytest.raises(UserError, match="--loss adacos needs at least 3 classes, but there are only 2"):
        fit([dataclasses.replace(CONFIG, loss="adacos", margin_warmup_epochs=0)], two)


@pytest.mark.parametrize("words", ["arcface", "subcenter", "arcface:filter=0.3+intra"])
def test_a_training_with_many_classes_takes_the_fused_loss(dataset, words, monkeypatch):
    config = dataclasses.replace(CONFIG, loss=words, subcenters=3 if words == "subcenter" else 1, epochs=1)
    calls = []
    loss_of = fused.loss_and_correct
    monkeypatch.setattr(fused, "loss_and_correct", lambda *args: calls.append(len(args)) or loss_of(*args))
    (dense,) = fit([config], dataset)
    assert not calls
    monkeypatch.setattr(fused, "MANY_COSINES", 0)
    monkeypatch.delattr(training, "nearest_class")  # not needed: the loss knows
    (state,) = fit([config], dataset)
    assert calls
    np.testing.assert_allclose(flat(state), flat(dense), rtol=1e-3, atol=1e-4)
    assert state.totals.accuracy == dense.totals.accuracy


@pytest.mark.parametrize("loss", ["adaface", "curricularface", "elasticface", "elastic_cosface"])
def test_margins_that_are_part_of_the_program_are_not_trained_as_one(dataset, loss):
    configs = [dataclasses.replace(CONFIG, loss=loss, margin=margin) for margin in (0.1, 0.4)]
    with pytest.raises(ValueError, match="differ in more than the seed"):
        fit(configs, dataset)
    assert training.fit_one_program([dataclasses.replace(configs[0], seed=seed) for seed in (0, 1)])
