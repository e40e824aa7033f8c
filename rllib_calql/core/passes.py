"""Forward and backward passes of the critic ensemble: matrix products, and little beside them.

At the usual sizes (256 states, 31 actions each, width 256) one hidden layer of one critic is 8 MB. Written to
memory and read back for every elementwise operation, such layers cost more time than the products. But the loss
of a state depends on that state's Q-values alone, so the passes go through the batch in slices of a few states:
forward, gradient of the loss, backward, in buffers that are allocated once and stay in a core's cache, while the
parameters' gradients add up. Autograd cannot reuse buffers like this, hence the chain rule by hand. All views
are made once too: at these sizes making one costs as much as a small operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from rllib_calql.core.networks import CriticEnsemble

# One hidden layer of a slice. Smaller ones fit the caches better but repeat the small operations more often.
SLICE_BYTES = 2 * 1024 * 1024
QGradient = Callable[[Tensor, slice], Tensor]


class CriticPasses:
    """Passes through a `CriticEnsemble`, in its own precision or with bfloat16 products.

    The last layer, Q-values and the gradients of parameters are in the parameters' own precision. With other
    products, `refresh` must be called when the parameters have changed. Q-values that a method returns are valid
    until its next call.

    Args:
        critics: the networks; their tensors must stay in place from now on.
        dtype: of the products; the parameters' own where None.
    """

    def __init__(self, critics: CriticEnsemble, dtype: torch.dtype | None = None) -> None:
        self.critics = critics
        self._networks = _Networks(
            [[p.detach() for p in group] for group in _groups(critics)], dtype, critics.obs_dim
        )
        self._subset: _Networks | None = None
        self._batches: dict[tuple[int, int, int, bool], _Batch] = {}

    def refresh(self) -> None:
        """Brings copies in another precision up to date."""
        self._networks.refresh()

    @torch.no_grad()
    def values(self, observations: Tensor, actions: Tensor, members: Tensor | None = None) -> Tensor:
        """Q-values without gradient; shapes as in `CriticEnsemble.forward`."""
        networks = self._networks if members is None else self._chosen(members)
        batch = self._load(networks, observations, actions)
        for member, pieces in zip(networks.members, batch.pieces, strict=True):
            for piece in pieces:
                piece.forward(member, keep=False)
        return batch.q

    def values_of_actions(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q-values (E, B, K) that autograd can differentiate by the actions, until the next call."""
        return _ValuesOfActions.apply(actions, observations, self)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def differentiate(
        self,
        observations: Tensor,
        actions: Tensor,
        q_gradient: QGradient,
        by_observations: Tensor | None = None,
    ) -> Tensor:
        """Sets every parameter's `.grad` to the gradient of a loss that is a sum over states.

        Args:
            observations: (B, obs_dim).
            actions: (B, K, act_dim).
            q_gradient: from one network's Q-values (S, K) of the states `slice` to the loss's gradient by them.
            by_observations: (B, obs_dim), set to the loss's gradient by the observations, where given.

        Returns:
            The Q-values (E, B, K), without gradient.
        """
        networks, obs_dim = self._networks, self.critics.obs_dim
        batch = self._load(networks, observations, actions)
        if by_observations is not None:
            by_observations.zero_()
        members = zip(networks.members, self._gradients(), batch.pieces, self.critics.weights[0], strict=True)
        for member, gradients, pieces, first_weight in members:
            for piece in pieces:
                q, first = piece.forward(member, keep=True), piece.states.start == 0
                by_sums = piece.backward(member, q_gradient(q, piece.states), gradients, first)
                piece.by_states.copy_(by_sums.view(*q.shape, -1).sum(1))
                piece.buffers.add_product(gradients.action_weight, piece.actions.t(), by_sums, first)
            torch.mm(observations.t(), batch.by_states, out=gradients.weights[0][:obs_dim])
            torch.sum(batch.by_states, 0, keepdim=True, out=gradients.biases[0])
            if by_observations is not None:
                by_observations.addmm_(batch.by_states, first_weight[:obs_dim].t())
        return batch.q

    def _gradients(self) -> list[_Member]:
        for parameter in self.critics.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        groups = [[p.grad for p in group if p.grad is not None] for group in _groups(self.critics)]
        return _members(groups, groups, self.critics.obs_dim)

    def _chosen(self, members: Tensor) -> _Networks:
        # Copied, not indexed one by one, which would have to wait for indices on a GPU.
        everyone = self._networks.own
        if self._subset is None or len(self._subset.members) != len(members):
            subset = [[t[members] for t in group] for group in everyone]
            self._subset = _Networks(subset, self._networks.dtype, self.critics.obs_dim)
        for chosen, group in zip(self._subset.own, everyone, strict=True):
            for target, source in zip(chosen, group, strict=True):
                torch.index_select(source, 0, members, out=target)
        self._subset.refresh()
        return self._subset

    def _load(self, networks: _Networks, observations: Tensor, actions: Tensor, keep_all: bool = False) -> _Batch:
        key = (len(networks.members), *actions.shape[:2], keep_all)
        if key not in self._batches:
            self._batches[key] = _Batch(self.critics, networks.dtype, *key)
        batch, (weights, biases, *_) = self._batches[key], networks.stacked
        batch.actions.copy_(actions)
        # The states' share of the first layer, once per state instead of once per action.
        states = observations.to(networks.dtype).expand(len(networks.members), -1, -1)
        torch.baddbmm(biases[0], states, weights[0][:, : self.critics.obs_dim], out=batch.state_parts)
        return batch


