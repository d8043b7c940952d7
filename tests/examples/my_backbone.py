"""A backbone of one's own: random convolutions of the noisy image."""

import torch
from torch import nn

from gate_lightning import Backbone
from gate_lightning.backbones.noise_schedule import FlowSchedule
from gate_lightning.backbones.specs import LayerSpec
from gate_lightning.structures import Identity


class RandomConvolutions(Backbone):
    family, size_multiple, minimum_size, native_size = "random", 8, 8, 64
    schedule = FlowSchedule()  # noised latents are (1 - t / 1000) · latents + t / 1000 · noise

    def __init__(self, channels=16):
        super().__init__()
        self.identity = Identity("random", "", str(channels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Conv2d(3, channels, 4, 4), nn.SiLU(), nn.Conv2d(channels, channels, 2, 2))
        self.layers = {"fine": LayerSpec("0", "output", channels, 4), "coarse": LayerSpec("2", "output", channels, 8)}
        self.freeze()

    @property
    def denoiser(self):
        return self.network

    def forward(self, latents, timestep, prompt_embeds, residuals, adapters):
        self.network(latents)
        return latents
