"""Every kind there is: one literal tuple for each group. Adding one here makes it a choice; nothing registers itself."""

from journey.attribution.methods.caption import Caption
from journey.attribution.methods.datamodel import Datamodel
from journey.attribution.methods.encoder import Encoder
from journey.attribution.methods.external import External
from journey.attribution.methods.gradient import GradientMethod
from journey.attribution.methods.latent import Latent
from journey.attribution.methods.magic import Magic
from journey.attribution.methods.nonparametric import NonparametricScore
from journey.attribution.methods.pixel import Pixel
from journey.attribution.methods.random import Random
from journey.attribution.methods.trak_store import TrakStore
from journey.attribution.methods.traker import TrakerMethod
from journey.attribution.methods.unlearning import Unlearning
from journey.data.archive import TorchvisionArchive
from journey.data.coco import COCO
from journey.data.digits import Digits
from journey.data.folder import Folder
from journey.data.mnist5k import MNIST5k
from journey.data.twemoji import Twemoji
from journey.diffusion.ddpm import DDPM
from journey.diffusion.latent import LatentDiffusion
from journey.evaluation.counterfactual.counterfactual import Counterfactual
from journey.evaluation.emergence.emergence import Emergence
from journey.evaluation.lds.lds import LDS
from journey.evaluation.localization.localization import Localization
from journey.evaluation.path.path import AlongPath
from journey.evaluation.planted.planted import Planted
from journey.launch.local import Local
from journey.launch.slurm import Slurm
from journey.tracking import JSONLines, Wandb

DATASETS = (Digits, MNIST5k, Twemoji, TorchvisionArchive, COCO, Folder)
MODELS = (DDPM, LatentDiffusion)
METHODS = (
    GradientMethod,
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
)
EVALUATIONS = (LDS, Counterfactual, Emergence, AlongPath, Localization, Planted)
COMPUTES = (Local, Slurm)
TRACKINGS = (JSONLines, Wandb)

KINDS = (*DATASETS, *MODELS, *METHODS, *EVALUATIONS, *COMPUTES, *TRACKINGS)
