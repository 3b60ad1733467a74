"""LeNet++: the network of center loss, for small grey images."""

from __future__ import annotations

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jax_arcface.models.images import ImageShape, check_size
from jax_arcface.models.layers import Conv, Embedding, PReLU, max_pool, scaled


class _LeNetStage(nnx.Module):
    def __init__(self, inputs: int, outputs: int, **kwargs):
        self.conv1 = Conv(inputs, outputs, 5, **kwargs)
        self.prelu1 = PReLU(outputs)
        self.conv2 = Conv(outputs, outputs, 5, **kwargs)
        self.prelu2 = PReLU(outputs)

    def __call__(self, x: Array) -> Array:
        return max_pool(self.prelu2(self.conv2(self.prelu1(self.conv1(x)))))


class LeNet(nnx.Module):
    """LeNet++ (Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016, table 1).

    Three stages of two 5x5 convolutions with PReLU and a pooling, then the embedding layer. Images of at least 8x8.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        embedding_dim: int,
        width: float = 1.0,
        dropout: float = 0.0,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        height, breadth, inputs = image_shape
        check_size("lenet", image_shape, 8)
        channels = [scaled(c, width) for c in (32, 64, 128)]
        stages = zip([inputs, *channels], channels, strict=False)
        self.stages = nnx.List([_LeNetStage(i, o, dtype=dtype, rngs=rngs) for i, o in stages])
        shape = (height // 8, breadth // 8, channels[-1])
        self.embedding = Embedding(shape, embedding_dim, dropout, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, dropout_mask: Array | None = None) -> Array:
        """[B, H, W, C] to [B, D]."""
        x = images
        for stage in self.stages:
            x = stage(x)
        return self.embedding(x, dropout_mask)
