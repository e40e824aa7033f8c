"""The reference value V^mu as a network, fitted once to the offline returns (the paper's appendix G)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rllib_calql.core.losses import expectile_loss
from rllib_calql.core.networks import ACTIVATIONS, ValueNetwork
from rllib_calql.data import DatasetError, Mixture, Transitions
from rllib_calql.data.returns import all_failure

SAMPLE = 16_384  # rows that validation losses and normalisers are measured on
CHECK_INTERVAL = 200  # updates between two validations
TARGET_TAU = 0.01  # of the network that values the ends of cut episodes
MOVED = 0.01  # in deviations of the targets: values of ends that move more than this have yet to settle
BLOCK_ROWS = 1 << 16  # evaluated at a time


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """How the reference value is fitted: `reference_config` of `CalQLConfig`.

    Raises:
        ValueError: a value out of range.
    """

    fcnet_hiddens: Sequence[int] = (256, 256)
    fcnet_activation: str = "relu"
    lr: float = 1e-3
    batch_size: int = 512
    max_updates: int = 20_000
    validation_share: float = 0.1  # of the episodes
    patience: int = 10  # validations without a better one, after which the best is taken
    expectile: float = 0.5  # 0.5: the mean of what the data's policy gets; above: nearer to its best

    def __post_init__(self) -> None:
        limits: dict[str, tuple[Any, bool]] = {
            "lr": ("above 0 and at most 1", 0.0 < self.lr <= 1.0),
            "batch_size": ("a whole number of at least 1", _counts(self.batch_size)),
            "max_updates": ("a whole number of at least 1", _counts(self.max_updates)),
            "patience": ("a whole number of at least 1", _counts(self.patience)),
            "validation_share": ("inside (0, 1)", 0.0 < self.validation_share < 1.0),
            "expectile": ("inside (0, 1)", 0.0 < self.expectile < 1.0),
            "fcnet_activation": (f"one of {', '.join(ACTIVATIONS)}", self.fcnet_activation in ACTIVATIONS),
            "fcnet_hiddens": ("positive layer widths", all(map(_counts, self.fcnet_hiddens))),
        }
        for name, (rule, holds) in limits.items():
            if not holds:
                raise ValueError(f"reference_config: {name} must be {rule}, not {getattr(self, name)!r}")


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class ScaledValueNetwork(ValueNetwork):
    """MLP(s) -> V(s) on raw observations (B, obs_dim) and values (B,), both normalised inside."""

    obs_mean: Tensor
    obs_std: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, obs_dim: int, hiddens: Sequence[int], activation: str) -> None:
        super().__init__(obs_dim, hiddens, activation, orthogonal_init=False)
        for name, shape in (("obs_mean", (obs_dim,)), ("mean", ())):
            self.register_buffer(name, torch.zeros(shape))
        for name, shape in (("obs_std", (obs_dim,)), ("std", ())):
            self.register_buffer(name, torch.ones(shape))

    def forward(self, observations: Tensor) -> Tensor:
        return super().forward((observations - self.obs_mean) / self.obs_std) * self.std + self.mean

    @torch.no_grad()
    def rescale(self, mean: Tensor, std: Tensor) -> None:
        """Another normalisation of the values, which stay what they are (van Hasselt et al. 2016, "Pop-Art")."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(self.std / std)
        last.bias.mul_(self.std).add_(self.mean - mean).div_(std)
        self.mean.copy_(mean)
        self.std.copy_(std)


class ReferenceValue:
    """The fitted value: observations (N, obs_dim) -> (N,) float32, in the units of the rewards that train.

    `figures` says how good it is, on episodes that it was not fitted to: `reference_rmse`, and
    `reference_correlation` (absent where one side is constant), between values and returns-to-go, and
    `reference_above_return`, the share of rows whose value is above their return-to-go.
    """

    def __init__(self, network: ScaledValueNetwork, figures: Mapping[str, float]) -> None:
        self.network, self.figures = network.requires_grad_(False), dict(figures)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        blocks = [
            self.network(torch.tensor(observations[start : start + BLOCK_ROWS], dtype=torch.float32)).numpy()
            for start in range(0, len(observations), BLOCK_ROWS)
        ]
        return np.concatenate(blocks)

    def get_state(self) -> dict[str, np.ndarray]:
        """All of it as arrays."""
        weights = {f"network.{name}": tensor.numpy() for name, tensor in self.network.state_dict().items()}
        figures = {f"figures.{name}": np.array(value) for name, value in self.figures.items()}
        names = {function: name for name, function in ACTIVATIONS.items()}
        return {**weights, **figures, "activation": np.array(names[self.network.activation])}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> ReferenceValue:
        """From what `get_state` gave."""
        parts: dict[str, dict[str, Any]] = {"network": {}, "figures": {}}
        for name, array in state.items():
            kind, _, rest = name.partition(".")
            if rest:
                parts[kind][rest] = array
        weights = {name: torch.from_numpy(np.array(array)) for name, array in parts["network"].items()}
        widths = [len(tensor) for name, tensor in weights.items() if name.endswith("bias")]
        network = ScaledValueNetwork(len(weights["obs_mean"]), widths[:-1], str(state["activation"]))
        network.load_state_dict(weights)
        return cls(network, {name: float(value) for name, value in parts["figures"].items()})


