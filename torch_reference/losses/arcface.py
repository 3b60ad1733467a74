"""ArcFace in five lines (Deng et al., CVPR 2019, equation 3): the loss to read first.

`margin_softmax_loss` in `softmax.py` is the same number, and the same gradient, wherever all angles lie well between 0
and pi and theta_y + m does not exceed pi. What it adds, and what would happen without it:

- `normalize` scales a vector by its largest entry first, so that the squares of very large and very small ones neither
  overflow nor vanish, and gives a zero vector the cosine 0 and no gradient.
- `angles` (in `margins.py`) takes atan2(sin(theta), cos(theta)). The arc cosine alone loses half of the digits near 0
  and pi; and where rounding takes a cosine past 1, it is NaN.
- The derivatives of theta and psi are written out. Autodiff divides by sin(theta), which is 0 at 0 and pi: the gradient
  would be infinite, or NaN.
- `Margin.beyond_pi` says what follows where theta_y + m exceeds pi. The cosine rises again from there, so that an
  embedding at the far side of the sphere would be pushed away from its class.
- `cross_entropies` keeps the digits of a small loss, log(1 + sum exp(z_j - z_y)), and of its gradient.
- Half precision is taken to float32 before anything is squared; labels, shapes and numbers are checked; and there are
  the other margins, sub-centres, label smoothing, weights and reduction.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def arcface_loss(x: Tensor, w: Tensor, y: Tensor, m: float = 0.5, s: float = 64.0) -> Tensor:
    """The mean cross entropy of s cos(theta_j + m [j = y]), theta_j the angle between embedding x and prototype W_j.

    Args:
      x: embeddings, [B, D]. w: prototypes, [C, D]. y: labels, [B].
      m: the margin in radians. s: the scale.

    >>> x, w = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> arcface_loss(x, w, torch.tensor([0]), s=1.0)  # log(1 + e^(cos(pi / 4) - cos(pi / 4 + 0.5)))
    tensor(0.9284)
    """
    cosine = F.normalize(x) @ F.normalize(w).T
    theta = torch.acos(cosine)
    margin = m * F.one_hot(y, len(w))
    logits = s * torch.cos(theta + margin)
    return F.cross_entropy(logits, y)