class _Member(NamedTuple):
    """One network's tensors, or their gradients, by layer."""

    weights: list[Tensor]  # (in, out)
    transposed: list[Tensor]  # (out, in)
    biases: list[Tensor]  # (1, out)
    norm_scales: list[Tensor]  # (1, out); empty without LayerNorm
    norm_offsets: list[Tensor]
    action_weight: Tensor  # the actions' rows of the first weight
    head_weight: Tensor  # last weight and bias in the parameters' own precision
    head_bias: Tensor


def _groups(critics: CriticEnsemble) -> tuple[Any, ...]:
    return critics.weights, critics.biases, critics.norm_scales, critics.norm_offsets


def _members(groups: list[list[Tensor]], own: list[list[Tensor]], obs_dim: int) -> list[_Member]:
    """Views of stacked networks one by one."""
    members = []
    for i in range(len(groups[0][0])):
        weights, biases, scales, offsets = ([tensor[i] for tensor in group] for group in groups)
        head = (own[0][-1][i], own[1][-1][i])
        transposed = [weight.t() for weight in weights]
        members.append(_Member(weights, transposed, biases, scales, offsets, weights[0][obs_dim:], *head))
    return members


class _Networks:
    """The tensors of some of the ensemble's members, in the products' precision."""

    def __init__(self, own: list[list[Tensor]], dtype: torch.dtype | None, obs_dim: int) -> None:
        self.own, self.stacked = own, own
        self.dtype = dtype or own[0][0].dtype
        if self.dtype != own[0][0].dtype:
            self.stacked = [[tensor.to(self.dtype) for tensor in group] for group in own]
        self.members = _members(self.stacked, own, obs_dim)

    def refresh(self) -> None:
        if self.stacked is not self.own:
            copies, originals = ([t for group in groups for t in group] for groups in (self.stacked, self.own))
            torch._foreach_copy_(copies, originals)


