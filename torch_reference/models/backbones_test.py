"""Tests of backbones.py: names, sizes and what each part does, from docs/recipe.md and the papers."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from torch_reference.errors import UserError
from torch_reference.models.airnet import AirNet, whitening_filters
from torch_reference.models.backbones import TRUSTED, import_own, make_backbone
from torch_reference.models.layers import EmbeddingLayer
from torch_reference.models.lenet import LeNet
from torch_reference.models.resnet import ResNet
from torch_reference.training.config import TrainConfig
from torch_reference.training.state import make_model


def weights(model):
    return {name: list(p.shape) for name, p in model.named_parameters()}


def body_size(model):
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("embedding."))


def test_lenet_has_the_recipes_layers():
    shapes = weights(LeNet((28, 28, 1), 2))
    assert shapes["stages.0.conv1.weight"] == [32, 1, 5, 5]
    assert shapes["stages.2.conv2.weight"] == [128, 128, 5, 5]
    assert shapes["stages.1.conv2.bias"] == shapes["stages.1.prelu2.weight"] == [64]
    assert shapes["embedding.fc.weight"] == [2, 128 * 3 * 3]
    assert "embedding.fc.bias" not in shapes
    # two 5x5 convolutions and two slopes in each of three stages
    pairs = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    assert body_size(LeNet((28, 28, 1), 2)) == sum(25 * a * b + 2 * b for a, b in pairs)


def test_the_resnets_have_the_sizes_that_are_known():
    # the usual CIFAR-10 models have 269,722 (option A) and 11,173,962 parameters, 64 x 10 + 10 and 512 x 10 + 10 of
    # them in the last linear layer
    assert body_size(make_backbone("resnet20", (32, 32, 3), 64)) == 269_722 - 650
    assert body_size(make_backbone("resnet18", (32, 32, 3), 64)) == 11_173_962 - 5_130
    names = weights(make_backbone("resnet18", (32, 32, 3), 64))
    assert [n for n in names if "shortcut" in n] == [
        f"stages.{i}.0.shortcut.{n}" for i in (1, 2, 3) for n in ("conv.weight", "bn.weight", "bn.bias")
    ]


def test_airnet_has_the_recipes_layers():
    model = AirNet((32, 32, 3), 64)
    convolutions = [s for n, s in weights(model).items() if "conv" in n or "whiten" in n]
    pairs = [(24, 64), (64, 64), (64, 256), (256, 256), (256, 256), (256, 256)]
    assert convolutions == [[24, 3, 2, 2], *([b, a, 3, 3] for a, b in pairs)]
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["whiten.weight"]
    assert not any(n.endswith("conv1.bias") or n == "whiten.bias" for n in weights(model))


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name in ("lenet", "resnet20", "resnet18", "airnet") for size in ((9, 9), (13, 10))]
    + [(name, size) for name in ("iresnet18", "mobilefacenet", "mobilefacenet_relu6") for size in ((16, 16), (17, 33))],
)
def test_any_size_from_the_smallest_on_works(name, size):
    model = make_backbone(name, (*size, 2), 5, width=0.05).eval()
    assert model(torch.randn(3, 2, *size)).shape == (3, 5)


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
def test_the_networks_for_faces_have_the_sizes_of_arcface_torch(name, entries, millions):
    with torch.device("meta"):
        model = make_backbone(name, (112, 112, 3), 512)
    assert len(model.state_dict()) == entries
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def test_iresnets_last_scale_is_fixed():
    model = make_backbone("iresnet18", (16, 16, 3), 4, width=0.05)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["features.weight"]


def test_width_rounds_ties_to_even_and_leaves_one_channel():
    # 2.5 -> 2, 4.5 -> 4 (16, 32 and 64 channels by 5/32, then 32 by 9/64), and never 0
    assert make_backbone("resnet20", (8, 8, 1), 2, width=5 / 32).conv.out_channels == 2
    assert make_backbone("resnet20", (8, 8, 1), 2, width=9 / 64).stages[1][0].conv1.out_channels == 4
    assert make_backbone("resnet20", (8, 8, 1), 2, width=1e-3).conv.out_channels == 1
    assert AirNet((9, 9, 3), 2, width=1e-3).whiten.out_channels == 24


@pytest.mark.parametrize(
    ("name", "size"), [("lenet", 8), ("airnet", 9), ("resnet20", 4), ("resnet18", 8), ("mobilefacenet_relu6", 16)]
)
def test_too_small_images_are_refused(name, size):
    make_backbone(name, (size, size, 1), 2, width=0.1)
    with pytest.raises(
        UserError, match=f"{name} needs images of at least {size}x{size} pixels; these have {size - 1}x"
    ):
        make_backbone(name, (size - 1, size, 1), 2)


def test_option_a_takes_every_second_pixel_and_appends_zeros():
    block = ResNet.resnet20((8, 8, 1), 2).stages[1][0].eval()
    torch.nn.init.zeros_(block.bn2.weight)  # only the shortcut is left
    x = torch.rand(2, 16, 7, 8)
    y = block(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert y.shape == (2, 32, 4, 4)
    assert not y[:, 16:].any()


def test_airnets_maximum_gives_a_ties_gradient_to_the_first():
    model = AirNet((9, 9, 1), 2, width=0.05)
    maps = torch.zeros(1, 3, 2, 2, requires_grad=True)
    model.blocks = torch.nn.ModuleList([torch.nn.Identity()])
    model.whiten = torch.nn.Identity()
    model.features(maps).sum().backward()
    assert maps.grad.flatten(2).bool().tolist() == [[[True, False, False, False]] * 3]


def test_max_pooling_gives_a_ties_gradient_to_the_first_and_drops_an_odd_row():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.ones(2, 8, 5, 5).contiguous(memory_format=memory_format).requires_grad_()
        F.max_pool2d(x, 2).sum().backward()
        expected = torch.zeros(5, 5)
        expected[:4:2, :4:2] = 1
        assert torch.equal(x.grad, expected.expand(2, 8, 5, 5))


def test_batch_norm_keeps_the_unbiased_variance():
    layer = EmbeddingLayer(3, 2, 2, 4)
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    layer.double()(x)
    values = x.numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(layer.bn1.running_var, 0.9 + 0.1 * values.var(axis=1, ddof=1))
    np.testing.assert_allclose(layer.bn1.running_mean, 0.1 * values.mean(axis=1))
    assert (layer.bn1.eps, layer.bn2.eps) == (1e-5, 1e-5)


def test_embedding_layer_in_training_written_out():
    layer = EmbeddingLayer(3, 2, 2, 4, dropout=0.25).double()
    x = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    keep = torch.rand(6, 12) >= 0.25

    def norm(values, axes):
        return (values - values.mean(axes, keepdims=True)) / np.sqrt(values.var(axes, keepdims=True) + 1e-5)

    features = norm(x.numpy(), (0, 2, 3)).reshape(6, 12) * keep.numpy() / 0.75
    expected = norm(features @ layer.fc.weight.detach().numpy().T, (0,))
    np.testing.assert_allclose(layer(x, keep).detach(), expected, rtol=1e-10, atol=1e-12)


def test_nothing_is_dropped_in_evaluation_and_something_in_training():
    layer = EmbeddingLayer(3, 2, 2, 4, dropout=0.5).eval()
    x = torch.randn(6, 3, 2, 2)
    everything = layer(x)
    assert torch.equal(layer(x, torch.zeros(6, 12, dtype=torch.bool)), everything)
    assert layer.train()(x).ne(layer(x)).any()


def test_whitening_filters_whiten():
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(700, 2, 6, 5)), axis=2), axis=3).astype(np.float32)
    filters = whitening_filters(smooth)
    assert (filters.shape, filters.dtype) == ((16, 2, 2, 2), np.float32)
    np.testing.assert_array_equal(filters[8:], -filters[:8])
    patches = [smooth[:, :, r : r + 2, c : c + 2].reshape(700, 8) for r in range(5) for c in range(4)]
    patches = np.concatenate(patches).astype(np.float64)
    moment = patches.T @ patches / len(patches)
    rows = filters[:8].reshape(8, 8)
    whitened = rows @ moment @ rows.T
    values = np.linalg.svd(moment, compute_uv=False)
    np.testing.assert_allclose(whitened, np.diag(values / (values + 5e-4)), atol=1e-4)
    assert (np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1) > 0).all()


OWN = """
from torch import nn

