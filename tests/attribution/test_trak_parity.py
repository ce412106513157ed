"""Our whole featurize-and-score path against `trak.TRAKer`, driven with the same outputs and the same projection."""

import numpy as np
import torch
from scipy.stats import spearmanr
from trak import TRAKer
from trak.projectors import AbstractProjector

from journey.attribution.gradients import GradientPlan, Objective
from journey.attribution.kernel import kernel_scores
from journey.attribution.projections import make_projection
from journey.attribution.traker.stage import LossOutput
from journey.engine.workspace import Precision
from journey.pipeline.settings import Projection

P = 128


class SameProjector(AbstractProjector):
    def __init__(self, project, grad_dim):
        super().__init__(grad_dim, P, 0, "rademacher", "cpu")
        self.map = project

    def project(self, grads, model_id):
        flat = (
            torch.cat([g.flatten(1) for g in grads.values()], 1)
            if isinstance(grads, dict)
            else grads
        )
        return self.map(flat)

    def free_memory(self):
        pass


def test_same_ranks_as_traker(net, linear_schedule, clean, draws, tmp_path):
    train, queries = clean[:160], clean[160:168]
    d = sum(p.numel() for p in net.parameters())
    project = make_projection(Projection.gaussian, d, P, 0, "a", torch.device("cpu"))

    traker = TRAKer(
        net, LossOutput(linear_schedule, draws), len(train), str(tmp_path), device="cpu", proj_dim=P, logging_level=40,
        projector=SameProjector(project, d), use_half_precision=False,
    )  # fmt: skip
    traker.load_checkpoint(net.state_dict(), model_id=0)
    for first in range(0, len(train), 32):
        traker.featurize(
            [train.x0[first : first + 32]], num_samples=len(train.x0[first : first + 32])
        )
    traker.finalize_features()
    traker.start_scoring_checkpoint("queries", net.state_dict(), 0, num_targets=len(queries))
    traker.score([queries.x0], num_samples=len(queries))
    theirs = traker.finalize_scores("queries").T  # [Q, N]

    objective = Objective(net, linear_schedule, Precision.fp32)
    phi, phi_q = (
        torch.cat(
            [project(g) for g in objective.gradients(some, draws, GradientPlan("loop", 8, 6))]
        ).numpy()
        for some in (train, queries)
    )
    scores = np.zeros((1, len(phi_q), len(phi)), np.float32)
    kernel_scores(scores, phi, phi_q, [1e-9])
    ours = scores[0]
    per_query = [spearmanr(a, b).statistic for a, b in zip(ours, np.asarray(theirs), strict=True)]
    assert min(per_query) > 0.99
