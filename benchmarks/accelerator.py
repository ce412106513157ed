"""What an accelerator does with this code: whether it is right, how fast it is, what it waits for.

    command    python benchmarks/accelerator.py [--device cuda] [--rehearse] [PART]…
    parts      ceilings   of the card: products, convolutions, copies, launches, eigenvectors
               tests      tests/device on the card
               scores     scores of all methods on the card against the CPU's, artifact by artifact
               training   steps of the 35.7M U-Net against a plain loop; where they wait
               features   features of the 35.7M U-Net against plain passes, and trak.TRAKer
               digits     experiment=digits, and its verdicts beside the committed ones
               unet       the 35.7M U-Net on digits at 32×32, killed once and resumed
    writes     experiments/accelerator/PART.json
    cost       less than ten minutes for each part; all of them without a PART
    rehearsal  --rehearse: all parts at tiny sizes, on the CPU by default; nothing is written

Images are random and weights are untrained, but in `scores`, `digits` and `unet`.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from scipy.stats import spearmanr
from torch import Tensor, nn

from journey.attribution.features import Batch, feature_blocks
from journey.attribution.gradients import Objective
from journey.attribution.outputs import NoiseSamples, sample_noise
from journey.components import COMPONENTS
from journey.config.compose import CONF, choices, parse, register_schemas
from journey.diffusion import network, training
from journey.diffusion.ddpm import DDPM
from journey.engine.files import write_json
from journey.engine.graph import missing
from journey.engine.provenance import git_state, package_versions
from journey.engine.spec import Spec
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.evaluation.lds.datamodeling import PRIMARY
from journey.evaluation.rows import objective_row, verdict
from journey.experiment import load_experiment
from journey.launch.local import Local
from journey.pipeline.examples import Examples
from journey.pipeline.settings import (
    Batching,
    FeatureSettings,
    Output,
    Projection,
    Training,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "accelerator"
CIFAR = DDPM(
    block_out_channels=[128, 256, 256, 256],
    layers_per_block=2,
    attention_blocks=[1],
    mid_block_attention=True,
    norm_num_groups=32,
    attention_head_dim=None,
)
TINY = (
    "dataset.num_train=60",
    "training={num_steps:4,batch_size:16,warmup_steps:1}",
    "sampling={sampler:ddim,num_inference_steps:5,num_queries:4,steps:[600,200]}",
    "attribution={num_samples:2,projection_dim:64,num_checkpoints:1}",
    "retraining={num_subsets:8,num_samples:4}",
    "evaluation.paired_steps=[600]",
    "evaluation.num_bootstrap=100",
)


@dataclass(frozen=True)
class Setting:
    """Where to measure, and how much."""

    device: torch.device
    rehearse: bool  # tiny sizes, no result
    scratch: Path

    @property
    def model(self) -> DDPM:
        """Return the network that is measured."""
        return DDPM(block_out_channels=[8, 16]) if self.rehearse else CIFAR

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of its images."""
        return (1, 8, 8) if self.rehearse else (3, 32, 32)

    @property
    def seconds(self) -> float:
        """Return how long one rate is measured."""
        return 0.0 if self.rehearse else 10.0

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.get_device_module(self.device).synchronize()

    def time(self, function: Callable[[], object], repetitions: int = 10) -> float:
        """Return the seconds of a call, on average, after three that are not counted."""
        repetitions = 1 if self.rehearse else repetitions
        for _ in range(min(3, repetitions)):
            function()
        self.synchronize()
        started = time.perf_counter()
        for _ in range(repetitions):
            function()
        self.synchronize()
        return (time.perf_counter() - started) / repetitions

    def rate(self, units: Iterator[float], warm_up: int = 3) -> float:
        """Return units per second, from some `seconds` after the warm-up."""
        for _ in range(1 if self.rehearse else warm_up):
            next(units)
        self.synchronize()
        started, done = time.perf_counter(), 0.0
        for count in units:
            done += count
            if time.perf_counter() - started >= self.seconds:
                break
        self.synchronize()
        return done / (time.perf_counter() - started)

    @contextmanager
    def waits(self) -> Iterator[Counter[str]]:
        """Count where the host waits for CUDA, by file and line of this package."""
        places: Counter[str] = Counter()
        if self.device.type != "cuda":
            yield places
            return

        def note(message: Warning | str, *_: object, **__: object) -> None:
            if "synchronizing CUDA operation" in str(message):
                places[caller()] += 1

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield places
            finally:
                torch.cuda.set_sync_debug_mode("default")


