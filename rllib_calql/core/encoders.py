"""The convolutional encoder of images, and DrQ's random shift of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rllib_calql.core.networks import HIDDEN_GAIN
from rllib_calql.data.frames import FrameLayout, Part

# Pixels that an image is shifted by at most, in each direction (Kostrikov et al. 2020, "Image Augmentation Is All
# You Need", section 3.1).
MAX_SHIFT = 4


class PixelEncoder(nn.Module):
    """Frames (B, k, P) uint8 -> features (B, obs_dim): convolutions, a linear layer, LayerNorm and tanh; the
    numbers of vectors behind them as they are.

    Frames are stacked as channels. Layers are those of Yarats et al. 2021 (SAC+AE, DrQ), which keep features
    inside (-1, 1) whatever the critics make of them.

    Args:
        layout: of the frames.
        conv_filters: [channels, kernel, stride] of each layer, as RLlib writes them; ReLU after each.
        feature_dim: features of the images.
        orthogonal_init: orthogonal weights and zero biases, else torch's default.

    Raises:
        ValueError: the images are too small for the filters.
    """

    def __init__(
        self,
        layout: FrameLayout,
        conv_filters: Sequence[Sequence[int]],
        feature_dim: int,
        orthogonal_init: bool = True,
    ) -> None:
        super().__init__()
        self.layout, self.obs_dim = layout, feature_dim + layout.vector_size
        height, width, channels = layout.image_shape
        self.convolutions = nn.ModuleList()
        for number, (filters, kernel, stride) in enumerate(conv_filters):
            if kernel > min(height, width):
                raise ValueError(
                    f"images of {layout.image_shape[0]} x {layout.image_shape[1]} pixels are too small for "
                    f"conv_filters: layer {number} has a kernel of {kernel} and gets {height} x {width}; leave "
                    "out layers, or make kernels and strides smaller"
                )
            self.convolutions.append(nn.Conv2d(channels, filters, kernel, stride))
            height, width, channels = (height - kernel) // stride + 1, (width - kernel) // stride + 1, filters
        self.projection = nn.Linear(channels * height * width, feature_dim)
        self.norm = nn.LayerNorm(feature_dim)
        if orthogonal_init:
            for layer in (*self.convolutions, self.projection):
                assert isinstance(layer, (nn.Conv2d, nn.Linear))
                nn.init.orthogonal_(layer.weight, 1.0 if layer is self.projection else HIDDEN_GAIN)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """Features; autograd differentiates them by the parameters."""
        dtype = self.norm.weight.dtype
        hidden = images_of(self.layout, frames).permute(0, 3, 1, 2).to(dtype).div_(255.0).sub_(0.5)
        for convolution in self.convolutions:
            hidden = convolution(hidden).relu_()
        features = torch.tanh(self.norm(self.projection(hidden.flatten(1))))
        if not self.layout.vectors:
            return features
        # A clone begins at a multiple of four bytes, as float32 must.
        vectors = [_bytes_of(frames, part).clone().view(torch.float32) for part in self.layout.vectors]
        return torch.cat([features, *(vector.flatten(1).to(dtype) for vector in vectors)], dim=1)

    def shifted(self, frames: Tensor, shifts: Tensor) -> Tensor:
        """Frames whose images are moved by `shifts` (B, 2), see `random_shift`; the same for all k frames."""
        moved = frames.clone()
        for part in self.layout.images:
            images = _bytes_of(frames, part)
            _bytes_of(moved, part).copy_(random_shift(images, shifts))
        return moved


def random_shift(images: Tensor, shifts: Tensor) -> Tensor:
    """Images padded by `MAX_SHIFT` with their border pixels, and cut at `shifts`: DrQ's random shift.

    Args:
        images: (B, k, height, width, channels).
        shifts: (B, 2), rows and columns in [0, 2 * MAX_SHIFT]; `MAX_SHIFT` leaves an image where it is.
    """
    _, count, height, width, _ = images.shape
    numbers = torch.arange(images.shape[0], device=images.device)[:, None, None, None]
    frames = torch.arange(count, device=images.device)[None, :, None, None]
    rows = _moved(height, shifts[:, 0])[:, None, :, None]
    columns = _moved(width, shifts[:, 1])[:, None, None, :]
    return images[numbers, frames, rows, columns]


def images_of(layout: FrameLayout, frames: Tensor) -> Tensor:
    """(B, height, width, channels) uint8: of frames (B, k, P), all images of all frames as channels."""
    parts = [_bytes_of(frames, part) for part in layout.images]
    images = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return images.permute(0, 2, 3, 1, 4).flatten(3)


def _bytes_of(frames: Tensor, part: Part) -> Tensor:
    """A view of an image's bytes (B, k, height, width, channels), or a vector's (B, k, n, 4)."""
    of_part = frames[..., part.first : part.first + part.size]
    shape = part.shape if len(part.shape) > 1 else (*part.shape, 4)
    return of_part.view(*frames.shape[:-1], *shape)


def _moved(length: int, shifts: Tensor) -> Tensor:
    """(B, length): which pixel comes where; beyond the border the border's."""
    positions = torch.arange(length, device=shifts.device) - MAX_SHIFT
    return (positions + shifts[:, None]).clamp(0, length - 1)