def net(image_shape, embedding_dim):
    height, width, channels = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, embedding_dim))

def wide(image_shape, embedding_dim):
    return net(image_shape, embedding_dim + 1)

def nothing(image_shape, embedding_dim):
    return None
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module `own_nets` that nothing has imported; gone afterwards."""
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(TRUSTED, raising=False)
    yield
    sys.modules.pop("own_nets", None)


@pytest.mark.usefixtures("own")
def test_an_own_network_starts_as_it_is_made_and_only_a_trusted_one_is_imported(monkeypatch):
    with pytest.raises(UserError):
        make_backbone("own_nets:net", (4, 4, 1), 3)
    assert "own_nets" not in sys.modules
    monkeypatch.setenv(TRUSTED, "other,own_nets")
    assert weights(make_backbone("own_nets:net", (4, 4, 1), 3)) == {"1.weight": [3, 16], "1.bias": [3]}
    config = TrainConfig(backbone="own_nets:net", embedding_dim=3)
    one, same, other = (
        make_model(dataclasses.replace(config, seed=seed), (4, 4, 1), 10).backbone[1].bias for seed in (0, 0, 1)
    )
    assert one.abs().min() > 0  # the recipe's start at 0
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.usefixtures("own")
def test_own_networks_that_do_not_fit_are_refused():
    import_own("own_nets:net")
    for name, dropout in (("own_nets:none", 0), ("own_nets:wide", 0), ("own_nets:nothing", 0), ("own_nets:net", 0.5)):
        with pytest.raises(UserError):
            make_backbone(name, (4, 4, 1), 3, dropout=dropout)
    with pytest.raises(UserError):
        import_own("nowhere_at_all:net")
