# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Few labels to masks
#
# Somebody has labelled ten images. Small classifiers of single pixels learn from them, on features of the
# frozen diffusion model, and their vote labels any further image. Here the images are drawn scenes, so that it
# takes a minute; with your own it is `dataset=folder dataset.root=my_data`.

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import gate_lightning
from gate_lightning.data.scenes.dataset import ScenesSource

repository = Path(gate_lightning.__file__).parents[1]
folder = Path(tempfile.mkdtemp()) / "run"

# %% [markdown]
# ## Train
#
# `task=label_scarce` trains an ensemble. The published protocol has ten members and runs five random splits to
# the end; this is a small one.

# %%
settings = [
    "task=label_scarce",
    "repeats=1",
    "dataset.train=10",
    "dataset.test=8",
    "task.data.members=3",
    "task.max_steps_per_member=150",
    "logger=csv",
]
command = [sys.executable, "train.py", *settings, f"hydra.run.dir={folder}"]
subprocess.run(command, cwd=repository, check=True)

# %%
metrics = json.loads((folder / "metrics.json").read_text())
print({name: value for name, value in metrics.items() if "mIoU" in name})

# %% [markdown]
# ## Label an image
#
# The run is loaded with one line. Its classes are the values of a prediction.

# %%
run = gate_lightning.load_run(folder)
scene = ScenesSource([1_000_500]).load(0)  # none of the images above
labels = run.predict(scene.image, caption=scene.caption)
for value in np.unique(labels):
    print(f"{run.classes[value]:12s} {np.mean(labels == value):6.1%}")
print(f"{np.mean(labels == scene.mask):.1%} of the pixels are right")

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 3))
for axis, (title, pixels) in zip(
    axes, {"image": scene.image, "truth": scene.mask, "prediction": labels}.items(), strict=True
):
    axis.imshow(pixels, **({} if pixels.ndim == 3 else {"cmap": "tab20", "vmin": 0, "vmax": len(run.classes) - 1}))
    axis.set_title(title)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## What to label next?
#
# Where the members disagree, a label helps most. The run has drawn it for its test images, and `python eval.py
# tool=pseudo_label run=<this run> input=my_images/ output=labelled/` sorts any folder by it.

# %%
plt.figure(figsize=(9, 9))
plt.imshow(plt.imread(folder / "images/uncertainty_test.png"))
plt.axis("off")
plt.show()
