"""What a training is made of: the model, the optimiser, what the losses remember, and how far it has come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from torch_reference.models import weights
from torch_reference.models.backbones import is_own, make_backbone
from torch_reference.models.heads import Classifier, Head
from torch_reference.training.config import TrainConfig


def make_model(config: TrainConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """The backbone and the head that a configuration describes, with the recipe's initial weights.

    Raises:
      UserError: images that are too small. ValueError: too few classes.

    >>> make_model(TrainConfig(), (8, 8, 1), num_classes=10).head.prototypes.shape
    torch.Size([10, 128])
    """
    shape, dim = image_shape, config.embedding_dim
    if not is_own(config.backbone):
        backbone = make_backbone(config.backbone, shape, dim, config.width, config.dropout)
        model = Classifier(backbone, Head(config.objective, dim, num_classes))
        weights.initialise(model, config.seed)
        return model
    with torch.random.fork_rng(devices=[]):  # starts as its factory makes it
        torch.manual_seed(config.seed)
        model = Classifier(
            make_backbone(config.backbone, shape, dim, config.width, config.dropout),
            Head(config.objective, dim, num_classes),
        )
    kept = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    weights.initialise(model, config.seed)
    model.backbone.load_state_dict(kept)
    return model


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser, with weight decay on weights of two axes or more, but not on centres.

    Each step sets its learning rate.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and name != "head.centers" else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999), eps=1e-8)
    # without momentum Nesterov's step is the plain one, and torch refuses the word
    nesterov = config.optimizer == "nesterov" and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)


@dataclasses.dataclass
class TrainState:
    """A training after so many steps; `train_step` changes it.

    Args:
      model: the backbone, and the head with what its losses remember.
      optimizer: with its momenta.
      step: how many.
      loss_sum, accuracy_sum: of the steps of the running epoch.
      embed: what computes the backbone in training, such as a compiled one; the backbone itself where None.
    """

    model: Classifier
    optimizer: torch.optim.Optimizer
    step: int = 0
    loss_sum: float = 0.0
    accuracy_sum: float = 0.0
    embed: Callable[..., Tensor] | None = None

    def _losses(self) -> dict[str, tuple[nn.Module, str]]:
        """What the losses remember, by its name in a checkpoint: a module and the name of its buffer."""
        return {
            f"losses.{term.name}.{name}": (term, name)
            for _, term in self.model.head.objective
            for name, _ in term.named_buffers()
        }

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, by name, for a checkpoint."""
        arrays = {f"model.{name}": array for name, array in weights.to_arrays(self.model).items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    arrays[f"optimizer.{key}.{name}"] = value.detach().cpu().contiguous().numpy()
        for name, (term, buffer) in self._losses().items():
            arrays[name] = term.get_buffer(buffer).cpu().numpy()
        for key in ("step", "loss_sum", "accuracy_sum"):
            arrays[key] = np.array(getattr(self, key))
        return arrays

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restores what `to_arrays` returned.

        Raises:
          ValueError: arrays that do not fit the model, its optimiser or its losses.
        """
        losses = self._losses()
        if missing := {"step", "loss_sum", "accuracy_sum", *losses} - arrays.keys():
            raise ValueError(f"it has no {min(missing)}")
        prefix = "model."
        model = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        weights.load_arrays(self.model, model)
        parameters = dict(self.model.named_parameters())
        memory = {name.split(".")[1] for name in arrays if name.startswith("optimizer.")}
        if memory != (_memory_of(self.optimizer) if arrays["step"] > 0 else set()):
            raise ValueError(f"its optimiser's memory is {sorted(memory)}, that of another optimiser")
        for name, array in arrays.items():
            if name.startswith("optimizer."):
                _, key, of = name.split(".", 2)
                if of not in parameters:
                    raise ValueError(f"it has {name}, which the model does not know")
                shape = () if key == "step" else tuple(parameters[of].shape)
                if (array.shape, array.dtype) != (shape, np.float32):
                    raise ValueError(f"its {name} is {array.dtype} {array.shape}, not float32 {shape}")
                # AdamW counts its steps on the CPU
                device = parameters[of].device if array.ndim else "cpu"
                self.optimizer.state[parameters[of]][key] = torch.from_numpy(array).to(device)
        for name, (term, buffer) in losses.items():
            before, found = term.get_buffer(buffer), torch.from_numpy(arrays[name])
            if found.shape != before.shape:
                raise ValueError(f"its {name} has shape {tuple(found.shape)}, not {tuple(before.shape)}")
            setattr(term, buffer, found.to(before.device))
        kinds = {name: (array.shape, array.dtype) for name, array in self.to_arrays().items()}
        if kinds != {name: (array.shape, array.dtype) for name, array in arrays.items()}:
            raise ValueError("its arrays are not those of this model, its optimiser and its losses, or of other types")
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
        for key in memory:
            if missing := trained - {name.split(".", 2)[2] for name in arrays if name.startswith(f"optimizer.{key}.")}:
                raise ValueError(f"it has no optimizer.{key}.{min(missing)}")
        self.step = int(arrays["step"])
        self.loss_sum, self.accuracy_sum = float(arrays["loss_sum"]), float(arrays["accuracy_sum"])


def _memory_of(optimizer: torch.optim.Optimizer) -> set[str]:
    """What an optimiser keeps of each parameter after a step."""
    if isinstance(optimizer, torch.optim.AdamW):
        return {"step", "exp_avg", "exp_avg_sq"}
    return {"momentum_buffer"} if optimizer.defaults.get("momentum") else set()
