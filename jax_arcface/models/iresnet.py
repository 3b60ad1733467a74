"""IResNet: the residual networks of ArcFace, under the parameter names of published weights."""

from __future__ import annotations

from typing import Any

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jax_arcface.models.images import ImageShape, check_size
from jax_arcface.models.layers import BatchNorm, Conv, Dropout, PReLU, flattened, scaled

# Blocks in each of the four layers, by the number in the network's name.
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}


class _Block(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, **kwargs: Any):
        self.bn1 = BatchNorm(inputs)
        self.conv1 = Conv(inputs, outputs, 3, **kwargs)
        self.bn2 = BatchNorm(outputs)
        self.prelu = PReLU(outputs)
        self.conv2 = Conv(outputs, outputs, 3, stride=stride, **kwargs)
        self.bn3 = BatchNorm(outputs)
        changes = stride != 1 or inputs != outputs
        shortcut = [Conv(inputs, outputs, 1, stride=stride, **kwargs), BatchNorm(outputs)] if changes else []
        self.downsample: nnx.List = nnx.List(shortcut)

    def __call__(self, x: Array) -> Array:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        for layer in self.downsample:
            x = layer(x)
        return x + y


class IResNet(nnx.Module):
    """ArcFace's residual network (Deng et al. 2019, section 3.1; blocks of Han et al. 2017), as arcface_torch names it.

    Args:
      image_shape: (H, W, C), at least 16x16; published weights are for (112, 112, 3).
      embedding_dim: D; 512 in published weights.
      width: factor on the channels. dropout: before the linear layer.
      depth: one of `DEPTHS`.
      dtype: of convolutions and the linear layer. rngs: for the initial weights.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        embedding_dim: int,
        width: float = 1.0,
        dropout: float = 0.0,
        *,
        depth: int,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        check_size(f"iresnet{depth}", image_shape, 16)
        height, breadth, colours = image_shape
        kwargs: dict[str, Any] = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        inputs = scaled(64, width)
        self.conv1 = Conv(colours, inputs, 3, **kwargs)
        self.bn1 = BatchNorm(inputs)
        self.prelu = PReLU(inputs)
        layers = []
        for blocks, channels in zip(DEPTHS[depth], (64, 128, 256, 512), strict=True):
            outputs = scaled(channels, width)
            first, *rest = (inputs, *(outputs,) * (blocks - 1))
            layers.append(
                nnx.List([_Block(first, outputs, 2, **kwargs), *(_Block(i, outputs, 1, **kwargs) for i in rest)])
            )
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.bn2 = BatchNorm(inputs)
        features = -(-height // 16) * -(-breadth // 16) * inputs
        self.dropout = Dropout(dropout, features, rngs=rngs)
        self.fc = nnx.Linear(features, embedding_dim, dtype=dtype, rngs=rngs)
        self.features = BatchNorm(embedding_dim, fixed_scale=True)

    def __call__(self, images: Array, dropout_mask: Array | None = None) -> Array:
        """[B, H, W, C] to [B, D]; `dropout_mask`, bool [B, F], as in `Dropout`, of features in the order C, H, W."""
        x = self.prelu(self.bn1(self.conv1(images)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x)
        return self.features(self.fc(self.dropout(flattened(self.bn2(x)), dropout_mask)))
