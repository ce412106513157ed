"""Our features and kernel against `trak.TRAKer`, with the same outputs and the same projection."""

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
        if isinstance(grads, dict):
            grads = torch.cat([g.flatten(1) for g in grads.values()], 1)
        return self.map(grads)

    def free_memory(self):
        pass


def test_same_ranks_as_traker(net, linear_schedule, clean, draws, tmp_path):
    train, queries = clean[:160], clean[160:168]
    d = sum(p.numel() for p in net.parameters())
    project = make_projection(Projection.gaussian, d, P, 0, "a", torch.device("cpu"))

    task, projector = LossOutput(linear_schedule, draws), SameProjector(project, d)
    settings = {"device": "cpu", "proj_dim": P, "use_half_precision": False, "logging_level": 40}
    traker = TRAKer(net, task, len(train), str(tmp_path), projector=projector, **settings)
    traker.load_checkpoint(net.state_dict(), model_id=0)
    for batch in train.x0.split(32):
        traker.featurize([batch], num_samples=len(batch))
    traker.finalize_features()
    traker.start_scoring_checkpoint("queries", net.state_dict(), 0, num_targets=len(queries))
    traker.score([queries.x0], num_samples=len(queries))
    theirs = np.asarray(traker.finalize_scores("queries").T)  # [Q, N]

    objective, plan = Objective(net, linear_schedule, Precision.fp32), GradientPlan("loop", 8, 6)
    phi, phi_q = (
        torch.cat([project(g) for g in objective.gradients(examples, draws, plan)]).numpy()
        for examples in (train, queries)
    )
    ours = np.zeros((1, len(phi_q), len(phi)), np.float32)
    kernel_scores(ours, phi, phi_q, [1e-9])
    for query in range(len(queries)):
        assert spearmanr(ours[0, query], theirs[query]).statistic > 0.99
