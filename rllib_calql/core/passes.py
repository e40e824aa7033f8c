"""Forward and backward passes of the critic ensemble: matrix products, and little beside them.

At the usual sizes (256 states, 31 actions each, width 256) one hidden layer of one critic is 8 MB. Written to
memory and read back for every elementwise operation, such layers cost more time than the products. But the loss
of a state depends on that state's Q-values alone, so the passes go through the batch in slices of a few states:
forward, gradient of the loss, backward, in buffers that are allocated once and stay in the cores' caches, while
the parameters' gradients add up. Two networks go side by side in batched products: on two cores each then works on
rows that are in its own cache already. Autograd cannot reuse buffers like this, hence the chain rule by hand. All
views are made once too: at these sizes making one costs as much as a small operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from rllib_calql.core.networks import CriticEnsemble

# One hidden layer of a slice, of all networks that go together. Smaller ones fit the caches better but repeat the
# small operations more often.
SLICE_BYTES = 2 * 1024 * 1024
# With LayerNorm one: torch's fused layer_norm takes the scale and offset of one network.
NETWORKS_TOGETHER = 2
NORM_EPSILON = 1e-5  # as in torch.nn.LayerNorm
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
        self._networks = _Networks([[p.detach() for p in kind] for kind in _kinds(critics)], dtype, critics)
        self._subset: _Networks | None = None
        self._batches: dict[tuple[int, int, int, bool], _Batch] = {}

    def refresh(self) -> None:
        """Brings copies in another precision up to date."""
        self._networks.refresh()

    @torch.no_grad()
    def values(self, observations: Tensor, actions: Tensor, members: Tensor | None = None) -> Tensor:
        """Q-values (E, B, K) without gradient; (M, B, K) of the networks `members` (M,) alone where given."""
        networks = self._networks if members is None else self._chosen(members)
        batch = self._load(networks, observations, actions)
        for group, pieces in zip(networks.groups, batch.pieces, strict=True):
            for piece in pieces:
                piece.forward(group, keep=False)
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
            q_gradient: from G networks' Q-values (G, S, K) of the states `slice` to the loss's gradient by them.
            by_observations: (B, obs_dim), set to the loss's gradient by the observations, where given.

        Returns:
            The Q-values (E, B, K), without gradient.
        """
        networks, obs_dim = self._networks, self.critics.obs_dim
        batch = self._load(networks, observations, actions)
        gradients = self._gradients()
        for group, sums, pieces in zip(networks.groups, gradients.groups, batch.pieces, strict=True):
            for piece in pieces:
                q, first = piece.forward(group, keep=True), piece.states.start == 0
                by_sums = piece.backward(group, q_gradient(q, piece.states), sums, first)
                piece.by_states.copy_(by_sums.view(*q.shape, -1).sum(2))
                piece.buffers.add_product(sums.action_weight, piece.actions.transpose(1, 2), by_sums, first)
        weights, biases, *_ = gradients.stacked
        states = observations.expand(len(batch.by_states), -1, -1)
        torch.bmm(states.transpose(1, 2), batch.by_states, out=weights[0][:, :obs_dim])
        torch.sum(batch.by_states, 1, keepdim=True, out=biases[0])
        if by_observations is not None:
            state_weights = self.critics.weights[0][:, :obs_dim]
            torch.sum(batch.by_states @ state_weights.transpose(1, 2), 0, out=by_observations)
        return batch.q

    def _gradients(self) -> _Networks:
        for parameter in self.critics.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        kinds = [[p.grad for p in kind if p.grad is not None] for kind in _kinds(self.critics)]
        return _Networks(kinds, None, self.critics)

    def _chosen(self, members: Tensor) -> _Networks:
        # Copied, not indexed one by one, which would have to wait for indices on a GPU.
        everyone = self._networks.own
        if self._subset is None or len(self._subset.own[0][0]) != len(members):
            subset = [[t[members] for t in kind] for kind in everyone]
            self._subset = _Networks(subset, self._networks.dtype, self.critics)
        for chosen, kind in zip(self._subset.own, everyone, strict=True):
            for target, source in zip(chosen, kind, strict=True):
                torch.index_select(source, 0, members, out=target)
        self._subset.refresh()
        return self._subset

    def _load(self, networks: _Networks, observations: Tensor, actions: Tensor, keep_all: bool = False) -> _Batch:
        weights, biases, *_ = networks.stacked
        key = (len(weights[0]), *actions.shape[:2], keep_all)
        if key not in self._batches:
            self._batches[key] = _Batch(self.critics, networks, *key[1:])
        batch = self._batches[key]
        batch.actions.copy_(actions)
        # The states' share of the first layer, once per state instead of once per action.
        states = observations.to(networks.dtype).expand(len(weights[0]), -1, -1)
        torch.baddbmm(biases[0], states, weights[0][:, : self.critics.obs_dim], out=batch.state_parts)
        return batch


