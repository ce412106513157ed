"""Count what featurization and training ask of an accelerator: no accelerator is needed.

    command   python benchmarks/counts.py before|after [GIB]
    writes    experiments/accelerator/counts.json: for each network and method, of an image × noise
              sample, and of a training step:
              launches    operations that compute (views do not), each taken for one kernel
              gflop       of matrix products and convolutions
              mbytes      read and written by these operations, without caches
              waits       of the host for the device: numbers read, and copies that block
              peak_gib    most memory of tensors at once, without the network's parameters
    needs     a C++ compiler, for the pretended device of tests/device
    cost      some minutes of one core

All of this is arithmetic, and nothing in it was measured on a card. Operations are dispatched to
the pretended device, under CUDA's lists of autocast, on fake tensors, which have shapes but no
values. Attention is one operation, and two in a backward pass, as by fused kernels;
silu one and one. `unfold` is a
kernel for each example, as on CUDA. Weights are untrained and images random. Plans are those for
GIB of memory (2, the default of a worker, if it is left out).
"""

import functools
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "device"))

import pretended  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.utils._foreach_utils import _foreach_supported_types  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.flop_counter import flop_registry  # noqa: E402

from journey.attribution.ekfac import EKFAC, ekfac_batches, estimate_ekfac  # noqa: E402
from journey.attribution.features import Batch, feature_blocks  # noqa: E402
from journey.attribution.gradients import Objective  # noqa: E402
from journey.attribution.outputs import sample_noise  # noqa: E402
from journey.diffusion import training  # noqa: E402
from journey.diffusion.ddpm import DDPM  # noqa: E402
from journey.engine.provenance import git_state  # noqa: E402
from journey.engine.workspace import Precision  # noqa: E402
from journey.pipeline.examples import Examples  # noqa: E402
from journey.pipeline.settings import (  # noqa: E402
    Batching,
    FeatureSettings,
    Output,
    Projection,
    Training,
)

RESULT = ROOT / "experiments" / "accelerator" / "counts.json"
WHAT = "Arithmetic of benchmarks/counts.py: no number was measured on a card."
NO_KERNEL = ("empty", "new_empty", "detach", "lift_fresh", "_unsafe_view", "_reshape_alias")
TRAINING = "training step"
DAMPING = (0.0001, 0.001, 0.01, 0.1, 1)
NUM_SAMPLES, NUM_IMAGES = 20, 1024
LOOKS = 8  # operations from one look at the memory to the next


@dataclass(frozen=True)
class Case:
    """A network, its precision, the shape of its images, and the images of a training step."""

    model: DDPM
    precision: Precision
    shape: tuple[int, ...]
    batch_size: int


CIFAR = DDPM(
    block_out_channels=[128, 256, 256, 256],
    layers_per_block=2,
    attention_blocks=[1],
    mid_block_attention=True,
    norm_num_groups=32,
)
CASES = {
    "cifar": Case(CIFAR, Precision.bf16, (3, 32, 32), 128),
    "digits": Case(DDPM(), Precision.fp32, (1, 8, 8), 64),
}


@dataclass(frozen=True)
class Variant:
    """A method: its projection and objective."""

    projection: Projection = Projection.sparse
    output: Output = Output.loss
    normalize: bool = False
    preconditioned: bool = False


VARIANTS = {
    "journey": Variant(),
    "das": Variant(output=Output.mean, normalize=True),  # and ReTrac, but for its output
    "ekfac": Variant(preconditioned=True),
    "logra": Variant(projection=Projection.kronecker),
}


# ------------------------------------------------------------------------------------- the counter


