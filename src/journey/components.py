"""All components, a tuple for each config group. Components that are not listed are no choices."""

from journey.attribution.adjoint import Adjoint
from journey.attribution.baselines import (
    Caption,
    Encoder,
    Latent,
    NonparametricScore,
    Pixel,
    Random,
)
from journey.attribution.external import External, Features
from journey.attribution.gradient import GradientMethod
from journey.attribution.magic import Magic
from journey.attribution.retrained import Datamodel
from journey.attribution.traker import TrakerMethod
from journey.attribution.traker.store import TrakStore
from journey.attribution.unlearning import Unlearning
from journey.data.archive import TorchvisionArchive
from journey.data.arrays import Arrays
from journey.data.coco import COCO
from journey.data.embedded import Digits, Land, MNIST5k, Twemoji
from journey.data.folder import Folder
from journey.data.parts import Parts
from journey.diffusion.ddpm import DDPM
from journey.diffusion.dit import DiT
from journey.diffusion.from_checkpoint import FromCheckpoint
from journey.diffusion.latent import LatentDiffusion
from journey.evaluation.counterfactual import Counterfactual
from journey.evaluation.emergence import Emergence
from journey.evaluation.image_lds import ImageLDS
from journey.evaluation.lds import LDS
from journey.evaluation.localization import Localization
from journey.evaluation.none import NoEvaluation
from journey.evaluation.path import AlongPath
from journey.evaluation.planted import Planted
from journey.launch.local import Local
from journey.launch.slurm import Slurm
from journey.tracking import JSONLines, Wandb

DATASETS = (Digits, MNIST5k, Twemoji, Land, Parts, TorchvisionArchive, COCO, Folder, Arrays)
MODELS = (DDPM, DiT, LatentDiffusion, FromCheckpoint)
METHODS = (
    GradientMethod,
    Adjoint,
    Unlearning,
    Datamodel,
    Magic,
    NonparametricScore,
    Pixel,
    Latent,
    Caption,
    Encoder,
    Random,
    TrakerMethod,
    TrakStore,
    External,
    Features,
)
EVALUATIONS = (
    LDS, ImageLDS, Counterfactual, Emergence, AlongPath, Localization, Planted, NoEvaluation,
)  # fmt: skip
COMPUTES = (Local, Slurm)
TRACKINGS = (JSONLines, Wandb)
COMPONENTS = (*DATASETS, *MODELS, *METHODS, *EVALUATIONS, *COMPUTES, *TRACKINGS)
