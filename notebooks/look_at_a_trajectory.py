# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Look at a journey
#
# A diffusion model begins with noise and removes some of it at every step. At step t it believes to be on the way to an image, x̂0_t.
# Which training images guided it there? Here we look at 24 such journeys, with what `experiment=methods` found about them.
#
# Everything is read: five methods and all that judges them are packed in this repository. With a run of your own, leave out all but
# `experiment=…`, and read what is in your `artifacts/`.

# %%
# %matplotlib inline
import tarfile
import tempfile

import matplotlib.pyplot as plt

import journey

place = tempfile.mkdtemp()
with tarfile.open("../experiments/methods/methods-pack.tar.gz") as pack:
    pack.extractall(place, filter="data")
words = [
    "method=[journey,trak,ekfac,pixel,random]",
    "vary.target=[]",
    "attribution.damping=[10]",
    "method.ekfac.damping=[0.01]",
]
run = journey.open("experiment=methods", f"artifacts={place}/methods-pack", *words)

# %% [markdown]
# One journey, from noise on the left to the image on the right: above, x̂0_t; below, the training images that Journey-TRAK ranks first
# (proponents: without them, the model would denoise this image worse) and last (opponents).

# %%
run.show(query=12)

# %% [markdown]
# The same as a table, at one step.

# %%
run.proponents("journey", query=12, step=400, k=5).drop(columns="image")

# %%
first = run.proponents("ekfac", query=12, step=300, k=8)
figure, panels = plt.subplots(1, len(first), figsize=(8, 1.4))
for axes, image, label in zip(panels, first["image"], first["label"], strict=True):
    axes.imshow(image, cmap="gray")
    axes.set_title(label, fontsize=8)
    axes.set_axis_off()
figure

# %% [markdown]
# All scores of a method: a line for each step and query, a column for each training image. Does the ranking change along the journey?
# These are rank correlations of the scores of one query at every two steps.

# %%
of_query = run.scores("journey").xs(12, level="query")
of_query.T.corr("spearman").round(2)
