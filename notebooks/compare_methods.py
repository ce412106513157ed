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
# A method is right if it predicts what retraining does. The linear datamodeling score (LDS) is the rank correlation, over models that
# were retrained on random halves of the data, of what the scores predict with what was measured: 1 is perfect, 0 is chance.

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

place = tempfile.mkdtemp()
with tarfile.open("../experiments/methods/methods-pack.tar.gz") as pack:
    pack.extractall(place, filter="data")
words = ["experiment=methods", f"artifacts={place}/methods-pack", "vary.target=[]"]
words += ["attribution.damping=[10]", "method.ekfac.damping=[0.01]"]
run = journey.open(*words, "method=[journey,trak,ekfac,pixel,random]")

# %%
lds = run.lds()
by_step = lds[lds["target"] == "step"].pivot(index="method", columns="step", values="value")
(100 * by_step).round(0).astype(int)[sorted(by_step, reverse=True)]

# %% [markdown]
# `draws` and `seeds` are ceilings: what a perfect predictor could reach, if only the measurement were noise, and if training were noise
# too. With 95% intervals:

# %%
run.figures()["lds_by_step.png"]

# %% [markdown]
# Is one method better than another? Their difference has an interval of its own, because both are judged by the same models.

# %%
run.rows(quantity="difference", target="paired_steps")[
    ["method", "against", "value", "low", "high"]
].round(3)

# %% [markdown]
# ## Your own scores
#
# Any array of a score for each step, query and training image is judged by `method=external`. Here it is the mean of two methods, each
# divided by its spread at every step and query: an example, not a claim. The names of the axes say what is what; a mismatch is refused.

# %%
spread = [
    run.scores(name).pipe(lambda scores: scores.div(scores.std(axis=1), axis=0))
    for name in ("ekfac", "pixel")
]
axes = json.loads(Path(f"{place}/methods-pack/axes.json").read_text())
tau = (
    (sum(spread) / 2)
    .to_numpy()
    .reshape([len(axes[name]) for name in ("steps", "queries", "train")])
)
np.savez(f"{place}/mine.npz", scores=tau, **axes)

mine = [
    "method=[journey,ekfac,pixel,external]",
    f"method.external.path={place}/mine.npz",
    "method.external.in_units_of_output=false",
]
done = subprocess.run(
    [sys.executable, "-m", "journey", *words, *mine, f"reports={place}"],
    capture_output=True,
    text=True,
)
print(done.returncode, done.stderr)

# %%
judged = journey.open(*words, *mine).lds()
judged[judged["target"].isin(["paired_steps", "trajectory"]) & (judged["quantity"] == "lds")].round(
    3
).drop(columns="step")