def caller() -> str:
    """Return the innermost line of the package, such as diffusion/training.py:40."""
    source = ROOT / "src" / "journey"
    for frame in reversed(traceback.extract_stack()):
        if (path := Path(frame.filename)).is_relative_to(source):
            return f"{path.relative_to(source)}:{frame.lineno}"
    return "elsewhere"


def attempt(measured: Callable[[], dict]) -> dict:
    """Return a measurement, or the error that it ended with: the others are still of use."""
    try:
        return measured()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


# ----------------------------------------------------------------------------------------- ceilings


def ceilings(on: Setting) -> dict:
    """Return what the device can do at most, by this version of torch."""
    n, device = (32 if on.rehearse else 8192), on.device
    results: dict[str, float] = {}
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("fp64", torch.float64, False),
    ):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        a = torch.randn(n, n, device=device, dtype=dtype)
        seconds = on.time(functools.partial(torch.matmul, a, a))
        results[f"matmul {name}, TFLOP/s"] = 2 * n**3 / seconds / 1e12
    torch.set_float32_matmul_precision("highest")

    # The most common convolution of the 35.7M U-Net, in a batch of 128.
    channels, batch = (8, 2) if on.rehearse else (256, 128)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(batch, channels, 16, 16, device=device, dtype=torch.bfloat16)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=torch.bfloat16)
        x, weight = x.to(memory_format=layout), weight.to(memory_format=layout)
        convolve = functools.partial(nn.functional.conv2d, x, weight, padding=1)
        work = 2 * batch * 256 * 9 * channels**2
        name = str(layout).removeprefix("torch.")
        results[f"conv bf16 {name}, TFLOP/s"] = work / on.time(convolve) / 1e12

    x = torch.randn(2**10 if on.rehearse else 2**29, device=device)
    y = torch.empty_like(x)
    results["copy, TB/s"] = 2 * x.nbytes / on.time(lambda: y.copy_(x)) / 1e12
    noise = torch.randn(2 if on.rehearse else 128, 3, 32, 32)
    results["pageable copy of a batch's noise, ms"] = 1e3 * on.time(lambda: noise.to(device))
    results["pinned copy of it, ms"] = 1e3 * on.time(lambda: network.send(noise, device))
    one = torch.zeros(1, device=device)
    results["launch, µs"] = 1e6 * on.time(lambda: one.add_(1), 10_000)
    symmetric = torch.randn(16 if on.rehearse else 4609, 8, dtype=torch.float64)
    symmetric = symmetric @ symmetric.T
    for place in (torch.device("cpu"), device):
        solve = functools.partial(torch.linalg.eigh, symmetric.to(place))
        results[f"eigh on {place.type}, s"] = on.time(solve, 1)
    return results


# ----------------------------------------------------------------------------------- tests, scores


def tests(on: Setting) -> dict:
    """Return how the tests of devices ended."""
    words = ["tests/device", "--device", str(on.device), "-n", "0", "-q"]
    if on.rehearse:
        words.append("--collect-only")
    done = shell([sys.executable, "-m", "pytest", *words], 540, ROOT)
    return {"exit_code": done.exit_code, "output": done.output.splitlines()[-20:]}


