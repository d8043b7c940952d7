"""A backbone of one's own: random convolutions of the noisy image."""

import torch
from torch import nn

from gate_lightning import Backbone
from gate_lightning.backbones.specs import LayerSpec, PromptEmbeds
from gate_lightning.structures import Identity


class RandomConvolutions(Backbone):
    family, supports, prediction_type = "random", frozenset(), ""
    latent_channels, latent_stride, size_multiple, minimum_size, native_size = 3, 1, 8, 8, 64
    num_train_timesteps = 1000

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

    def encode_moments(self, images):
        return images.to(self.dtype), torch.zeros_like(images, dtype=self.dtype)

    def encode_text(self, prompts, adapters=()):
        return PromptEmbeds(torch.empty(len(prompts), 0, 0, device=self.device, dtype=self.dtype))

    def add_noise(self, latents, noise, timestep):
        return latents + noise * timestep / self.num_train_timesteps

    def denoise(self, latents, timestep, prompt_embeds, residuals=None, adapters=None):
        self.network(latents)
        return latents
