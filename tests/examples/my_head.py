"""A head of one's own: a small perceptron at every position of the finest level."""

from torch import nn

from gate_lightning.heads.base import Head


class Perceptron(Head):
    def __init__(self, in_channels, strides, num_classes, hidden=32):
        super().__init__(in_channels, strides, num_classes)
        self.layers = nn.Sequential(nn.Conv2d(in_channels[0], hidden, 1), nn.GELU(), nn.Conv2d(hidden, num_classes, 1))

    def predict(self, levels):
        return self.layers(levels[0])
