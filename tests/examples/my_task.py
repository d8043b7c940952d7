"""A task of one's own: how much of each image the first class covers, from the frozen features."""

import torch
from torch import nn

from gate_lightning.structures import SegmentationBatch
from gate_lightning.tasks.base import BaseTask


class Coverage(BaseTask):
    batch_type = SegmentationBatch
    final_splits = ("val",)

    def __init__(self, extractor, amalgamation, optimizer, scheduler=None):  # built because they are named here
        super().__init__(optimizer, scheduler)
        self.extractor, self.amalgamation = extractor, amalgamation
        self.regressor = nn.Linear(amalgamation.out_channels[0], 1)

    def frozen_description(self):
        return self.extractor.description

    def loss(self, batch):
        levels = self.amalgamation(self.extractor(batch.images, batch.conditions)).levels
        wanted = (batch.masks == 0).float().mean(dim=(1, 2))
        return torch.nn.functional.mse_loss(self.regressor(levels[0].mean(dim=(2, 3)))[:, 0], wanted)

    def training_step(self, batch, batch_index):
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_index, dataloader_idx=0):
        self.log("val/error", self.loss(batch), batch_size=len(batch), add_dataloader_idx=False)