class _Sample(NamedTuple):
    """Rows to regress on. Their target is `returns + discounts * V(final_observations)`."""

    observations: Tensor  # (B, obs_dim)
    returns: Tensor  # (B,) rewards up to the episode's end
    discounts: Tensor  # (B,) of what follows the end; 0 where nothing does
    final_observations: Tensor  # (B, obs_dim)


class _Part:
    """One dataset's rows with a known return, and what follows each episode."""

    def __init__(self, data: Transitions, gamma: float, bootstrap: bool, failure_reward: float | None) -> None:
        assert data.mc_returns is not None
        self._data, self._gamma, self._returns = data, gamma, data.mc_returns
        ends = data.episode_ends
        self._cut = ~data.terminated[ends] & bootstrap  # (E,) what follows these episodes is bootstrapped
        if failure_reward is not None:  # they fail for ever, and their returns say so already
            self._cut &= ~all_failure(data.rewards, failure_reward, data.terminated | data.truncated)[ends]

    def split(self, share: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the episodes to fit to, and of those to validate on."""
        count = self._data.num_episodes
        validated = np.zeros(count, dtype=bool)
        if count > 1:
            chosen = generator.choice(count, size=min(count - 1, max(1, round(share * count))), replace=False)
            validated[chosen] = True
        in_validation = np.repeat(validated, np.diff(self._data.episode_ends, prepend=-1))
        known = np.isfinite(self._returns)
        return np.flatnonzero(known & ~in_validation), np.flatnonzero(known & in_validation)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """The columns of a `_Sample`."""
        ends = self._data.episode_ends
        episodes = np.searchsorted(ends, rows)
        discounts = np.where(self._cut[episodes], self._gamma ** (ends[episodes] - rows + 1.0), 0.0)
        observations, finals = self._data.observations, self._data.final_observations
        columns = (
            observations.take(rows, axis=0),
            self._returns.take(rows),
            discounts,
            finals.take(episodes, axis=0),
        )
        return tuple(np.asarray(column, dtype=np.float32) for column in columns)


class _Rows:
    """Rows of several datasets, drawn with replacement and with each dataset's share."""

    def __init__(self, parts: Sequence[_Part], rows: Sequence[np.ndarray], shares: np.ndarray) -> None:
        self._parts = [(part, numbers) for part, numbers in zip(parts, rows, strict=True) if len(numbers)]
        shares = np.array([share for share, numbers in zip(shares, rows, strict=True) if len(numbers)])
        self._shares = shares / shares.sum()

    def __len__(self) -> int:
        return sum(len(numbers) for _, numbers in self._parts)

    def draw(self, generator: np.random.Generator, count: int) -> _Sample:
        counts = generator.multinomial(count, self._shares)
        taken = [
            part.take(numbers[generator.integers(len(numbers), size=n)])
            for (part, numbers), n in zip(self._parts, counts, strict=True)
            if n
        ]
        return _Sample(*(torch.from_numpy(np.concatenate(column)) for column in zip(*taken, strict=True)))


def fit_reference(
    data: Transitions | Mixture,
    config: ReferenceConfig,
    *,
    gamma: float,
    bootstrap: bool = False,
    failure_reward: float | None = None,
    seed: int | None = None,
) -> ReferenceValue:
    """Regresses V(s) on the returns-to-go of offline rows; stops early on the loss of held-out episodes.

    With `bootstrap`, an episode that was cut off after s_T goes on with the value itself: the target of its
    row t is `G_t + gamma^(T-t) V(s_T)`, temporal-difference learning over the rest of the episode.

    Args:
        data: prepared rows. Their `mc_returns` are G, nothing following cut ends where `bootstrap`; rows whose
            return is -inf do not take part.
        config: network and fit.
        gamma: discount of the returns.
        bootstrap: whether cut episodes go on.
        failure_reward: where set, episodes that have no other reward (as they train) fail for ever, and are not
            bootstrapped.
        seed: of the split, the initial weights and the draws.

    Raises:
        DatasetError: observations are not vectors, no episode can be held out, or the fit diverged.
    """
    obs_dim = data.obs_dim
    generator = np.random.default_rng(seed)
    parts = [_Part(part, gamma, bootstrap, failure_reward) for part in data.parts]
    fitted, held_out = zip(*(part.split(config.validation_share, generator) for part in parts), strict=True)
    if not sum(map(len, fitted)) or not sum(map(len, held_out)):
        raise DatasetError(
            "a learned reference value needs rows with a known return in at least two episodes, one of them to "
            "validate on: use reference_value='return_to_go'"
        )
    shares = data.shares if isinstance(data, Mixture) else np.ones(1)
    training, validation = _Rows(parts, fitted, shares), _Rows(parts, held_out, shares)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator.integers(2**31)))
        network = ScaledValueNetwork(obs_dim, config.fcnet_hiddens, config.fcnet_activation)
    best, num_updates = _fitted(network, training, validation, config, bootstrap, generator)
    value = ReferenceValue(best, {})
    sample = validation.draw(generator, SAMPLE)
    found, expected = best(sample.observations), _targets(best, sample, bootstrap)
    if not bool(found.isfinite().all()):
        raise DatasetError("the learned reference value diverged: lower lr of reference_config")
    value.figures = {
        "reference_rmse": float((found - expected).square().mean().sqrt()),
        "reference_above_return": float((found > expected).float().mean()),
        "reference_updates": float(num_updates),
    }
    correlation = float(torch.corrcoef(torch.stack([found, expected]))[0, 1])
    if math.isfinite(correlation):
        value.figures["reference_correlation"] = correlation
    return value


