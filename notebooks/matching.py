# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Matches between two images
#
# Where is a point of one image in another one? The features of a frozen diffusion model answer without training
# (DIFT). Here the images are drawn scenes, of which the answer is known; for photographs it is
# `python eval.py tool=match source=a.jpg target=b.jpg backbone=sd21 timestep=261 layers=dift_semantic`.

# %%
import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from gate_lightning import Branch, FeatureExtractor, load_backbone
from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.data.correspondence.scene_pairs import ScenePairsDataModule
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.tools.match import match
from gate_lightning.tools.matching import FeatureParts

folder = Path(tempfile.mkdtemp())
scenes = ScenePairsDataModule(changes=["view"], kinds="leak_free", test=1).read("test")
pair = scenes.pairs[0]
files = [folder / "source.png", folder / "target.png"]
figure, axes = plt.subplots(1, 2)
for axis, file, name in zip(axes, files, (pair.source, pair.target), strict=True):
    Image.fromarray(scenes.images[name].drawn).save(file)
    axis.imshow(scenes.images[name].drawn)
plt.show()

# %% [markdown]
# The same scene, from another point of view. Features of three layers of the decoder, concatenated, describe
# every place; a point's match is the place in the other image whose description is most similar.

# %%
backbone = load_backbone("tiny")
layers = tuple(f"up-level{level}-upsampler-out" for level in (0, 1, 2))
extractor = FeatureExtractor(backbone, [Branch("plain", timestep=50, layers=layers, prompt="a photo")])
parts = FeatureParts(extractor, ConcatAmalgamation(extractor.feature_info))
points = np.concatenate([one.source_points for one in scenes.pairs])
print(match(lambda: parts, *files, folder, ReadOut(), points=points.tolist()))


def show(name):
    """A figure that `match` has written."""
    plt.imshow(Image.open(folder / name))
    plt.axis("off")
    plt.show()


show("matches.png")

# %% [markdown]
# The table has the same in numbers. How far from the truth are they, and how far would the same place be?

# %%
with (folder / "matches.csv").open(newline="") as file:
    found = np.array([[float(row["target_x"]), float(row["target_y"])] for row in csv.DictReader(file)])
truth = np.concatenate([one.target_points for one in scenes.pairs])
distance, unmoved = (np.hypot(*(place - truth).T).mean() for place in (found, points))
print(f"{distance:.1f} pixels; the same place: {unmoved:.1f} pixels")

# %% [markdown]
# Similarities of single points over the other image show what they are confused with, and the warp, the target
# made of the source's pixels, shows all places at once.

# %%
match(lambda: parts, *files, folder, ReadOut(), points=points[:3].tolist())
show("heat_maps.png")
show("warp.png")