@dataclass
class Counter(TorchDispatchMode):
    """Counts the operations on the pretended device."""

    launches: int = 0
    flop: int = 0
    num_bytes: int = 0
    waits: int = 0
    live: dict[int, tuple[StorageWeakRef, int]] = field(default_factory=dict)
    peak: int = 0
    operations: int = 0
    fused: bool = False  # inside of an operation that is counted as one

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        inputs = tensors((args, kwargs))
        if name == "_local_scalar_dense" and on_device(inputs):
            self.waits += 1
            return inputs[0].dtype.is_floating_point or 1  # the value is not known
        out = func(*args, **kwargs)
        outputs = tensors(out)
        if not on_device(inputs + outputs):
            return out
        if not self.fused:
            self.remember(outputs)
        copied = {x.device.type for x in inputs + outputs} > {pretended.NAME}
        if copied and name in ("_to_copy", "copy_", "_copy_from"):
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
            self.waits += blocking
        self.flop += flop(func._overloadpacket, args, kwargs, out)
        is_kernel = func.namespace == "aten" and not func.is_view and not name.startswith(NO_KERNEL)
        if is_kernel and not self.fused:
            self.launches += len(inputs[0]) if name in ("im2col", "col2im") else 1
            self.num_bytes += sum(map(size, inputs + outputs))
        return out

    def remember(self, outputs: list[Tensor]) -> None:
        """Count the memory of new tensors until they are freed."""
        for x in outputs:
            storage = x.untyped_storage()
            if storage._cdata not in self.live or self.live[storage._cdata][0].expired():
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.operations += 1
        if self.operations % LOOKS == 0:
            for key in [key for key, (reference, _) in self.live.items() if reference.expired()]:
                del self.live[key]
            self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self.live.values()))

    @contextmanager
    def one_operation(self, launches: int, values: list[Tensor]) -> Iterator[None]:
        """Count everything inside as some kernels, which read and write some values."""
        self.fused = True
        yield
        self.fused = False
        self.launches += launches
        self.num_bytes += launches * sum(map(size, values))

    def per(self, units: float) -> dict[str, float]:
        """Return the counts of each unit."""
        return {
            "launches": rounded(self.launches / units),
            "gflop": rounded(self.flop / units / 1e9),
            "mbytes": rounded(self.num_bytes / units / 1e6),
            "waits": rounded(self.waits / units),
            "peak_gib": rounded(self.peak / 2**30),
        }


def flop(packet, args: tuple, kwargs: dict, out: object) -> int:
    """Return the floating-point operations of a product or a convolution; 0 for others."""
    aten = torch.ops.aten
    if packet in (aten.convolution, aten.convolution_backward):
        backward = packet is aten.convolution_backward
        weight, outputs = args[2 if backward else 1], args[0] if backward else out
        products = sum(kwargs.get("output_mask", args[-1])[:2]) if backward else 1
        return 2 * products * outputs.numel() * weight[0].numel()
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0


def tensors(values: object) -> list[Tensor]:
    """Return all tensors inside arguments or results."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def on_device(values: list[Tensor]) -> bool:
    """Return whether one of the tensors is on the pretended device."""
    return any(x.device.type == pretended.NAME for x in values)


def size(x: Tensor) -> int:
    """Return the bytes of a tensor; those that it has several times are read once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def rounded(value: float) -> float:
    """Return a number with four digits."""
    return float(f"{value:.4g}")


