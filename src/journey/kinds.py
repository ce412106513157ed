"""Every kind there is: one literal tuple for each group. Adding one here makes it a choice; nothing registers itself."""

from journey.attribution.methods.datamodel import Datamodel
from journey.attribution.methods.encoder import Encoder
from journey.attribution.methods.external import External
from journey.attribution.methods.gradient import GradientMethod
from journey.attribution.methods.nonparametric import NonparametricScore
from journey.attribution.methods.pixel import Pixel
from journey.attribution.methods.random import Random
from journey.attribution.methods.trak_store import TrakStore
from journey.attribution.methods.traker import TrakerMethod
from journey.attribution.methods.unlearning import Unlearning
from journey.data.archive import TorchvisionArchive
from journey.data.digits import Digits
from journey.data.folder import Folder
from journey.data.mnist5k import MNIST5k
from journey.diffusion.ddpm import DDPM
from journey.evaluation.lds import LDS
from journey.launch.local import Local
from journey.tracking import JSONLines, Wandb

DATASETS = (Digits, MNIST5k, TorchvisionArchive, Folder)
MODELS = (DDPM,)
METHODS = (GradientMethod, Unlearning, Datamodel, NonparametricScore, Pixel, Encoder, Random, TrakerMethod, TrakStore, External)
EVALUATIONS = (LDS,)
COMPUTES = (Local,)
TRACKINGS = (JSONLines, Wandb)

KINDS = (*DATASETS, *MODELS, *METHODS, *EVALUATIONS, *COMPUTES, *TRACKINGS)
