"""Data exchanged between the packages, and the protocol of feature extractors.

Shape letters: B images, C channels, H × W pixels, h × w positions of a feature map, K classes.
"""

from gate_lightning.structures.batches import ClassificationBatch, ImageBatch, PixelBatch, SegmentationBatch
from gate_lightning.structures.conditions import MIRRORED, Conditions, Noise
from gate_lightning.structures.extractor import BackboneInfo, Extractor
from gate_lightning.structures.features import BranchFeatures, FeatureInfo, Features, FeaturesInfo, Identity, Pyramid
from gate_lightning.structures.pairs import ImagePair, Pair, PairBatch
from gate_lightning.structures.videos import Video
from gate_lightning.structures.views import RelativePose, ViewBatch, ViewPair

__all__ = [
    "MIRRORED",
    "BackboneInfo",
    "BranchFeatures",
    "ClassificationBatch",
    "Conditions",
    "Extractor",
    "FeatureInfo",
    "Features",
    "FeaturesInfo",
    "Identity",
    "ImageBatch",
    "ImagePair",
    "Noise",
    "Pair",
    "PairBatch",
    "PixelBatch",
    "Pyramid",
    "RelativePose",
    "SegmentationBatch",
    "Video",
    "ViewBatch",
    "ViewPair",
]