class Fused(torch.autograd.Function):
    """A function that is one operation, keeps its inputs, and computes again to go back."""

    counter: Counter | None = None

    @staticmethod
    def forward(ctx, function, backward_launches, *inputs):
        ctx.save_for_backward(*inputs)
        ctx.function, ctx.launches = function, backward_launches
        with Fused.counted(1, [*inputs, inputs[0]]):
            out = function(*inputs)
        Fused.remember(out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        unseen = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
        with Fused.counted(ctx.launches, [*inputs, gradient]), torch.enable_grad(), unseen:
            gradients = torch.autograd.grad(ctx.function(*inputs), inputs, gradient)
        Fused.remember(*gradients)
        return None, None, *gradients

    @staticmethod
    @contextmanager
    def counted(launches: int, values: list[Tensor]) -> Iterator[None]:
        """Count a block as some kernels, if anything is counted."""
        if Fused.counter is None:
            yield
            return
        with Fused.counter.one_operation(launches, values):
            yield

    @staticmethod
    def remember(*outputs: Tensor) -> None:
        """Count the memory of results, but not of what is inside."""
        if Fused.counter is not None:
            Fused.counter.remember(list(outputs))


ATTENTION, SILU = F.scaled_dot_product_attention, F.silu


def attention(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
    """Stand in for `scaled_dot_product_attention`, in the numbers that autocast gives it."""
    if torch._C._functorch.maybe_current_level() is not None:  # vmap: there is no fused kernel
        return ATTENTION(q, k, v)
    if torch.is_autocast_enabled(pretended.NAME):
        q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
    return Fused.apply(ATTENTION, 2, q, k, v)


def silu(x: Tensor, inplace: bool = False) -> Tensor:
    """Stand in for `silu`, whose backward pass has no kernel on the pretended device."""
    if torch._C._functorch.maybe_current_level() is not None:
        return SILU(x)
    return Fused.apply(SILU, 1, x)


@contextmanager
def counting() -> Iterator[Counter]:
    """Count the operations of a block, on fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True), Counter() as counter:
        Fused.counter = counter
        yield counter
        Fused.counter = None


# ------------------------------------------------------------------------- featurization, training


def count_features(case: Case, variant: Variant, memory_gib: float) -> dict:
    """Return the plan of a method, and the counts for each image × noise sample of a block."""
    device = torch.device(pretended.NAME)
    torch.manual_seed(0)
    network = case.model.build(case.shape).eval().to(device)
    function = (case.precision, variant.output, variant.normalize)
    objective = Objective(network, case.model.schedule(device), *function)
    settings = FeatureSettings(num_samples=NUM_SAMPLES, projection=variant.projection)
    examples = Examples(torch.rand(NUM_IMAGES, *case.shape) * 2 - 1).to(device)
    noise = sample_noise((0, 1000), NUM_SAMPLES, case.shape, 0, "counts").to(device)
    ekfac = estimated(objective, case.shape) if variant.preconditioned else None
    damping = DAMPING if variant.preconditioned else ()
    inputs = (settings, objective, [Batch(examples, noise, ())], 0, 0, memory_gib, ekfac, damping)
    _, plan, blocks = feature_blocks(*inputs)
    with counting() as counter:
        block = next(blocks)
        block.cpu()
    pairs = len(block) * NUM_SAMPLES
    return {"plan": vars(plan), "pairs_of_a_block": pairs, **counter.per(pairs)}


def estimated(objective: Objective, shape: tuple[int, ...]) -> EKFAC:
    """Return EK-FAC factors from one batch, with bases that are not computed."""
    examples = Examples(torch.rand(2, *shape)).to(objective.schedule.device)
    batches = functools.partial(ekfac_batches, examples, 1000, 0, 2)

    def basis(symmetric: Tensor) -> Tensor:
        return torch.eye(len(symmetric)).to(symmetric.device)

    with mock.patch("journey.attribution.ekfac._eigenvectors", basis):
        return estimate_ekfac(objective.network, objective.predict(), objective.schedule, batches)


def count_training(case: Case) -> dict:
    """Return the counts of a training step."""
    device, settings = torch.device(pretended.NAME), Training(batch_size=case.batch_size)
    schedule = case.model.schedule(device)
    batches = training.Batches(
        batching=Batching.independent,
        rows=torch.arange(NUM_IMAGES),
        num_examples=NUM_IMAGES,
        size=case.batch_size,
        num_timesteps=1000,
        seed=0,
        stream="counts",
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        with device:
            network = case.model.build(case.shape).train()
        state = training.new_state(network, settings)
        examples = Examples(torch.rand(NUM_IMAGES, *case.shape).to(device))
        inputs = training.TrainingInputs(examples, batches, settings, case.precision, schedule)
        steps = training.train(state, inputs, 10)
        next(steps)  # makes the optimizer's state
        with Counter() as counter:
            Fused.counter = counter
            next(steps)
            Fused.counter = None
    return {"images": case.batch_size, **counter.per(1)}


def main(label: str, memory_gib: float) -> None:
    """Count, print and write the counts of this version of the code."""
    if reason := pretended.reason_unavailable():
        sys.exit(f"error: {reason}")
    pretended.register()
    F.scaled_dot_product_attention, F.silu = attention, silu
    _foreach_supported_types.append(FakeTensor)  # as tensors on CUDA
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"what": WHAT}
    counts: dict[str, dict] = {name: {} for name in CASES}
    about = {"git": git_state(), "torch": torch.__version__, "memory_gib": memory_gib}
    result[label] = {**about, "counts": counts}
    RESULT.parent.mkdir(exist_ok=True)
    for (name, case), method in itertools.product(CASES.items(), [*VARIANTS, TRAINING]):
        if method == TRAINING:
            counts[name][method] = count_training(case)
        else:
            counts[name][method] = count_features(case, VARIANTS[method], memory_gib)
        print(f"{name:8}{method:15}{counts[name][method]}", flush=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 2.0)