def scores(on: Setting) -> dict:
    """Return how much artifacts and scores of the device differ from those of the CPU.

    Each artifact is computed on the device from the CPU's artifacts.
    """
    names = [name for name in choices("method") if name != "external"]
    if on.rehearse:
        names = ["journey", "pixel"]
    store = Store(on.scratch / "scores")
    words = ("experiment=smoke", *TINY, f"method=[{','.join(names)}]", f"artifacts={store.root}")
    register_schemas(COMPONENTS)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = parse(compose("config", list(words)))
    experiment = load_experiment(run, store)
    on_cpu = Workspace(store, Local(), run.tracking, run.name)
    targets = [experiment.outputs(experiment.checkpoint(0))]
    targets += [experiment.scores(method) for method in run.all_methods.values()]
    on_device = replace(on_cpu, store=Store(store.root), compute=Local(device=str(on.device)))
    rows = []
    for spec in list(missing(targets, lambda spec: store.find(spec) is not None).values()):
        path = get(spec, on_cpu).path
        kept = path.rename(on.scratch / "kept")
        row = {"stage": spec.stage, "label": spec.label}
        row |= attempt(functools.partial(compared, spec, on_device, kept))
        shutil.rmtree(path, ignore_errors=True)
        kept.rename(path)
        rows.append(row)
        print(f"  {row}", flush=True)
    return {"artifacts": rows}


def compared(spec: Spec, on_device: Workspace, cpu: Path) -> dict:
    """Return how much an artifact that is computed now differs from that of the CPU."""
    return differences(arrays(get(spec, on_device).path), arrays(cpu))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an artifact by name."""
    return {path.name: np.load(path) for path in sorted(folder.glob("*.npy"))}


def differences(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict:
    """Return ‖a − b‖ / ‖b‖ of each array, and the lowest rank correlation of rows of scores."""
    result: dict[str, float] = {}
    for name, b in expected.items():
        if b.dtype.kind == "f":
            finite = np.isfinite(b)
            a, b = actual[name][finite].astype(float), b[finite].astype(float)
            result[f"relative difference of {name}"] = float(
                np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
            )
    if "scores.npy" in expected:
        pairs = (x["scores.npy"].reshape(-1, x["scores.npy"].shape[-1]) for x in (actual, expected))
        correlations = [spearmanr(a, b).statistic for a, b in zip(*pairs, strict=True)]
        result["lowest rank correlation"] = float(np.nanmin(correlations))
    return result


# ----------------------------------------------------------------------------- training, features


def training_run(
    on: Setting, precision: Precision, compiled: bool, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the steps of our training loop."""
    training.initialise(0, "benchmark")
    settings = Training(num_steps=10**9, batch_size=batch, flip=True)
    examples = Examples(torch.rand(256 if on.rehearse else 10_000, *on.shape) * 2 - 1)
    rows = torch.arange(len(examples))
    batches = training.Batches(
        Batching.independent, rows, len(rows), batch, 1000, 0, "benchmark", False
    )
    schedule = on.model.schedule(on.device)
    net = on.model.build(on.shape).to(on.device, memory_format=torch.channels_last)
    state = training.new_state(net, settings)
    inputs = training.TrainingInputs(
        examples.to(on.device), batches, settings, precision, schedule, compile=compiled
    )
    return training.train(state, inputs, 10**9)


def plain_steps(
    on: Setting, precision: Precision, compiled: bool, batch: int, layout: torch.memory_format
) -> Iterator[Tensor]:
    """Take steps without data: forward, backward, clipping and optimizer on the same inputs."""
    torch.manual_seed(0)
    net = on.model.build(on.shape).to(on.device, memory_format=layout)
    state = training.new_state(net, Training())
    predict = network.bind(torch.compile(net) if compiled else net, precision)
    schedule = on.model.schedule(on.device)
    x0, eps = (torch.randn(batch, *on.shape, device=on.device) for _ in range(2))
    t = torch.randint(1000, (batch,), device=on.device)
    while True:
        loss = training.denoising_loss(predict, schedule, x0, t, eps).mean()
        state.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), max_norm=1.0)
        state.optimizer.step()
        yield loss


