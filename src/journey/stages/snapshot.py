"""A model along its training. Payload: the network as diffusers saves it; state.safetensors, which the next continues."""

from pathlib import Path

from journey.artifacts.specs import Snapshot
from journey.artifacts.workspace import Workspace, get
from journey.diffusion import training
from journey.stages.train import fit

STATE = "state.safetensors"


def make(spec: Snapshot, partial: Path, workspace: Workspace) -> None:
    """The same steps as the whole training takes, up to this one."""
    begin = None if spec.previous is None else get(spec.previous, workspace).path / STATE
    state = fit(spec.of, spec, spec.step, partial, workspace, begin)
    training.save(state, partial / STATE)
    training.use_average(state)
    state.network.save_pretrained(partial)
