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
# # Look at a trajectory
#
# A diffusion model begins with noise and removes a part of it at every step. At step t it estimates
# the clean image, x̂0_t. Which training images influenced this estimate? We look at 24 sampling
# trajectories with the attributions of `experiment=methods`.
#
# Nothing is computed here: a benchmark bundle in this repository contains five methods and their
# evaluation. To see a run of your own, pass only `experiment=…` to `journey.load`, which then reads
# your `artifacts/`.

# %%
# %matplotlib inline
import tarfile
import tempfile

from matplotlib.figure import Figure

import journey

folder = tempfile.mkdtemp()
for part in ("bundle", "held-out"):
    with tarfile.open(f"../experiments/methods/methods-{part}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
overrides = ["experiment=methods", f"artifacts={folder}/methods-bundle", "vary.target=[]"]
overrides += ["sampling.num_queries=24"]
overrides += ["attribution.damping=[10]", "method.ekfac.damping=[0.01]"]
run = journey.load(*overrides, "method=[journey,trak,ekfac,pixel,random]")

# %% [markdown]
# One trajectory, from noise on the left to the final sample on the right. The first row is x̂0_t.
# Below are the training images that Journey-TRAK ranks first (proponents: without them, the model
# is predicted to denoise this image worse) and last (opponents).

# %%
run.show(query=12)

# %% [markdown]
# The same as a table, at one step.

# %%
run.proponents("journey", query=12, step=400, k=5).drop(columns="image")

# %%
proponents = run.proponents("ekfac", query=12, step=300, k=8)
figure = Figure(figsize=(8, 1.4))
panels = figure.subplots(1, len(proponents))
for panel, image, label in zip(panels, proponents["image"], proponents["label"], strict=True):
    panel.imshow(image, cmap="gray")
    panel.set_title(label, fontsize=8)
    panel.set_axis_off()
figure

# %% [markdown]
# `run.scores` returns all scores of a method: a line for each step and query, a column for each
# training image. Does the ranking change along the trajectory? These are the rank correlations,
# over training images, of one query's scores at every two steps.

# %%
scores = run.scores("journey").xs(12, level="query")
scores.T.corr("spearman").round(2)
