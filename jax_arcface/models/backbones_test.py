"""Shapes, sizes from the papers, and what each network must be blind to. `parity_tests` compares the values."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_arcface.errors import UserError
from jax_arcface.models import weights
from jax_arcface.models.airnet import WhiteningFilters, whitening_filters
from jax_arcface.models.backbones import BACKBONES, TRUSTED, backbone_factory, import_own
from jax_arcface.models.iresnet import DEPTHS
from jax_arcface.models.layers import FixedScale

FACES = ("iresnet18", "mobilefacenet", "mobilefacenet_relu6")  # those of many layers take long to compile
DEEPER = [f"iresnet{depth}" for depth in DEPTHS if depth != 18]  # of the same blocks
NAMES = [name for name in BACKBONES if name not in (*FACES, *DEEPER)]
NAMES_AND_SLOW = [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in FACES)]


def abstract(name: str, shape: tuple[int, int, int], dimension: int = 2, **options):
    return nnx.eval_shape(lambda: BACKBONES[name](shape, dimension, **options, rngs=nnx.Rngs(0)))


def parameters(model, kind=nnx.Param) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(model, kind)))


@pytest.mark.parametrize("name", NAMES_AND_SLOW)
@pytest.mark.parametrize("shape", [(28, 28, 1), (33, 40, 3)])
def test_embeddings_have_the_asked_dimension_in_training_and_evaluation(name, shape):
    for mode in ("train", "eval"):

        def embed(mode=mode):
            model = BACKBONES[name](shape, 5, 0.25, rngs=nnx.Rngs(0))
            getattr(model, mode)()
            return model(jnp.zeros((3, *shape)))

        embeddings = nnx.eval_shape(embed)
        assert embeddings.shape == (3, 5)
        assert embeddings.dtype == jnp.float32


def test_sizes_are_those_of_the_papers():
    # the convolutions and norms of ResNet-20 are 0.27 M (He et al. 2016, table 6), less its classifier of 650
    embedding = 2 * 64 + 64 * 2 + 2 * 2
    assert parameters(abstract("resnet20", (32, 32, 3))) - embedding == 269_722 - 650 == 269_072
    # ResNet-18 for 32x32 has 11,173,962 with its classifier of 5,130
    embedding = 2 * 512 + 512 * 2 + 2 * 2
    assert parameters(abstract("resnet18", (32, 32, 3))) - embedding == 11_173_962 - 5_130
    # LeNet++ (Wen et al. 2016, table 1): 5x5 convolutions with bias and PReLU, 32, 64 and 128 channels twice
    pairs = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    embedding = 2 * 128 + 9 * 128 * 2 + 2 * 2
    assert parameters(abstract("lenet", (28, 28, 1))) - embedding == sum(25 * i * o + 2 * o for i, o in pairs)
    # "about 2 M parameters"; the whitening layer is fixed
    airnet = abstract("airnet", (32, 32, 3), 128)
    assert 1.9e6 < parameters(airnet) < 2.1e6
    assert parameters(airnet, WhiteningFilters) == 24 * 12


@pytest.mark.parametrize(
    ("name", "entries", "millions"),
    [
        ("iresnet18", 187, 24.03),
        ("iresnet34", 331, 34.14),
        ("iresnet50", 475, 43.59),
        ("iresnet100", 925, 65.16),
        ("mobilefacenet", 333, 2.06),
    ],
)
def test_sizes_are_those_of_arcface_torch(name, entries, millions):
    """A state dict of PyTorch also counts the batches of each batch norm."""
    model = abstract(name, (112, 112, 3), 512)
    names = weights.pytorch_shapes(nnx.state(model))
    assert len(names) + sum(name.endswith("running_var") for name in names) == entries
    assert round(parameters(model, nnx.Any(nnx.Param, FixedScale)) / 1e6, 2) == millions


def test_the_published_mobilefacenet_has_its_files_entries():
    names = weights.pytorch_shapes(nnx.state(abstract("mobilefacenet_relu6", (112, 112, 3), 128)))
    assert len(names) + sum(name.endswith("running_var") for name in names) == 307


def test_width_scales_the_channels():
    assert abstract("resnet20", (32, 32, 3), width=0.5).conv.kernel.shape == (3, 3, 3, 8)
    assert abstract("lenet", (28, 28, 1), width=0.01).stages[0].conv1.kernel.shape == (5, 5, 1, 1)


@pytest.mark.parametrize(
    ("name", "size"), [("lenet", 7), ("airnet", 8), ("resnet18", 7), ("resnet20", 3), ("mobilefacenet_relu6", 15)]
)
def test_images_that_are_too_small_are_refused(name, size):
    with pytest.raises(ValueError, match=f"{name} needs images of at least {size + 1}x{size + 1} pixels; these have"):
        abstract(name, (size, size, 1))


@pytest.mark.parametrize("name", NAMES_AND_SLOW)
def test_one_compiled_network(name):
    """Evaluation treats each image by itself, training does not, and bfloat16 changes little and no parameter."""
    shape = (16, 16, 1)
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    graphdef, empty = nnx.split(abstract(name, shape, 3, width=0.1))
    narrow, _ = nnx.split(abstract(name, shape, 3, width=0.1, dtype=jnp.bfloat16))
    drawn = weights.initial(empty, seed=0)
    if name == "airnet":
        drawn["whiten.weight"] = whitening_filters(x)
    state = weights.from_pytorch(empty, drawn)

    @jax.jit
    def embed(x):
        model = nnx.merge(graphdef, state, copy=True)
        model.eval()
        evaluation = model(x)
        model.train()
        training = model(x)
        in_bfloat16 = nnx.merge(narrow, state, copy=True)
        in_bfloat16.eval()
        return evaluation, training, nnx.state(model, nnx.BatchStat), in_bfloat16(x)

    evaluation, training, changed, in_bfloat16 = embed(x)
    other = np.concatenate([x[:1], 3 * x[1:]])
    again, *_ = embed(other)
    np.testing.assert_allclose(evaluation[0], again[0], rtol=1e-5, atol=1e-6)
    assert np.abs(evaluation[1] - again[1]).max() > 1e-4
    assert np.abs(evaluation - training).max() > 1e-2
    np.testing.assert_allclose(training.mean(axis=0), 0, atol=1e-5)
    for name, after in weights.to_pytorch(changed).items():
        assert np.abs(drawn[name] - after).max() > 0, name
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(nnx.merge(narrow, state))))
    assert in_bfloat16.dtype == jnp.bfloat16
    assert 0 < np.abs(in_bfloat16.astype(np.float32) - evaluation).max() < 0.1 * np.abs(evaluation).max()


def test_whitening_filters_whiten():
    rng = np.random.default_rng(0)
    mixing = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.5]])
    images = rng.normal(size=(200, 9, 9, 3)) @ mixing  # neighbours are independent, channels are not
    filters = whitening_filters(images)
    assert filters.shape == (24, 3, 2, 2)
    np.testing.assert_array_equal(filters[:12], -filters[12:])
    outputs = np.einsum(
        "nijcab,fcab->nijf", np.lib.stride_tricks.sliding_window_view(images, (2, 2), (1, 2)), filters[:12]
    )
    moments = np.einsum("nijf,nijg->fg", outputs, outputs) / outputs[..., 0].size
    np.testing.assert_allclose(moments, np.eye(12), atol=5e-3)
    rows = filters[:12].reshape(12, -1)
    assert (rows[np.arange(12), np.abs(rows).argmax(1)] > 0).all()
    assert (np.diff(np.linalg.norm(rows, axis=1)) > 0).all()  # the largest eigenvalue comes first


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module `own_networks`, which nothing has imported; gone afterwards."""
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(TRUSTED, raising=False)
    yield "own_networks"
    sys.modules.pop("own_networks", None)


