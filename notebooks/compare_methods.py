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
# # Compare methods, and add your own scores
#
# A good method predicts what retraining does. The linear datamodeling score (LDS) is a rank
# correlation over models that were retrained on random 50% subsets of the training images. It
# compares the outputs that the scores predict with those that were measured: 1 is perfect, 0 is
# chance. Here it is query-centred: what a subset changes for all queries alike is subtracted.

# %%
# %matplotlib inline
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

import journey

folder = tempfile.mkdtemp()
for part in ("bundle", "held-out"):
    with tarfile.open(f"../experiments/methods/methods-{part}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
overrides = ["experiment=methods", f"artifacts={folder}/methods-bundle", "vary.target=[]"]
overrides += ["sampling.num_queries=24"]
overrides += ["attribution.damping=[10]", "method.ekfac.damping=[0.01]"]
run = journey.load(*overrides, "method=[journey,trak,ekfac,pixel,random]")

# %%
lds = run.lds()
by_step = lds[lds["target"] == "step"].pivot(index="method", columns="step", values="value")
(100 * by_step).round(0).astype(int)[sorted(by_step, reverse=True)]

# %% [markdown]
# `noise_samples` and `training_seeds` are ceilings: the LDS of a perfect predictor. The first
# assumes that only the noise samples of the measurement vary, the second that training varies too.
# With 95% intervals:

# %%
run.figures()["lds_by_step.png"]

# %% [markdown]
# Is one method better than another? Both are evaluated on the same models, so their difference has
# an interval of its own. "journey is better" is supported if the interval is above 0, and the
# opposite if it is below.

# %%
differences = run.rows(quantity="query_centred_difference", target="paired_steps")
differences[["method", "against", "value", "low", "high"]].round(3)

# %% [markdown]
# ## Your own scores
#
# `method=external` evaluates any array that has a score for each step, query and training image. As
# an example, take the mean of two methods, each divided by its standard deviation at every step and
# query. The file names the steps, queries and training images; a mismatch is an error.

# %%
scaled = []
for name in ("ekfac", "pixel"):
    scores = run.scores(name)
    scaled.append(scores.div(scores.std(axis=1), axis=0))
axes = json.loads(Path(f"{folder}/methods-bundle/axes.json").read_text())
shape = [len(axes[name]) for name in ("steps", "queries", "train")]
tau = ((scaled[0] + scaled[1]) / 2).to_numpy().reshape(shape)
np.savez(f"{folder}/my_scores.npz", scores=tau, **axes)

overrides += ["method=[journey,ekfac,pixel,external]"]
overrides += [f"method.external.path={folder}/my_scores.npz"]
overrides += ["method.external.in_units_of_output=false"]
command = [sys.executable, "-m", "journey", *overrides, f"reports={folder}"]
process = subprocess.run(command, capture_output=True, text=True)
print(process.returncode, process.stderr)

# %%
lds = journey.load(*overrides).lds()
lds = lds[lds["target"].isin(["paired_steps", "trajectory"]) & (lds["quantity"] == "query_centred")]
lds.round(3).drop(columns="step")
