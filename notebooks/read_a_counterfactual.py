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
# # Read a counterfactual
#
# The most direct test of an attribution: remove the images that a method ranks first for a query at
# a step, retrain from scratch, and continue the query's trajectory from that step with the same
# noise. How does the final sample differ?
#
# `journey experiment=counterfactual` takes hours, so this notebook reads the committed result. For
# your own run, `journey.load("experiment=counterfactual")` has the same in `.rows()` and
# `.figures()`.

# %%
# %matplotlib inline
import json
from pathlib import Path

import pandas as pd

from journey.evaluation.counterfactual import Counterfactual

result = json.loads(Path("../experiments/counterfactual/result.json").read_text())
step, largest = result["steps"][0], max(result["counts"])
print(f"{result['num_queries']} queries, continued from t = {step}")
print(f"{largest} of {result['num_train']} images removed")

# %% [markdown]
# Final samples from the same noise, before and after the removal of each method's proponents. On
# digits of 8×8 pixels, differences are hard to see; the numbers below measure them.

# %%
figures = Counterfactual().figures(result)
figures[f"before_after_t{step}.png"]

# %% [markdown]
# `rise` is the relative increase of the query's denoising loss at the step under the retrained
# model. Controls are the removal of as many random images, and retraining on all images with
# another seed.

# %%
rows = pd.DataFrame(result["rows"])
rows = rows[(rows["quantity"] == "rise") & (rows["target"] == "step") & (rows["step"] == step)]
rows = rows[rows["count"].isin([largest, 0]) & rows["against"].isna()]
rows = rows[rows["side"] == "proponents"].set_index("method")
(100 * rows[["value", "low", "high"]]).round(1).sort_values("value", ascending=False)

# %% [markdown]
# Does the LDS, which is cheaper, rank methods as removal does?

# %%
figures["lds_against_removal.png"]