OWN = """
from flax import nnx

class Net(nnx.Module):
    def __init__(self, image_shape, embedding_dim, *, rngs, dropout=0.0):
        self.norm = nnx.BatchNorm(image_shape[-1], rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.LinearGeneral(image_shape, embedding_dim, axis=(1, 2, 3), rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(self.norm(x)))

def plain(image_shape, embedding_dim, *, rngs):
    return Net(image_shape, embedding_dim + 1, rngs=rngs)
"""


def test_a_file_cannot_have_an_own_network_imported(own_module, monkeypatch):
    with pytest.raises(UserError):
        backbone_factory("own_networks:Net")
    assert own_module not in sys.modules
    monkeypatch.setenv(TRUSTED, "other,own_networks")
    assert backbone_factory("own_networks:Net")((4, 4, 1), 3, rngs=nnx.Rngs(0)).out.bias.shape == (3,)


def test_own_networks_that_do_not_fit_are_refused(own_module):
    import_own("own_networks:Net")
    for name, options in (
        ("own_networks:none", {}),
        ("own_networks:plain", {}),
        ("own_networks:plain", {"dropout": 0.5}),
    ):
        with pytest.raises(UserError):
            backbone_factory(name)((4, 4, 1), 3, rngs=nnx.Rngs(0), **options)
    for function, name in ((import_own, "nowhere:net"), (backbone_factory, "own_networks:not a name")):
        with pytest.raises(UserError):
            function(name)
