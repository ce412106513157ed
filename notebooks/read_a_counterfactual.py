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
# The most direct question: leave out the images that a method ranks first for a query at a step, train again from scratch, enter the
# same journey at that step with the same noise. Where does it lead now?
#
# `journey experiment=counterfactual` takes hours, so this reads its committed result. With your own,
# `journey.open("experiment=counterfactual")` gives the same by `.rows()` and `.figures()`.

# %%
# %matplotlib inline
import json
from pathlib import Path

import pandas as pd

from journey.evaluation.counterfactual import Counterfactual

result = json.loads(Path("../experiments/counterfactual/result.json").read_text())
step, most = result["steps"][0], max(result["counts"])
print(
    f"{result['num_queries']} queries entered at t = {step}; {most} of {result['num_train']} images left out"
)

# %% [markdown]
# What one noise led to: before, and after each method's removal. On digits of 8×8 the eye sees little of it; numbers see more.

# %%
figures = Counterfactual().figures(result)
figures[f"before_after_t{step}.png"]

# %% [markdown]
# Numbers. `rise` is how much worse the retrained model denoises the query at the step, as a share of what it was. Beside the methods
# stand the floors: as many random images left out, and nothing left out but another seed.

# %%
rows = pd.DataFrame(result["rows"])
largest = rows[
    (rows["step"] == step)
    & rows["count"].isin([most, 0])
    & rows["against"].isna()
    & (rows["side"] == "proponents")
]
rise = largest[(largest["quantity"] == "rise") & (largest["target"] == "step")]
(100 * rise.set_index("method")[["value", "low", "high"]]).round(1).sort_values(
    "value", ascending=False
)

# %% [markdown]
# Does LDS, which is cheaper, rank methods as removal does?

# %%
figures["lds_against_removal.png"]