def _kinds(critics: CriticEnsemble) -> tuple[Any, ...]:
    return critics.weights, critics.biases, critics.norm_scales, critics.norm_offsets


class _Networks:
    """The tensors of some of the ensemble's members, in the products' precision, or their gradients."""

    def __init__(self, own: list[list[Tensor]], dtype: torch.dtype | None, critics: CriticEnsemble) -> None:
        self.own, self.stacked = own, own
        self.dtype = dtype or own[0][0].dtype
        if self.dtype != own[0][0].dtype:
            self.stacked = [[tensor.to(self.dtype) for tensor in kind] for kind in own]
        number = len(own[0][0])
        together = 1 if len(critics.norm_scales) else number if own[0][0].is_cuda else NETWORKS_TOGETHER
        self.members = [slice(i, min(i + together, number)) for i in range(0, number, together)]
        self.groups = [_Group(self.stacked, own, members, critics.obs_dim) for members in self.members]

    def refresh(self) -> None:
        if self.stacked is not self.own:
            copies, originals = ([t for kind in kinds for t in kind] for kinds in (self.stacked, self.own))
            torch._foreach_copy_(copies, originals)


class _Group:
    """Views of the tensors of G networks that go side by side, or of their gradients, by layer."""

    def __init__(self, stacked: list[list[Tensor]], own: list[list[Tensor]], members: slice, obs_dim: int) -> None:
        self.weights, self.biases, self.norm_scales, self.norm_offsets = (
            [tensor[members] for tensor in kind] for kind in stacked
        )  # (G, in, out), (G, 1, out); no scales and offsets without LayerNorm
        self.transposed = [weight.transpose(1, 2) for weight in self.weights]
        self.action_weight = self.weights[0][:, obs_dim:]
        # The last layer in the parameters' own precision; a row, which makes its products the faster ones.
        self.head_weight = own[0][-1][members].transpose(1, 2)
        self.head_bias = own[1][-1][members]