def train(on: Setting) -> dict:
    """Return images per second of training loops, and what ours waits for."""
    size, (bf16, fp32) = (4 if on.rehearse else 128), (Precision.bf16, Precision.fp32)
    channels_last, contiguous = torch.channels_last, torch.contiguous_format
    variants: dict[str, Callable[[], Iterator]] = {
        "plain bf16": lambda: plain_steps(on, bf16, False, size, contiguous),
        "plain bf16, channels last": lambda: plain_steps(on, bf16, False, size, channels_last),
        "ours bf16": lambda: training_run(on, bf16, False, size),
        "ours fp32": lambda: training_run(on, fp32, False, size),
        "ours bf16, batch × 4": lambda: training_run(on, bf16, False, 4 * size),
    }
    if not on.rehearse:  # for a tiny network, minutes
        compiled = "plain bf16, channels last, compiled", "ours bf16, compiled"
        variants[compiled[0]] = lambda: plain_steps(on, bf16, True, size, channels_last)
        variants[compiled[1]] = lambda: training_run(on, bf16, True, size)
    result: dict[str, dict] = {}
    for name, steps in variants.items():
        images = 4 * size if "× 4" in name else size
        result[name] = attempt(functools.partial(images_per_second, on, steps, images))
        print(f"  {name}: {result[name]}", flush=True)

    steps = training_run(on, bf16, False, size)
    for _ in range(3):
        next(steps)
    with on.waits() as waits:
        for _ in range(5):
            next(steps)
    return {"variants": result, "waits in 5 steps": dict(waits), **kernels(on, steps)}


def images_per_second(on: Setting, steps: Callable[[], Iterator], images: int) -> dict:
    """Return images per second, and the most memory."""
    if on.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on.device)
    rate = on.rate(float(images) for _ in steps())
    result = {"images/s": rate, "ms per step": 1e3 * images / rate}
    if on.device.type == "cuda":
        result["GiB"] = torch.cuda.max_memory_allocated(on.device) / 2**30
    return result


def kernels(on: Setting, steps: Iterator) -> dict:
    """Return the kernels of a step, and the share of time in which the card computes."""
    if on.device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        on.synchronize()
        started = time.perf_counter()
        for _ in range(5):
            next(steps)
        on.synchronize()
        seconds = time.perf_counter() - started
    events = [e for e in profiled.events() if e.device_type is torch.autograd.DeviceType.CUDA]
    busy = sum(event.device_time for event in events) / 1e6
    return {"kernels per step": len(events) / 5, "share of time busy": busy / seconds}


def features(on: Setting) -> dict:
    """Return noise samples per second of featurization, and of plain passes."""
    count, num_samples = (4, 2) if on.rehearse else (4096, 20)
    torch.manual_seed(0)
    net = on.model.build(on.shape).to(on.device).eval()
    schedule = on.model.schedule(on.device)
    examples = Examples(torch.rand(count, *on.shape) * 2 - 1).to(on.device)
    noise = sample_noise((0, 1000), num_samples, on.shape, 0, "benchmark").to(on.device)
    result: dict[str, dict] = {}
    fastest: dict[Precision, float] = {}
    for precision, pairs in itertools.product(
        (Precision.bf16, Precision.fp32), (2,) if on.rehearse else (20, 128, 512)
    ):
        name = f"plain pass {precision.value}, {pairs} noise samples at once"
        objective = Objective(net, schedule, precision)
        passes = plain_passes(on, objective, pairs)
        rate = on.rate(passes)
        result[name] = {"noise samples/s": rate}
        fastest[precision] = max(rate, fastest.get(precision, 0.0))
        print(f"  {name}: {result[name]}", flush=True)
    for name, projection, normalize in (
        ("sparse", Projection.sparse, False),
        ("normalized", Projection.sparse, True),
        ("LoGra", Projection.kronecker, False),
    ):
        for precision, gib in itertools.product(
            (Precision.bf16, Precision.fp32), (1.0,) if on.rehearse else (2.0, 64.0)
        ):
            output = Output.mean if normalize else Output.loss
            objective = Objective(net, schedule, precision, output, normalize)
            settings = FeatureSettings(
                num_samples=num_samples, projection=projection, projection_dim=4096
            )
            inputs = (on, objective, settings, examples, noise, gib)
            label = f"{name} {precision.value}, {gib:g} GiB"
            result[label] = attempt(functools.partial(featurize, *inputs))
            if "error" not in result[label]:
                rate = result[label]["noise samples/s"]
                result[label]["share of the fastest plain pass"] = rate / fastest[precision]
            print(f"  {label}: {result[label]}", flush=True)
    result["trak.TRAKer"] = attempt(lambda: traker(on, net, examples, noise))
    return result