class _Batch:
    """What passes over B states with K actions each need as a whole, and its slices, network by network."""

    def __init__(
        self, critics: CriticEnsemble, dtype: torch.dtype, members: int, size: int, per_state: int, keep_all: bool
    ) -> None:
        first = critics.weights[0]
        self.actions = first.new_empty(size, per_state, first.shape[1] - critics.obs_dim, dtype=dtype)
        self.q = first.new_empty(members, size, per_state)
        self.state_parts = first.new_empty(members, size, first.shape[2], dtype=dtype)
        self.by_states = first.new_empty(size, first.shape[2])
        length = size
        if not (keep_all or first.is_cuda):  # a GPU takes the batch whole
            layer_bytes = size * per_state * max(critics.hiddens) * dtype.itemsize
            length = -(-size // -(-layer_bytes // SLICE_BYTES))
        slices = [slice(start, min(start + length, size)) for start in range(0, size, length)]
        buffers: dict[tuple[int, int], _Buffers] = {}

        def buffers_for(member: int, states: slice) -> _Buffers:
            key = (states.stop - states.start, member if keep_all else 0)
            if key not in buffers:
                buffers[key] = _Buffers(critics, dtype, key[0] * per_state, keep_all)
            return buffers[key]

        self.pieces = [
            [_Slice(self, m, states, buffers_for(m, states)) for states in slices] for m in range(members)
        ]


class _Slice:
    """One network's pass over some states and their actions: S states, R = S * K rows."""

    def __init__(self, batch: _Batch, member: int, states: slice, buffers: _Buffers) -> None:
        self.states, self.buffers = states, buffers
        self.actions = batch.actions[states].flatten(0, 1)
        self.q = batch.q[member, states]
        self.by_states = batch.by_states[states]
        self._q_column = self.q.view(-1, 1)
        self._state_part = batch.state_parts[member, states].unsqueeze(1)
        self._first_sums = buffers.sums[0].view(*self.q.shape, -1)

    def forward(self, member: _Member, keep: bool) -> Tensor:
        """Q-values (S, K). With `keep`, `backward` may follow, once."""
        buffers = self.buffers
        self._first_sums.copy_(self._state_part)
        buffers.sums[0].addmm_(self.actions, member.action_weight)
        buffers.activate(0, member, keep)
        for layer in range(1, len(buffers.sums)):
            weight, bias = member.weights[layer], member.biases[layer]
            torch.addmm(bias, buffers.active[layer - 1], weight, out=buffers.sums[layer])
            buffers.activate(layer, member, keep)
        torch.addmm(member.head_bias, buffers.top(), member.head_weight, out=self._q_column)
        return self.q

    def backward(self, member: _Member, q_gradient: Tensor, gradients: _Member | None, first: bool) -> Tensor:
        """From the gradient by the Q-values (S, K) to that by the first layer's sums, (R, width).

        Adds to the `gradients` of all layers but the first, or sets them where `first`.
        """
        buffers, delta = self.buffers, q_gradient.reshape(-1, 1)
        below = buffers.top()
        for layer in reversed(range(1, len(member.weights))):
            if gradients is not None:
                buffers.add_product(gradients.weights[layer], below.t(), delta, first)
                _add(gradients.biases[layer], delta.sum(0, keepdim=True), first)
            below = buffers.active[layer - 2]
            by_active = buffers.by_active[layer - 1]
            torch.mm(delta.to(by_active.dtype), member.transposed[layer], out=by_active)
            delta = buffers.deactivate(layer - 1, gradients, first)
        return delta


class _Buffers:
    """The layers of one pass over R rows."""

    def __init__(self, critics: CriticEnsemble, dtype: torch.dtype, rows: int, keep: bool) -> None:
        like = critics.weights[0]
        self.activation, self.layer_norm = critics.activation, bool(len(critics.norm_scales))
        self.in_place = self.activation is F.relu and not self.layer_norm
        self.sums = [like.new_empty(rows, width, dtype=dtype) for width in critics.hiddens]  # then activated
        self.active = list(self.sums)
        # The gradient by a layer's activated values. That by its sums replaces the values, unless they are kept.
        self.by_active = [torch.empty_like(tensor) for tensor in self.sums]
        if not keep:
            of_width = {tensor.shape[1]: tensor for tensor in self.by_active}
            self.by_active = [of_width[tensor.shape[1]] for tensor in self.sums]
        self._keep, self._by_sums = keep, self.by_active if keep else self.sums
        self._bits = [[_bits(t) for t in ts] for ts in (self.by_active, self.sums, self._by_sums)]
        self._top = None if dtype == like.dtype else like.new_empty(rows, critics.hiddens[-1])
        self._products: dict[torch.Size, Tensor] = {}
        self._inputs: list[list[Tensor]] = [[] for _ in self.sums]

    def top(self) -> Tensor:
        """The last hidden layer in the parameters' own precision."""
        return self.active[-1] if self._top is None else self._top

    def activate(self, layer: int, member: _Member, keep: bool) -> None:
        """From a layer's sums to its activated values."""
        if self.in_place:
            self._bits[1][layer].clamp_(min=0)
        else:
            inputs = [self.sums[layer].detach()]
            if self.layer_norm:
                inputs += [member.norm_scales[layer][0].detach(), member.norm_offsets[layer][0].detach()]
            with torch.set_grad_enabled(keep):
                hidden, *norm = (tensor.requires_grad_(keep) for tensor in inputs)
                if norm:
                    hidden = F.layer_norm(hidden, hidden.shape[1:], *norm)
                self.active[layer] = self.activation(hidden)
            self._inputs[layer] = inputs
        if layer == len(self.sums) - 1 and self._top is not None:
            self._top.copy_(self.active[-1])

    def deactivate(self, layer: int, gradients: _Member | None, first: bool) -> Tensor:
        """From the gradient by a layer's activated values (in `by_active`) to that by its sums."""
        if self.in_place:
            by_active, values, by_sums = (tensors[layer] for tensors in self._bits)
            torch.ops.aten.threshold_backward.grad_input(by_active, values, 0, grad_input=by_sums)
            return self._by_sums[layer]
        by_sums, *by_norm = torch.autograd.grad(
            self.active[layer], self._inputs[layer], self.by_active[layer], retain_graph=self._keep
        )
        if gradients is not None and by_norm:
            _add(gradients.norm_scales[layer], by_norm[0], first)
            _add(gradients.norm_offsets[layer], by_norm[1], first)
        return by_sums

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
        """total += left @ right, or = where `first`."""
        if total.dtype == left.dtype:
            torch.addmm(total, left, right, beta=0.0 if first else 1.0, out=total)
            return
        if total.shape not in self._products:
            self._products[total.shape] = torch.empty_like(total, dtype=left.dtype)
        _add(total, torch.mm(left, right, out=self._products[total.shape]), first)


def _add(total: Tensor, term: Tensor, first: bool) -> None:
    """total += term, or = where `first`."""
    if first:
        total.copy_(term)
    else:
        total.add_(term)


def _bits(tensor: Tensor) -> Tensor:
    """bfloat16 as integers of the same sign, which compare with zero several times faster."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


class _ValuesOfActions(torch.autograd.Function):
    """Q-values whose backward pass yields the gradient by the actions."""

    @staticmethod
    def forward(ctx: Any, actions: Tensor, observations: Tensor, passes: CriticPasses) -> Tensor:
        members = passes._networks.members
        batch = passes._load(passes._networks, observations, actions, keep_all=True)
        for member, (piece,) in zip(members, batch.pieces, strict=True):
            piece.forward(member, keep=True)
        ctx.members, ctx.batch = members, batch
        return batch.q.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, q_gradients: Tensor) -> tuple[Tensor, None, None]:
        batch: _Batch = ctx.batch
        total = torch.zeros_like(batch.actions, dtype=q_gradients.dtype)
        for member, (piece,), q_gradient in zip(ctx.members, batch.pieces, q_gradients, strict=True):
            by_sums = piece.backward(member, q_gradient, None, True)
            total += (by_sums @ member.action_weight.t()).view_as(total)
        return total, None, None
