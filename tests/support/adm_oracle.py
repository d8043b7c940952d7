"""A plain ADM U-Net with guided-diffusion's parameter names, to compare the converted one with.

Written from the architecture's facts: residual blocks whose norm is scaled and shifted by the time embedding,
resampling inside residual blocks (or by plain convolutions), attention whose fused projection is grouped by head, skips
concatenated.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class Residual(nn.Module):
    def __init__(self, into: int, out: int, time: int, resample: str = "", scale_shift: bool = True) -> None:
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(norm(into), nn.SiLU(), nn.Conv2d(into, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if into == out else nn.Conv2d(into, out, 1)

    def resized(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        if self.resample == "down":
            return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        return x

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.in_layers[2](self.resized(F.silu(self.in_layers[0](x))))
        shift = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            hidden = self.out_layers[0](hidden) * (1 + scale) + shift
        else:
            hidden = self.out_layers[0](hidden + shift)
        return self.skip_connection(self.resized(x)) + self.out_layers[3](F.silu(hidden))


class SelfAttention(nn.Module):
    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        flat = x.flatten(2)
        heads = self.qkv(self.norm(flat)).split(3 * self.head_channels, dim=1)  # head by head, each its q, k and v
        outputs = []
        for head in heads:
            q, k, v = head.split(self.head_channels, dim=1)
            weights = (q.transpose(1, 2) @ k / math.sqrt(self.head_channels)).softmax(dim=2)
            outputs.append(v @ weights.transpose(1, 2))
        return x + self.proj_out(torch.cat(outputs, dim=1)).unflatten(2, x.shape[2:])


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.op(x)


class First(nn.Conv2d):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(x)


class Block(nn.Sequential):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for module in self:
            x = module(x, time)
        return x


class OracleUNet(nn.Module):
    """Noisy images (B, 3, H, W) and a timestep → (B, out_channels, H, W)."""

    def __init__(
        self,
        width: int = 32,
        multipliers: tuple[float, ...] = (1, 2),
        res_blocks: int = 2,
        attention: tuple[int, ...] = (2,),
        head_channels: int = 16,
        scale_shift: bool = True,
        residual_resampling: bool = True,
        out_channels: int = 6,
        classes: int = 0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.width = width
        time = 4 * width
        widths = [int(width * multiplier) for multiplier in multipliers]
        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        if classes:
            self.label_emb = nn.Embedding(classes, time)

        def residual(into: int, out: int, resample: str = "") -> nn.Module:
            return Residual(into, out, time, resample, scale_shift)

        here = widths[0]
        self.input_blocks = nn.ModuleList([Block(First(in_channels, here, 3, padding=1))])
        skips, stride = [here], 1
        for level, wide in enumerate(widths):
            for _ in range(res_blocks):
                parts = [residual(here, wide)]
                here = wide
                if stride in attention:
                    parts.append(SelfAttention(here, head_channels))
                self.input_blocks.append(Block(*parts))
                skips.append(here)
            if level < len(multipliers) - 1:
                self.input_blocks.append(Block(residual(here, here, "down") if residual_resampling else Down(here)))
                skips.append(here)
                stride *= 2
        self.middle_block = Block(residual(here, here), SelfAttention(here, head_channels), residual(here, here))
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(multipliers))):
            for repeat in range(res_blocks + 1):
                parts = [residual(here + skips.pop(), widths[level])]
                here = widths[level]
                if stride in attention:
                    parts.append(SelfAttention(here, head_channels))
                if level and repeat == res_blocks:
                    parts.append(residual(here, here, "up") if residual_resampling else Up(here))
                    stride //= 2
                self.output_blocks.append(Block(*parts))
        self.out = nn.Sequential(norm(here), nn.SiLU(), nn.Conv2d(here, out_channels, 3, padding=1))

    def forward(self, x: Tensor, timestep: int) -> Tensor:
        half = self.width // 2
        angles = timestep * torch.exp(-math.log(10000) * torch.arange(half) / half)
        embedding = torch.cat([angles.cos(), angles.sin()]).to(x.dtype)
        time = self.time_embed(embedding.expand(len(x), -1))
        skips = []
        for block in self.input_blocks:
            x = block(x, time)
            skips.append(x)
        x = self.middle_block(x, time)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), time)
        return self.out(x)


def random_oracle(seed: int = 0, **settings: object) -> OracleUNet:
    """One with random weights, norms and biases included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = OracleUNet(**settings)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:  # else norms would be the identity, and biases small
                    parameter += 0.2 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)