def plain_passes(on: Setting, objective: Objective, pairs: int) -> Iterator[float]:
    """Compute the gradient of one mean loss after another."""
    predict, parameters = objective.predict(), list(objective.network.parameters())
    x0, eps = (torch.randn(pairs, *on.shape, device=on.device) for _ in range(2))
    t = torch.randint(1000, (pairs,), device=on.device)
    while True:
        loss = training.denoising_loss(predict, objective.schedule, x0, t, eps).mean()
        torch.autograd.grad(loss, parameters)
        yield float(pairs)


def featurize(
    on: Setting,
    objective: Objective,
    settings: FeatureSettings,
    examples: Examples,
    noise: NoiseSamples,
    memory_gib: float,
) -> dict:
    """Return noise samples per second of features that arrive on the CPU, the plan, and waits."""
    batches = [Batch(examples, noise, ())]

    def units() -> Iterator[float]:
        while True:
            _, _, blocks = feature_blocks(settings, objective, batches, 0, 0, memory_gib)
            for block in blocks:
                yield float(len(block.cpu()) * len(noise))

    _, plan, blocks = feature_blocks(settings, objective, batches, 0, 0, memory_gib)
    rate = on.rate(units(), warm_up=1)
    with on.waits() as waits:
        next(blocks)
    return {"noise samples/s": rate, "plan": vars(plan), "waits in a block": dict(waits)}


def traker(on: Setting, net: nn.Module, examples: Examples, noise: NoiseSamples) -> dict:
    """Return noise samples per second of `trak.TRAKer`, whose projector for CUDA is fast_jl's."""
    from trak import TRAKer

    from journey.attribution.traker.stage import LossOutput

    if on.device.type == "cuda" and importlib.util.find_spec("fast_jl") is None:
        return {"error": "fast_jl is not installed"}
    schedule, size = on.model.schedule(on.device), 2 if on.rehearse else 8
    task = LossOutput(schedule, noise)
    projection = {"proj_dim": 64 if on.rehearse else 4096, "use_half_precision": False}
    place = "cpu" if on.device.type == "cpu" else str(on.device)
    reference = TRAKer(net, task, len(examples), on.scratch / "trak", device=place, **projection)
    reference.load_checkpoint(net.state_dict(), 0)

    def units() -> Iterator[float]:
        for x0 in examples.x0.split(size):
            reference.featurize([x0], num_samples=len(x0))
            yield float(len(x0) * len(noise))

    name = type(reference.projector).__name__
    return {"noise samples/s": on.rate(units(), warm_up=1), "projector": name}


# ------------------------------------------------------------------------------------ experiments


@dataclass(frozen=True)
class Ended:
    """How a process ended: its code, or None if its time was over."""

    exit_code: int | None
    seconds: float
    output: str


