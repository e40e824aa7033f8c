"""What every update has: parameters, optimiser, target networks, counters, the state, and the order of a step."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rllib_calql.core.encoders import MAX_SHIFT, PixelEncoder
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.data.frames import FrameLayout

Batch = Mapping[str, Tensor]


class StepFigures:
    """Figures of steps, on the device: no step waits for another's. Not every step has the same ones."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    def add(self, names: Iterable[str], total: Tensor, number: int = 1) -> None:
        """Counts `number` steps with figures of these names, whose sums are `total`."""
        key = tuple(names)
        if key in self._sums:
            known, before = self._sums[key]
            self._sums[key] = known.add_(total), before + number
        else:
            self._sums[key] = total.clone(), number

    def means(self) -> dict[str, float]:
        """Each figure's mean over the steps that have it, none for no steps; waits for the device."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        values = iter(torch.cat([total for total, _ in self._sums.values()]).tolist() if self._sums else [])
        for names, (_, number) in self._sums.items():
            for name in names:
                sums[name] = sums.get(name, 0.0) + next(values)
                counts[name] = counts.get(name, 0) + number
        found = {name: sums[name] / counts[name] for name in sums}
        if math.isnan(found.get("mc_return_mean", 0.0)):  # no row of some batch had a return
            del found["mc_return_mean"]
        return found


class Update(ABC):
    """An update step of some kind of actor and critics, whose losses subclasses bring.

    A subclass names its networks, builds them (`build`), draws the randomness of a step (`draw_noise`), fills
    gradients (`gradients`) and says what they were made of (`figures`). All gradients are taken at the old
    parameters, then one Adam step moves everything, then the target networks follow. `online` says which
    phase's rules hold.

    `reduce_gradients`, where set, changes the list of all gradients in place before the Adam step (to average
    them over several learners). Of n learners that share batches, `shard = (i, n)` makes number i draw the
    noise of the whole batch and keep that of its own rows: every n-th.

    Observations with images come as frames, which an encoder makes features of: convolutions that the critics
    share and their losses alone move. The actor reads the features, and its losses end there: they would pull
    the features towards what raises Q. Target critics read features of a target encoder, which follows as they
    do, for their values belong to the features they have learned on. Batches are shifted at random before anything
    looks at them (DrQ), observations and next observations each by themselves.

    Args:
        observations: numbers of a flat observation, or the layout of frames.
        act_dim: numbers of an action; actions live in [-1, 1].
        config: hyperparameters.
        device: where everything lives.
        seed: of the initial parameters and of the sampling noise; None draws one.
    """

    NETWORKS: ClassVar[tuple[str, ...]]  # attributes that are modules, ...
    SCALARS: ClassVar[tuple[str, ...]]  # ... that are tensors of their own, ...
    TARGETS: ClassVar[Mapping[str, str]]  # ... and which network follows which

    actor: Any  # of the subclass's own kinds
    critics: Any

    def __init__(
        self,
        observations: int | FrameLayout,
        act_dim: int,
        config: UpdateConfig,
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        self.config, self.act_dim = config, act_dim
        self.device = torch.device(device)
        seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.online = False
        self.num_updates = 0
        self.reduce_gradients: Callable[[list[Tensor]], None] | None = None
        self.shard = (0, 1)
        self.encoder: PixelEncoder | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(observations, FrameLayout):
                self.encoder = PixelEncoder(
                    observations, config.conv_filters, config.feature_dim, config.orthogonal_init
                ).to(self.device, self.dtype)
                self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
                observations = self.encoder.obs_dim
            self.obs_dim: int = observations
            self.obs_mean = torch.zeros(self.obs_dim, device=self.device, dtype=self.dtype)
            self.obs_std = torch.ones(self.obs_dim, device=self.device, dtype=self.dtype)
            groups = self.build()
        if self.encoder is not None:
            groups.append({"params": list(self.encoder.parameters()), "lr": config.critic_lr})
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=self.device.type == "cuda")

    # ---- what a subclass brings

    @abstractmethod
    def build(self) -> list[dict[str, Any]]:
        """Makes networks and scalars, on the device and in the precision; returns the optimiser's groups."""

    @abstractmethod
    def draw_noise(self, batch_size: int) -> Any:
        """Fresh noise for one step from the update's own generator: a NamedTuple with `rows(slice)`."""

    @abstractmethod
    def gradients(self, batch: Batch, noise: Any) -> tuple[Any, ...]:
        """Fills every parameter's `.grad` at the present parameters; returns what the losses were made of."""

    @abstractmethod
    def figures(self, batch: Batch, *values: Any) -> dict[str, Tensor]:
        """What a step reports of the `values` of `gradients`: 0-dim tensors, `mc_return_mean` among them."""

    @abstractmethod
    def act(self, observations: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions (B, A) in [-1, 1] and their log-probabilities (B,): deterministic, or sampled with `noise`."""

    def rules(self, number: int) -> Hashable:
        """What the host decides about update `number`; a recorded step is good for the same rules only."""
        return self.online, (number + 1) % self.config.target_network_update_freq == 0

    def normalize(self, observations: Tensor) -> Tensor:
        """Observations (B, obs_dim) less the mean, over the standard deviation (identity by default)."""
        return (observations - self.obs_mean) / self.obs_std

    def features(self, observations: Tensor) -> Tensor:
        """What actor and critics see of raw observations. Losses of the actor never reach what makes them."""
        return self.normalize(observations if self.encoder is None else self.encoder(observations))

    def target_features(self, observations: Tensor, features: Tensor) -> Tensor:
        """What target critics see of raw observations, of which `features` are already known."""
        return features if self.encoder is None else self.normalize(self.target_encoder(observations))

    def differentiate_features(self, features: Tensor, gradient: Tensor) -> None:
        """Fills the encoder's `.grad`, from a loss's gradient by the features that it made."""
        assert self.encoder is not None
        parameters = list(self.encoder.parameters())
        for parameter, found in zip(parameters, torch.autograd.grad(features, parameters, gradient), strict=True):
            parameter.grad = found

    def augmented(self, batch: Batch) -> Batch:
        """The batch with its images shifted at random, where images are; the same rows on any learner."""
        if self.encoder is None or self.config.image_augmentation is None:
            return batch
        index, number = self.shard
        moved = dict(batch)
        for name in ("observations", "next_observations"):
            shifts = torch.randint(
                2 * MAX_SHIFT + 1,
                (number * len(batch[name]), 2),
                device=self.device,
                generator=self.generator,
            )
            moved[name] = self.encoder.shifted(batch[name], shifts[index::number])
        return moved

    def scalar(self, value: float) -> Tensor:
        """A 0-dim tensor on the update's device and in its precision."""
        return torch.tensor(value, device=self.device, dtype=self.dtype)

    # ---- learning

    def step(self, batch: Batch, noise: Any = None) -> dict[str, Tensor]:
        """One update from a batch.

        Args:
            batch: float tensors `observations`, `next_observations` (B, obs_dim), or frames (B, k, P) uint8,
                `actions` (B, A) in [-1, 1], `rewards`, `dones`, `mc_returns` (B,).
            noise: the step's randomness; drawn where None, and then images are shifted too.

        Returns:
            The step's figures as 0-dim tensors on the device (nothing here waits for it), all measured at the
            parameters before the update.
        """
        if noise is None:
            index, number = self.shard
            noise = self.draw_noise(len(batch["rewards"]) * number)
            noise = noise if number == 1 else noise.rows(slice(index, None, number))
            batch = self.augmented(batch)
        figures = self.figures(batch, *self.gradients(batch, noise))
        if self.reduce_gradients is not None:
            groups = self.optimizer.param_groups
            self.reduce_gradients([p.grad for g in groups for p in g["params"] if p.grad is not None])
        self.optimizer.step()
        self.num_updates += 1
        if self.num_updates % self.config.target_network_update_freq == 0:
            self.update_targets(self.config.tau)
        return figures

    def run(self, sample: Callable[[], Mapping[str, Any]], num_updates: int) -> dict[str, float]:
        """`num_updates` steps from batches of numpy arrays; the means of their figures."""
        figures = StepFigures()
        for _ in range(num_updates):
            metrics = self.step(self.to_tensors(sample()))
            figures.add(metrics, torch.stack(list(metrics.values())))
        return figures.means()

    def to_tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """A batch of numpy arrays on the update's device and in its precision; frames stay bytes."""
        return {
            name: torch.as_tensor(
                array, dtype=torch.uint8 if array.dtype == np.uint8 else self.dtype, device=self.device
            )
            for name, array in batch.items()
        }

    @staticmethod
    def backward(loss: Tensor, parameters: list[Tensor]) -> None:
        """Sets the `.grad` of these parameters, of which the loss is a function, and no other."""
        # Asking for these gradients alone keeps autograd from building any other.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient

    @torch.no_grad()
    def update_targets(self, tau: float) -> None:
        """target <- tau * network + (1 - tau) * target; `tau=1` copies."""
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        encoders = {} if self.encoder is None else {"target_encoder": "encoder"}
        for target, source in {**self.TARGETS, **encoders}.items():
            targets += getattr(self, target).parameters()
            sources += getattr(self, source).parameters()
        torch._foreach_lerp_(targets, sources, tau)

    # ---- state

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        encoders = () if self.encoder is None else ("encoder", "target_encoder")
        for name in (*self.NETWORKS, *encoders):
            for key, tensor in getattr(self, name).state_dict().items():
                yield f"{name}.{key}", tensor
        for name in (*self.SCALARS, "obs_mean", "obs_std"):
            yield name, getattr(self, name).detach()

    def weights(self, prefixes: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
        """Every network, temperature and the normaliser as numpy copies, by name; or those that begin so."""
        tensors = self._tensors()
        return {name: tensor.cpu().numpy().copy() for name, tensor in tensors if name.startswith(prefixes)}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Takes over `weights`; names that are absent keep their values.

        Raises:
            KeyError: a name this update does not have. ValueError: a shape that differs.
        """
        own = dict(self._tensors())
        for name, array in weights.items():
            if name not in own:
                raise KeyError(f"no parameter named {name!r}; this update has {sorted(own)}")
            if own[name].shape != array.shape:
                raise ValueError(f"{name} is {tuple(own[name].shape)} here but {array.shape} in the weights")
        for name, array in weights.items():
            own[name].copy_(torch.tensor(array))

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on bit-equal: weights, optimiser, counters and the noise generator."""
        optimizer = self.optimizer.state_dict()["state"]
        return {
            "weights": self.weights(),
            "optimizer": {i: {k: v.cpu().numpy().copy() for k, v in s.items()} for i, s in optimizer.items()},
            "num_updates": self.num_updates,
            "online": self.online,
            "generator": self.generator.get_state().numpy().copy(),
            "device": self.device.type,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `get_state`; bit-equal on the same kind of device."""
        self.load_weights(state["weights"])
        layout = self.optimizer.state_dict()
        layout["state"] = {
            i: {k: torch.from_numpy(np.array(v)) for k, v in s.items()} for i, s in state["optimizer"].items()
        }
        self.optimizer.load_state_dict(layout)
        self.num_updates, self.online = int(state["num_updates"]), bool(state["online"])
        if state["device"] == self.device.type:
            self.generator.set_state(torch.from_numpy(np.array(state["generator"])))
        else:  # generators of different devices have nothing in common: a new, reproducible sequence
            self.generator.manual_seed(self.num_updates)