def _fitted(
    network: ScaledValueNetwork,
    training: _Rows,
    validation: _Rows,
    config: ReferenceConfig,
    bootstrap: bool,
    generator: np.random.Generator,
) -> tuple[ScaledValueNetwork, int]:
    """The network with the lowest validation loss, and the number of updates it took."""
    of_all, held_out = training.draw(generator, SAMPLE), validation.draw(generator, SAMPLE)
    network.obs_mean.copy_(of_all.observations.mean(0))
    network.obs_std.copy_(_scale(of_all.observations.std(0)))
    target = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), config.lr)
    best, best_loss, best_at, ends_then = copy.deepcopy(network), math.inf, 0, torch.full((), math.inf)
    for number in range(config.max_updates + 1):
        if number % CHECK_INTERVAL == 0 or number == config.max_updates:
            ends = target(held_out.final_observations) * (held_out.discounts > 0.0)
            moved = bootstrap and bool((ends - ends_then).square().mean().sqrt() > MOVED * network.std)
            targets = _targets(target, held_out, bootstrap)
            loss = float(_loss(network, held_out, targets, config.expectile).detach())
            if loss < best_loss or moved:
                best, best_loss, best_at, ends_then = copy.deepcopy(network), loss, number, ends
            elif number - best_at >= config.patience * CHECK_INTERVAL:
                break
            if bootstrap or number == 0:
                targets = _targets(target, of_all, bootstrap)
                for either in (network, target):
                    either.rescale(targets.mean(), _scale(targets.std()))
        batch = training.draw(generator, config.batch_size)
        loss_of_batch = _loss(network, batch, _targets(target, batch, bootstrap), config.expectile)
        optimizer.zero_grad()
        loss_of_batch.div(network.std.square()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if bootstrap:
            with torch.no_grad():
                torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), TARGET_TAU)
    return best, best_at


@torch.no_grad()
def _targets(network: ScaledValueNetwork, sample: _Sample, bootstrap: bool) -> Tensor:
    if not bootstrap:
        return sample.returns
    return sample.returns + sample.discounts * network(sample.final_observations)


def _loss(network: ScaledValueNetwork, sample: _Sample, targets: Tensor, expectile: float) -> Tensor:
    """The expectile loss of target - V, doubled: the squared error at 0.5."""
    return 2.0 * expectile_loss(targets - network(sample.observations), expectile)


def _scale(std: Tensor) -> Tensor:
    """Deviations to divide by; what does not vary keeps its scale."""
    return torch.where(std > 1e-6, std, torch.ones_like(std))