def shell(words: list[str], limit: float, directory: Path) -> Ended:
    """Run a command, and kill it after some seconds."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    started = time.perf_counter()
    try:
        done = subprocess.run(
            words, cwd=directory, env=environment, timeout=limit, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        code, output = None, (expired.stdout or b"").decode(errors="replace")
    return Ended(code, time.perf_counter() - started, output)


def journey(on: Setting, name: str, limit: float, *words: str) -> Ended:
    """Run the command `journey` with artifacts of its own."""
    folder = on.scratch / name
    folder.mkdir(exist_ok=True)
    places = [f"artifacts={folder}/artifacts", f"reports={folder}/reports"]
    command = [sys.executable, "-m", "journey", *words, *places, f"compute.device={on.device}"]
    return shell(command, limit, folder)


def digits(on: Setting) -> dict:
    """Return the seconds of experiment=digits, and its verdicts beside those in the repository."""
    words = ["experiment=digits"]
    if on.rehearse:
        words += ["model=ddpm_smoke", *TINY, "vary.first_checkpoint=[]"]
    workers = 1 if on.rehearse else 4
    ended = journey(on, "digits", 560, *words, f"compute.workers={workers}")
    result: dict = {"exit_code": ended.exit_code, "seconds": ended.seconds, "workers": workers}
    path = on.scratch / "digits/reports/digits/result.json"
    if not path.exists():
        return result | {"output": ended.output.splitlines()[-20:]}
    committed = json.loads((ROOT / "experiments/digits/result.json").read_text())["rows"]
    rows = json.loads(path.read_text())["rows"]
    claims = []
    for a, b, target in (
        ("journey", "trak", "paired_steps"),
        ("ekfac", "journey", "paired_steps"),
        ("pixel", "journey", "paired_steps"),
        ("trak", "journey", "final_sample"),
    ):
        claim = {"claim": f"{a} − {b}, {target}"}
        for label, source in (("committed", committed), ("device", rows)):
            row = objective_row(source, [PRIMARY], {"method": a, "against": b, "target": target})
            claim[label] = [row[key] for key in ("value", "low", "high")]
            claim[f"{label} verdict"] = verdict(row).value
        claims.append(claim)
    return result | {"claims": claims}


def unet(on: Setting) -> dict:
    """Return the seconds of each stage for the 35.7M U-Net on digits of MNIST at 32×32."""
    words = [
        "dataset=mnist5k", "dataset.size=32", "dataset.num_train=600", "model=ddpm_cifar",
        "training={num_steps:400,batch_size:128,learning_rate:1e-4,warmup_steps:0}",
        "sampling={num_queries:8,steps:[600,300,100],num_inference_steps:1000}",
        "attribution={num_samples:20,num_checkpoints:1}", "retraining.num_subsets=8",
        "evaluation.paired_steps=[600,300]", "method=[journey,das,ekfac,pixel]",
        "compute.precision=bf16",
    ]  # fmt: skip
    if on.rehearse:
        words += [*TINY, "model.block_out_channels=[8,16]", "model.norm_num_groups=8"]
        words += ["model.attention_blocks=[]", "method=[journey,pixel]"]
    words += ["name=unet", "task=attribute"]
    killed = None if on.rehearse else journey(on, "unet", 60, *words)
    ended = journey(on, "unet", 480, *words)
    stages: dict[str, dict] = {}
    for path in (on.scratch / "unet/artifacts").glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        stage = stages.setdefault(manifest["key_fields"]["stage"], {"count": 0, "seconds": 0.0})
        stage["count"] += 1
        stage["seconds"] += manifest["seconds"]
    result = {"exit_code": ended.exit_code, "seconds": ended.seconds, "stages": stages}
    if killed is not None:
        result["killed after seconds"] = killed.seconds
    return result if ended.exit_code == 0 else result | {"output": ended.output.splitlines()[-20:]}


# ------------------------------------------------------------------------------------------- parts

PARTS: dict[str, Callable[[Setting], dict]] = {
    "ceilings": ceilings,
    "tests": tests,
    "scores": scores,
    "training": train,
    "features": features,
    "digits": digits,
    "unet": unet,
}


def main(words: list[str]) -> None:
    """Run some parts, print their results, and write them unless it is a rehearsal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", help="by default cuda, or cpu with --rehearse")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes; nothing is written")
    options = parser.parse_args(words)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    name = options.device or ("cpu" if options.rehearse else "cuda")
    network.require_device(f"--device={name}", name)
    device = torch.device(name)
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    for part in options.parts or PARTS:
        print(f"{part} on {title}", flush=True)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            result = PARTS[part](Setting(device, options.rehearse, Path(scratch)))
        seconds = time.perf_counter() - started
        print(json.dumps(result, indent=1, ensure_ascii=False), f"{seconds:.0f} s", flush=True)
        if not options.rehearse:
            RESULTS.mkdir(exist_ok=True)
            machine = {"device": title, "versions": package_versions(), "code": git_state()}
            write_json(RESULTS / f"{part}.json", machine | {"seconds": seconds, "result": result})


if __name__ == "__main__":
    main(sys.argv[1:])