class _Batch:
    """What passes over B states with K actions each need as a whole, and its slices, group by group."""

    def __init__(
        self, critics: CriticEnsemble, networks: _Networks, size: int, per_state: int, keep_all: bool
    ) -> None:
        (first, *_), *_ = networks.own
        number, fan_in, width = first.shape
        self.actions = first.new_empty(size, per_state, fan_in - critics.obs_dim, dtype=networks.dtype)
        self.q = first.new_empty(number, size, per_state)
        self.state_parts = first.new_empty(number, size, width, dtype=networks.dtype)
        self.by_states = first.new_empty(number, size, width)
        buffers: dict[Any, _Buffers] = {}

        def piece(members: slice, states: slice) -> _Slice:
            shape = (members.stop - members.start, (states.stop - states.start) * per_state)
            key = (*shape, members.start if keep_all else 0)
            if key not in buffers:
                buffers[key] = _Buffers(critics, networks.dtype, *shape, keep_all)
            return _Slice(self, members, states, buffers[key])

        self.pieces = []
        for members in networks.members:
            length = size
            if not (keep_all or first.is_cuda):  # a GPU takes the batch whole
                networks_bytes = (members.stop - members.start) * max(critics.hiddens) * networks.dtype.itemsize
                length = -(-size // -(-size * per_state * networks_bytes // SLICE_BYTES))
            slices = [slice(start, min(start + length, size)) for start in range(0, size, length)]
            self.pieces.append([piece(members, states) for states in slices])


class _Slice:
    """The pass of G networks over S states and their K actions: R = S * K rows."""

    def __init__(self, batch: _Batch, members: slice, states: slice, buffers: _Buffers) -> None:
        self.states, self.buffers = states, buffers
        self.q = batch.q[members, states]
        self.by_states = batch.by_states[members, states]
        self.actions = batch.actions[states].flatten(0, 1).expand(len(self.q), -1, -1)
        self._q_row = self.q.view(len(self.q), 1, -1)
        self._state_part = batch.state_parts[members, states].unsqueeze(2)
        self._first_sums = buffers.sums[0].view(*self.q.shape, -1)

    def forward(self, group: _Group, keep: bool) -> Tensor:
        """Q-values (G, S, K). With `keep`, `backward` may follow, once."""
        buffers = self.buffers
        self._first_sums.copy_(self._state_part)
        buffers.sums[0].baddbmm_(self.actions, group.action_weight)
        buffers.activate(0, group, keep)
        for layer in range(1, len(buffers.sums)):
            weight, bias = group.weights[layer], group.biases[layer]
            torch.baddbmm(bias, buffers.active[layer - 1], weight, out=buffers.sums[layer])
            buffers.activate(layer, group, keep)
        torch.baddbmm(group.head_bias, group.head_weight, buffers.top().transpose(1, 2), out=self._q_row)
        return self.q

    def backward(self, group: _Group, q_gradient: Tensor, gradients: _Group | None, first: bool) -> Tensor:
        """From the gradient by the Q-values (G, S, K) to that by the first layer's sums, (G, R, width).

        Adds to the `gradients` of all layers but the first, or sets them where `first`.
        """
        buffers, by_q = self.buffers, q_gradient.reshape(self._q_row.shape)
        if gradients is not None:
            buffers.add_product(gradients.head_weight, by_q, buffers.top(), first)
            _add(gradients.head_bias, by_q.sum(2, keepdim=True), first)
        top = len(buffers.sums) - 1
        weight = group.transposed[top + 1]
        torch.bmm(by_q.transpose(1, 2).to(weight.dtype), weight, out=buffers.by_active[top])
        delta = buffers.deactivate(top, group, gradients, first)
        for layer in reversed(range(1, top + 1)):
            torch.bmm(delta, group.transposed[layer], out=buffers.by_active[layer - 1])
            delta_below = buffers.deactivate(layer - 1, group, gradients, first)
            if gradients is not None:
                # Only now: the layer below has just been read, so this product finds it in the cache.
                below = buffers.active[layer - 1].transpose(1, 2)
                buffers.add_product(gradients.weights[layer], below, delta, first)
                _add(gradients.biases[layer], delta.sum(1, keepdim=True), first)
            delta = delta_below
        return delta


class _Buffers:
    """The layers of one pass of G networks over R rows."""

    def __init__(self, critics: CriticEnsemble, dtype: torch.dtype, number: int, rows: int, keep: bool) -> None:
        like = critics.weights[0]
        self.activation, self.layer_norm = critics.activation, bool(len(critics.norm_scales))
        self.in_place = self.activation is F.relu
        self.sums = [like.new_empty(number, rows, width, dtype=dtype) for width in critics.hiddens]
        self.active = list(self.sums)  # relu turns sums into activated values where they are
        # The gradient by a layer's activated values, then by its sums; needed until the layer below has its own.
        of_width: dict[tuple[int, int], Tensor] = {}
        for layer, tensor in enumerate(self.sums):
            of_width.setdefault((tensor.shape[2], layer % 2), torch.empty_like(tensor))
        self.by_active = [of_width[tensor.shape[2], layer % 2] for layer, tensor in enumerate(self.sums)]
        self._keep = keep
        self._bits = [[_bits(tensor) for tensor in tensors] for tensors in (self.by_active, self.active)]
        self._top = None if dtype == like.dtype else like.new_empty(number, rows, critics.hiddens[-1])
        self._products: dict[torch.Size, Tensor] = {}
        self._inputs = list(self.sums)  # of the activations that autograd differentiates
        self._moments: list[tuple[Tensor, Tensor]] = [(like, like)] * len(self.sums)  # of the rows, for LayerNorm

    def top(self) -> Tensor:
        """The last hidden layer in the parameters' own precision."""
        return self.active[-1] if self._top is None else self._top

    def activate(self, layer: int, group: _Group, keep: bool) -> None:
        """From a layer's sums to its activated values."""
        hidden = self.sums[layer]
        if self.layer_norm:
            scale, offset = (norms[layer].view(-1) for norms in (group.norm_scales, group.norm_offsets))
            hidden, *moments = torch.native_layer_norm(hidden, scale.shape, scale, offset, NORM_EPSILON)
            self._moments[layer] = (moments[0], moments[1])
            self.active[layer], self._bits[1][layer] = hidden, _bits(hidden)
        if self.in_place:
            self._bits[1][layer].clamp_(min=0)
        else:
            with torch.set_grad_enabled(keep):
                self._inputs[layer] = hidden.detach().requires_grad_(keep)
                self.active[layer] = self.activation(self._inputs[layer])
        if layer == len(self.sums) - 1 and self._top is not None:
            self._top.copy_(self.active[-1])

    def deactivate(self, layer: int, group: _Group, gradients: _Group | None, first: bool) -> Tensor:
        """From the gradient by a layer's activated values (in `by_active`) to that by its sums."""
        by_active, active = self.by_active[layer], self.active[layer]
        if self.in_place:
            by_bits, bits = (tensors[layer] for tensors in self._bits)
            torch.ops.aten.threshold_backward.grad_input(by_bits, bits, 0, grad_input=by_bits)
        else:
            (by_active,) = torch.autograd.grad(active, self._inputs[layer], by_active, retain_graph=self._keep)
        if not self.layer_norm:
            return by_active
        scale, offset = (norms[layer].view(-1) for norms in (group.norm_scales, group.norm_offsets))
        wanted = [True, gradients is not None, gradients is not None]
        by_sums, by_scale, by_offset = torch.ops.aten.native_layer_norm_backward(
            by_active, self.sums[layer], scale.shape, *self._moments[layer], scale, offset, wanted
        )
        if gradients is not None:
            _add(gradients.norm_scales[layer], by_scale, first)
            _add(gradients.norm_offsets[layer], by_offset, first)
        return by_sums

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
        """total += left @ right, or = where `first`."""
        if total.dtype == left.dtype:
            torch.baddbmm(total, left, right, beta=0.0 if first else 1.0, out=total)
            return
        if total.shape not in self._products:
            self._products[total.shape] = torch.empty_like(total, dtype=left.dtype)
        _add(total, torch.bmm(left, right, out=self._products[total.shape]), first)


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
        groups = passes._networks.groups
        batch = passes._load(passes._networks, observations, actions, keep_all=True)
        for group, (piece,) in zip(groups, batch.pieces, strict=True):
            piece.forward(group, keep=True)
        ctx.groups, ctx.batch = groups, batch
        return batch.q.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, q_gradients: Tensor) -> tuple[Tensor, None, None]:
        batch: _Batch = ctx.batch
        total = torch.zeros_like(batch.actions, dtype=q_gradients.dtype)
        start = 0
        for group, (piece,) in zip(ctx.groups, batch.pieces, strict=True):
            q_gradient = q_gradients[start : start + len(piece.q)]
            by_sums = piece.backward(group, q_gradient, None, True)
            total += (by_sums @ group.action_weight.transpose(1, 2)).sum(0).view_as(total)
            start += len(piece.q)
        return total, None, None
