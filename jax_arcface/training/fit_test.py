"""Training against float64 numpy written from `docs/recipe.md`, and its ways of running against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jax_arcface.cli import runs
from jax_arcface.data import ArraySource, Dataset, Split, channel_statistics
from jax_arcface.errors import UserError
from jax_arcface.losses import fused
from jax_arcface.losses.terms import arcface, elasticface, supcon
from jax_arcface.models import heads
from jax_arcface.models.airnet import whitening_filters
from jax_arcface.models.heads import Head
from jax_arcface.training import fit as training
from jax_arcface.training import state as states
from jax_arcface.training.config import TrainConfig
from jax_arcface.training.fit import fit, fit_config, fit_replicas, initial_model, initial_state
from jax_arcface.training.optimizer import learning_rate_schedule, make_optimizer
from jax_arcface.training.state import TrainState
from jax_arcface.training.step import make_run, make_step

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

    def on_step(self, epoch, step, metrics):
        self.losses.append(float(metrics.loss))

    def on_epoch(self, record, state):
        self.records.append(record)

    def stop(self):
        return len(self.losses) >= self.stop_after


def flat(state: TrainState) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves((state.params, state.stats, state.optimizer))])


@pytest.fixture(scope="module")
def trained(dataset):
    """Two epochs of three steps, uninterrupted."""
    recorder = Recorder()
    state = fit_config(CONFIG, dataset, reporter=recorder)
    return state, recorder


def test_what_an_epoch_reports(dataset, trained):
    state, recorder = trained
    assert int(state.step) == 6
    assert len(recorder.losses) == 6
    first, second = recorder.records
    assert (first.epoch, first.step, second.epoch, second.step) == (1, 3, 2, 6)
    np.testing.assert_allclose(second.train_loss, np.mean(recorder.losses[3:]), rtol=1e-6)
    np.testing.assert_allclose(second.learning_rate, learning_rate_schedule(CONFIG, 3)(5), rtol=1e-6)
    assert second.images_per_second == pytest.approx(24 / second.seconds)


def test_learns(dataset):
    config = dataclasses.replace(CONFIG, epochs=25, shift=0, dropout=0.0, width=0.1)
    recorder = Recorder()
    fit_config(config, dataset, reporter=recorder)
    last = recorder.records[-1]
    assert last.test_accuracy == 1.0
    assert last.train_accuracy > 0.9
    assert last.train_loss < 0.3 * recorder.records[0].train_loss


def test_the_first_steps_loss_is_the_equations(dataset):
    """ArcFace, equation 3, in float64 numpy, on the embeddings of the initial network."""
    config = dataclasses.replace(CONFIG, dropout=0.0, margin_warmup_epochs=0, shift=0, clip_norm=0.0, epochs=1)
    recorder = Recorder(stop_after=1)
    fit_config(config, dataset, reporter=recorder, stop=recorder.stop)
    model = initial_model(config, dataset)
    initial = training.initial_weights(config, dataset)
    source = training.make_objects(config, dataset)[1]
    index = next(iter(source.batches(0)))["index"]
    mean, std = channel_statistics(dataset.train.images)
    images = jnp.asarray((dataset.train.images[index] - mean) / std, jnp.float32)
    graphdef, state = nnx.split(model.backbone)
    x = np.asarray(jax.jit(lambda images: nnx.merge(graphdef, state, copy=True)(images))(images), np.float64)
    w = initial["head.prototypes"].astype(np.float64)
    cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    labels, rows = dataset.train.labels[index], np.arange(8)
    logits = 16 * cosine
    logits[rows, labels] = 16 * np.cos(np.arccos(cosine[rows, labels]) + 0.5)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[rows, labels])
    np.testing.assert_allclose(recorder.losses[0], expected, rtol=1e-4)


def test_a_stopped_training_goes_on_where_it_was(dataset, trained):
    recorder = Recorder(stop_after=4)  # in the middle of the second epoch
    stopped = fit_config(CONFIG, dataset, reporter=recorder, stop=recorder.stop)
    assert int(stopped.step) == 4
    assert len(recorder.records) == 1
    state = fit_config(CONFIG, dataset, state=stopped, reporter=recorder)
    np.testing.assert_array_equal(flat(state), flat(trained[0]))
    for resumed, whole in zip(recorder.records, trained[1].records, strict=True):
        assert resumed._replace(seconds=0, images_per_second=0) == whole._replace(seconds=0, images_per_second=0)


def test_replicas_as_one_program_are_as_good_as_one_by_one(dataset, trained):
    others = [dataclasses.replace(CONFIG, seed=1), dataclasses.replace(CONFIG, margin=0.2)]
    recorders = [Recorder() for _ in range(3)]
    together = fit_replicas([CONFIG, *others], dataset, reporters=recorders)
    np.testing.assert_allclose(flat(together[0]), flat(trained[0]), rtol=1e-3, atol=1e-4)
    for config, state in zip(others, together[1:], strict=True):
        alone = fit_config(config, dataset)
        np.testing.assert_allclose(flat(state), flat(alone), rtol=1e-3, atol=1e-4)
        assert np.abs(flat(alone) - flat(trained[0])).max() > 1e-2
    assert [record.epoch for recorder in recorders for record in recorder.records] == [1, 2, 1, 2, 1, 2]


def test_a_scanned_epoch_is_the_same_as_its_steps(dataset):
    model, source, optimizer = training.make_objects(CONFIG, dataset)
    parts, _, _ = states.split(model)
    step, draws = make_step(parts, optimizer, source, 3), training.config_draws(CONFIG, model)
    results = []
    for scan in (False, True):
        state, losses = initial_state(CONFIG, dataset), []
        batches = training.with_draws(source, draws)(0, 0)
        for reached, metrics in make_run(step, scan=scan)(
            state, source.resident, batches, model.head.objective.margins
        ):
            state = reached
            losses += np.ravel(metrics.loss).tolist()
        results.append((flat(state), losses))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)


def embedded(config, state, dataset, images):
    """Embeddings of images by a trained backbone."""
    parts, _, _ = states.split(initial_model(config, dataset))
    mean, std = channel_statistics(dataset.train.images)
    backbone = parts.merge(state.params, state.stats).backbone
    backbone.eval()
    return np.asarray(backbone(jnp.asarray((images - mean) / std, jnp.float32)))


def test_evaluation_is_of_every_test_image(dataset, trained):
    state, recorder = trained
    whole = embedded(CONFIG, state, dataset, dataset.test.images).astype(np.float64)
    prototypes = np.asarray(state.params["head"]["prototypes"][...], np.float64)
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    cosine = unit @ (prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)).T
    labels, rows = dataset.test.labels, np.arange(11)
    assert recorder.records[-1].test_accuracy == np.mean(cosine.argmax(1) == labels)
    logits = 16 * cosine
    logits[rows, labels] = 16 * np.cos(np.arccos(cosine[rows, labels]) + 0.5)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[rows, labels])
    np.testing.assert_allclose(recorder.records[-1].test_loss, expected, rtol=1e-4)


def test_bfloat16_keeps_parameters_in_float32(dataset):
    config = dataclasses.replace(CONFIG, precision="bfloat16", epochs=1)
    recorder = Recorder()
    state = fit_config(config, dataset, reporter=recorder)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.stats))} == {jnp.dtype(jnp.float32)}
    full = Recorder()
    fit_config(dataclasses.replace(config, precision="float32"), dataset, reporter=full)
    assert recorder.losses != full.losses
    np.testing.assert_allclose(recorder.losses[0], full.losses[0], rtol=0.1)


def test_a_loss_that_is_not_finite_stops_the_training(dataset):
    config = dataclasses.replace(CONFIG, learning_rate=1e30, warmup_epochs=0, clip_norm=0.0, optimizer="sgd")
    with pytest.raises(training.Diverged, match=r"loss of step \d is (nan|inf)"):
        fit_config(config, dataset)


def test_a_network_that_gives_nan_is_not_taken_for_one_that_gives_zero(dataset):
    state = fit_config(dataclasses.replace(CONFIG, epochs=0), dataset)
    kernel = state.params["backbone"]["stages"][0]["conv1"]["kernel"]
    kernel[...] = kernel[...].at[0].set(jnp.nan)
    with pytest.raises(training.Diverged, match="loss of step 1 is nan"):
        fit_config(CONFIG, dataset, state=state)


def test_airnets_first_layer_whitens_the_training_images(dataset):
    config = dataclasses.replace(CONFIG, backbone="airnet")
    filters = training.initial_weights(config, dataset)["backbone.whiten.weight"]
    mean, std = dataset.train.images.mean(), dataset.train.images.std()
    np.testing.assert_allclose(filters, whitening_filters((dataset.train.images - mean) / std), rtol=1e-3, atol=1e-4)


def test_zero_epochs_leave_the_initial_weights(dataset):
    config = dataclasses.replace(CONFIG, epochs=0)
    state = fit_config(config, dataset)
    final = state.weights
    for name, value in training.initial_weights(config, dataset).items():
        np.testing.assert_array_equal(final[name], value)


PAIRS = dataclasses.replace(CONFIG, loss="supcon", margin_warmup_epochs=0)
STATEFUL = dataclasses.replace(
    CONFIG, loss="adaface+center:0.1+center_learnt:0.1+triplet:0.1", classes_per_batch=2, epochs=2
)


def loss_states(state: TrainState) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.filter_state(state.stats, heads.LossState))
    return {".".join(map(str, path[-2:])): np.asarray(leaf[...]) for path, leaf in flat}


def test_losses_with_a_state_are_resumed_from_a_checkpoint_bit_for_bit(dataset, tmp_path):
    whole = fit_config(STATEFUL, dataset)
    recorder = Recorder(stop_after=4)
    stopped = fit_config(STATEFUL, dataset, reporter=recorder, stop=recorder.stop)
    assert set(loss_states(stopped)) == {"adaface.mean", "adaface.std", "center.centers"}
    assert np.abs(loss_states(stopped)["center.centers"]).max() > 0
    assert not any("states" in name for name in stopped.weights)  # they are no weights
    runs.write_checkpoint(tmp_path, stopped)
    resumed = fit_config(STATEFUL, dataset, state=runs.read_checkpoint(tmp_path, initial_state(STATEFUL, dataset), 100))
    for here, there in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(here, there)


def test_losses_with_a_state_as_replicas_of_one_program(dataset):
    configs = [STATEFUL, dataclasses.replace(STATEFUL, seed=1)]
    for config, state in zip(configs, fit_replicas(configs, dataset), strict=True):
        alone = fit_config(config, dataset)
        np.testing.assert_allclose(flat(state), flat(alone), rtol=1e-3, atol=1e-4)


def test_learnt_centres_are_not_decayed():
    params = {"centers": jnp.ones((3, 2)), "prototypes": jnp.ones((3, 2))}
    optimizer = make_optimizer(TrainConfig(optimizer="sgd", weight_decay=0.5, warmup_epochs=0), 1)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert np.abs(updates["centers"]).max() == 0
    assert np.abs(updates["prototypes"]).min() > 0


def test_pair_losses_alone_classify_by_the_mean_of_each_class(dataset):
    recorder = Recorder()
    state = fit_config(PAIRS, dataset, reporter=recorder)
    found = state.weights["head.prototypes"]
    train, test = (
        embedded(PAIRS, state, dataset, split.images).astype(np.float64) for split in (dataset.train, dataset.test)
    )
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    means = np.stack([unit[dataset.train.labels == label].mean(axis=0) for label in range(3)])
    np.testing.assert_allclose(found, means, rtol=1e-5, atol=1e-6)
    assert np.abs(found - training.initial_weights(PAIRS, dataset)["head.prototypes"]).max() > 0.01
    cosine = test @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    assert recorder.records[-1].test_accuracy == np.mean(cosine.argmax(axis=1) == dataset.test.labels)
    assert recorder.records[-1].test_loss is None


def test_softmax_classifies_by_its_logits(dataset):
    config = dataclasses.replace(CONFIG, loss="softmax", margin_warmup_epochs=0)
    recorder = Recorder()
    state = fit_config(config, dataset, reporter=recorder)
    found = state.weights
    assert np.abs(found["head.bias"]).max() > 0
    logits = embedded(config, state, dataset, dataset.test.images) @ found["head.prototypes"].T + found["head.bias"]
    assert recorder.records[-1].test_accuracy == np.mean(logits.argmax(axis=1) == dataset.test.labels)


@pytest.mark.parametrize("changes", [{"classes_per_batch": 4}, {"batch_size": 27}])
def test_too_few_images_or_classes_are_refused(changes, dataset):
    with pytest.raises(UserError):
        fit_config(dataclasses.replace(CONFIG, **changes), dataset)


def test_adacos_of_two_classes_is_refused(dataset):
    parts = (Split(split.images, split.labels % 2) for split in (dataset.train, dataset.test))
    two = Dataset("two", *parts, ("a", "b"))
    with pytest.raises(ValueError, match="needs at least 3"):
        fit_config(dataclasses.replace(CONFIG, loss="adacos", margin_warmup_epochs=0), two)


@pytest.mark.parametrize("words", ["arcface", "subcenter", "arcface:filter=0.3+intra"])
def test_a_training_with_many_classes_takes_the_fused_loss(dataset, words, monkeypatch):
    config = dataclasses.replace(CONFIG, loss=words, subcenters=3 if words == "subcenter" else 1, epochs=1)
    calls = []
    loss_of = fused.loss_and_correct
    monkeypatch.setattr(fused, "loss_and_correct", lambda *args, **kwargs: calls.append(1) or loss_of(*args, **kwargs))
    dense = fit_config(config, dataset)
    assert not calls
    monkeypatch.setattr(fused, "MANY_COSINES", 0)
    monkeypatch.delattr(heads, "nearest_class")  # not needed: the loss knows
    state = fit_config(config, dataset)
    assert calls
    np.testing.assert_allclose(flat(state), flat(dense), rtol=1e-3, atol=1e-4)
    assert state.totals.accuracy == dense.totals.accuracy


@pytest.mark.parametrize(
    ("changes", "can"),
    [
        ([{"margin": 0.1}, {"margin": 0.4}], True),
        ([{"loss": "adaface", "margin": 0.1}, {"loss": "adaface", "margin": 0.4}], True),
        ([{"seed": 0}, {"seed": 1}], True),
        ([{"scale": 8.0}, {"scale": 16.0}], False),
        ([{"loss": "arcface"}, {"loss": "cosface"}], False),
        ([{"loss": "contrastive:m=0.1"}, {"loss": "contrastive:m=0.2"}], False),
        ([{"width": 0.1}, {"width": 0.2}], False),
    ],
)
def test_what_can_be_trained_as_one_program(changes, can, dataset):
    configs = [dataclasses.replace(CONFIG, margin_warmup_epochs=0, **change) for change in changes]
    assert training.can_train_together(configs) is can
    if not can:
        with pytest.raises(ValueError, match="differ in more"):
            fit_replicas(configs, dataset)


# ---- objects


class Net(nnx.Module):
    """A user's network: two layers and nnx's own dropout and batch norm."""

    def __init__(self, rngs):
        self.first = nnx.Linear(81, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.second = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, images):
        return self.second(self.dropout(nnx.relu(self.norm(self.first(images.reshape(len(images), -1))))))


@pytest.mark.parametrize(
    ("objective", "least"),
    # supcon's least loss with 4 images of each class: each has 3 others of its class, all as near
    [(arcface(scale=16.0), 0.0), (elasticface(scale=16.0), 0.0), (supcon(), np.log(3))],
)
def test_a_users_network_losses_optimiser_and_arrays(objective, least, dataset):
    """And it learns them."""
    backbone, recorder = Net(nnx.Rngs(0)), Recorder()
    head = Head(objective, 4, 3, rngs=nnx.Rngs(1))
    images = dataset.train.images.astype(np.float32) / 255
    source = ArraySource(images, dataset.train.labels, 8, classes_per_batch=2 if objective.classifier is None else 0)
    test = (dataset.test.images / 255, dataset.test.labels)
    state = fit(backbone, head, optax.adam(1e-2), source, epochs=25, test=test, reporter=recorder)
    assert recorder.records[-1].test_accuracy == 1.0
    first, last = (recorder.records[epoch].train_loss - least for epoch in (0, -1))
    assert last < 0.5 * first
    # the modules hold what was learnt
    np.testing.assert_array_equal(backbone.first.kernel[...], state.params["backbone"]["first"]["kernel"][...])
    assert np.abs(backbone.norm.mean[...]).max() > 0
    backbone.eval()
    assert np.mean(np.asarray(head.predict(backbone(jnp.asarray(test[0], jnp.float32)))) == test[1]) == 1.0


def test_a_networks_own_dropout_is_drawn_anew_in_each_step(dataset):
    class Noise(nnx.Module):
        def __init__(self):
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
            self.weight = nnx.Param(jnp.ones(()))

        def __call__(self, images):
            return self.dropout(self.weight * jnp.ones((len(images), 64)))

    recorder = Recorder()
    source = ArraySource(dataset.train.images, dataset.train.labels, 8)
    fit(Noise(), Head(arcface(), 64, 3, rngs=nnx.Rngs(0)), optax.sgd(0.0), source, epochs=1, reporter=recorder)
    assert len(set(recorder.losses)) == 3


class Stream:
    """A source without arrays on the device, and without `sample` and `split`."""

    image_shape, class_names, batch_size, steps_per_epoch, resident = (9, 9, 1), ("a", "b", "c"), 6, 4, None

    def __init__(self, given=4):
        self.given = given

    def batches(self, epoch, start=0):
        rng = np.random.default_rng(epoch)
        for number in range(self.given):
            images = rng.normal(size=(6, 9, 9, 1)).astype(np.float32)
            if number >= start:
                yield {"images": images, "labels": np.arange(6) % 3}

    def take(self, resident, batch):
        return batch["images"], batch["labels"]


@pytest.mark.parametrize("given", [3, 5])
def test_a_source_that_gives_another_number_of_batches_than_it_says_is_refused(given):
    head = Head(arcface(), 4, 3, rngs=nnx.Rngs(1))
    assert fit(Net(nnx.Rngs(0)), head, optax.sgd(0.1), Stream(), epochs=2).step == 8
    with pytest.raises(ValueError, match="batches"):
        fit(Net(nnx.Rngs(0)), head, optax.sgd(0.1), Stream(given), epochs=2)


def test_what_does_not_fit_a_source_is_refused(dataset):
    images, labels = dataset.test.images, dataset.test.labels
    source = ArraySource(dataset.train.images, dataset.train.labels, 8)

    def start(source=source, objective=None, classes=3, test=None):
        head = Head(objective or arcface(), 4, classes, rngs=nnx.Rngs(1))
        fit(Net(nnx.Rngs(0)), head, optax.sgd(0.1), source, epochs=0, test=test)

    start(classes=4, test=(images, labels))
    with pytest.raises(ValueError, match="2 classes"):
        start(classes=2)
    for test in ((images / 255, labels), (images[:0], labels[:0]), (images, labels[1:])):
        with pytest.raises(ValueError, match="images"):
            start(test=test)
    start(Stream(), supcon())
    with pytest.raises(ValueError, match="sample"):
        start(Stream(), supcon(), test=(images / 255, labels))


def test_a_test_split_is_normalised_as_the_training_split(dataset):
    """Grey levels and what they are normalised to by hand give the same numbers."""
    mean, std = channel_statistics(dataset.train.images)
    records = []
    for scaled in (lambda images: images, lambda images: ((images - mean) / std).astype(np.float32)):
        recorder, head = Recorder(), Head(arcface(scale=16.0), 4, 3, rngs=nnx.Rngs(1))
        source = ArraySource(scaled(dataset.train.images), dataset.train.labels, 8)
        test = (scaled(dataset.test.images), dataset.test.labels)
        fit(Net(nnx.Rngs(0)), head, optax.sgd(1e-3), source, epochs=1, test=test, reporter=recorder)
        records.append(recorder.records[0])
    np.testing.assert_allclose(records[0].train_loss, records[1].train_loss, rtol=1e-4)
    np.testing.assert_allclose(records[0].test_loss, records[1].test_loss, rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"labels": np.array([0, -1])}, {"labels": np.array([0, 3])}, {"batch_size": 0}, {"mean": np.zeros(1)}],
)
def test_arrays_that_are_no_source_are_refused(change):
    given = {"images": np.zeros((2, 8, 8, 1), np.uint8), "labels": np.array([0, 1]), "batch_size": 2}
    ArraySource(**given, class_names="abc")
    with pytest.raises(ValueError, match=r"labels|batch size|mean"):
        ArraySource(**(given | change), class_names="abc")
