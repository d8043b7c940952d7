"""Captions to prompt embeddings, for training: with gradients, and with SDXL's second encoder where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from gate_lightning.errors import WeightsError


class PromptEncoders(nn.Module):
    """The tokenizers and text encoders of a Stable Diffusion model.

    Args:
        folder: local model folder.

    Raises:
        WeightsError: a tokenizer does not belong to its text encoder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        index = StableDiffusionPipeline.load_config(folder, local_files_only=True)
        self.two = "text_encoder_2" in index
        kinds = {"": CLIPTextModel} | ({"_2": CLIPTextModelWithProjection} if self.two else {})
        self.tokenizers = [
            CLIPTokenizer.from_pretrained(folder, subfolder=f"tokenizer{suffix}", local_files_only=True)
            for suffix in kinds
        ]
        self.encoders = nn.ModuleList(
            kind.from_pretrained(folder, subfolder=f"text_encoder{suffix}", dtype=torch.float32, local_files_only=True)
            for suffix, kind in kinds.items()
        )
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            known = cast(Any, encoder).config.vocab_size
            # transformers returns an almost empty tokenizer, without a word, where the files are missing.
            if len(tokenizer) != known:
                raise WeightsError(
                    f"The tokenizer of {folder} knows {len(tokenizer)} tokens, its text encoder "
                    f"{known}; expected the same. Check that the tokenizer folder is complete."
                )

    def forward(self, captions: Sequence[str], size: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Prompt embeddings (B, L, C) and what else the U-Net is told (SDXL: pooled text and image size).

        Args:
            captions: B texts; longer ones are cut at the tokenizer's length.
            size: height and width of the images in pixels.
        """
        if not self.two:
            return self.encoders[0](self._ids(0, captions))[0], {}
        outputs = [
            encoder(self._ids(i, captions), output_hidden_states=True) for i, encoder in enumerate(self.encoders)
        ]
        # SDXL was trained on the last but one layer of both encoders.
        embeddings = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=embeddings.dtype, device=embeddings.device)
        pooled = outputs[1].text_embeds
        return embeddings, {"text_embeds": pooled, "time_ids": ids.expand(len(pooled), -1)}

    def _ids(self, which: int, captions: Sequence[str]) -> Tensor:
        tokens = self.tokenizers[which](list(captions), padding="max_length", truncation=True, return_tensors="pt")
        return tokens.input_ids.to(next(self.encoders[which].parameters()).device)
