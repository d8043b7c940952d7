# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Features of an image
#
# A frozen diffusion model, one image, and what can be read inside. Everything here runs on the embedded model,
# which knows drawn scenes of 64 pixels. For photographs write `size=512` and
# `load_backbone("sd15", weights="<folder or hub id>")`.

# %%
import matplotlib.pyplot as plt
import torch

from gate_lightning import Branch, Conditions, ControlNet, FeatureExtractor, LoRA, Prompt, load_backbone
from gate_lightning.data.scenes.dataset import ScenesSource
from gate_lightning.ops.pca import principal_components, to_unit_range

backbone = load_backbone("tiny")
scene = ScenesSource([1_000_002]).load(0)
print(scene.caption)
plt.imshow(scene.image)
plt.show()

# %% [markdown]
# Images go in as (B, 3, H, W) in [-1, 1]. `Conditions` holds what belongs to them besides: their names, which
# the noise follows from, and captions. Of a file, `read_images(["image.jpg"], size=512)` makes both.

# %%
images = torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 127.5 - 1
conditions = Conditions((scene.sample_id,), captions=(scene.caption,))

# %% [markdown]
# ## Which layer?
#
# Every activation of the network has a name. Early layers of the decoder are coarse, late ones fine.

# %%
layers = [f"up-level{level}-upsampler-out" for level in (0, 1, 2)] + ["up-level3-repeat2-vit-out"]
print(len(backbone.layers), "layers;", backbone.feature_info(layers))
plain = Branch("plain", timestep=50, layers=tuple(layers), prompt="a photo")
features = FeatureExtractor(backbone, [plain])(images, conditions)["plain"]
for layer, maps in features.items():
    print(layer, tuple(maps.shape))

# %% [markdown]
# ## Principal components as colours
#
# A map has hundreds of channels. Its first three principal components, as red, green and blue, show what it
# tells apart.


# %%
def colours(maps):
    """RGB images of maps (1, C, h, w); one basis for all of them, so that equal colours are equal features."""
    project = principal_components(maps)
    return [one[0].permute(1, 2, 0).numpy() for one in to_unit_range([project(one) for one in maps])]


def show(images):
    """Images side by side, title → pixels."""
    figure, axes = plt.subplots(1, len(images), figsize=(2.4 * len(images), 2.8))
    for axis, (title, pixels) in zip(axes, images.items(), strict=True):
        axis.imshow(pixels)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    plt.show()


show({"image": scene.image, **{layer: colours([maps])[0] for layer, maps in features.items()}})

# %% [markdown]
# ## Which timestep?
#
# The more noise, the more the model rebuilds, and the less of the image is left.

# %%
layer = "up-level2-upsampler-out"
timesteps = (10, 50, 200, 500, 900)
branches = [Branch(f"t = {timestep}", timestep, (layer,), prompt="a photo") for timestep in timesteps]
noisy = FeatureExtractor(backbone, branches)(images, conditions)
show(dict(zip(noisy, colours([maps[layer] for maps in noisy.values()]), strict=True)))

# %% [markdown]
# ## Steering
#
# What the model rebuilds can be held to the image: by a prompt that describes it, by its edges, by a LoRA of
# such images. All branches go through one copy of the weights, as one batch.

# %%
adapter = LoRA("moderate", weights="asset:tiny/lora/moderate.safetensors")
edges = ControlNet("canny", low=60, high=110, blur_sigma=1.3)
steered = {
    "plain": (),
    "caption": (Prompt(),),
    "ControlNet": (edges,),
    "LoRA": (adapter,),
    "all three": (Prompt(), edges, adapter),
}
branches = [Branch(name, 50, (layer,), techniques, prompt="a photo") for name, techniques in steered.items()]
maps = FeatureExtractor(backbone, branches, noise="shared")(images, conditions)
show({"image": scene.image, **dict(zip(steered, colours([maps[name][layer] for name in steered]), strict=True))})

# %% [markdown]
# How far does steering move the features? Cosine similarity to the plain ones, averaged over the image:

# %%
reference = maps["plain"][layer]
for name in steered:
    similarity = torch.nn.functional.cosine_similarity(maps[name][layer], reference, dim=1).mean()
    print(f"{name:10s} {similarity:.3f}")
