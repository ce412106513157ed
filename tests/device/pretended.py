"""The pretended accelerator of `pretended.cpp`, as the device `pretended` of torch."""

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import types
from pathlib import Path

import pytest
import safetensors.torch
import torch

NAME = "pretended"
SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = os.environ.get("CXX", "c++")


def reason_unavailable() -> str:
    """Return why the device cannot be built, or ""."""
    return "" if shutil.which(COMPILER) else f"{COMPILER}: no C++ compiler"


def accelerator(name: str) -> str:
    """Return the device that `pytest --device` names, or this one. Skip without a compiler."""
    if name != "cpu":
        return name
    if reason := reason_unavailable():
        pytest.skip(reason)
    register()
    return NAME


def build() -> Path:
    """Return the compiled library. It is kept for other runs with this source and version."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"journey-pretended-device-{os.getuid()}-{key}.so"
    if library.exists():
        return library
    package = Path(torch.__file__).parent
    include = [f"-I{package / 'include'}", f"-I{package / 'include/torch/csrc/api/include'}"]
    link = [f"-L{package / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    flags = ["-shared", "-fPIC", "-O1", "-std=c++20", abi]
    partial = library.with_suffix(f".{os.getpid()}.partial")
    subprocess.run([COMPILER, *flags, *include, str(SOURCE), *link, "-o", str(partial)], check=True)
    partial.rename(library)
    return library


@functools.cache
def register() -> None:
    """Make the device known to torch in this process."""
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = module.manual_seed = lambda seed: None
    module.synchronize = module._lazy_init = lambda *_: None
    module.get_rng_state = lambda *_: torch.get_rng_state()
    module.set_rng_state = lambda *_: None
    module.get_device_name = lambda *_: "pretended accelerator"
    module.reset_peak_memory_stats = lambda *_: None
    module.max_memory_allocated = lambda *_: 2**20
    module.utilization = lambda *_: 50
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    torch._register_device_module(NAME, module)
    torch.ops.load_library(build())
    torch.utils.generate_methods_for_privateuse1_backend()

    # safetensors reads to devices that it knows by name.
    load_file = safetensors.torch.load_file

    def load_to(path, device="cpu"):
        return {name: x.to(device) for name, x in load_file(path).items()}

    safetensors.torch.load_file = load_to
