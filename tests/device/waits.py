"""Where the host waits for an accelerator, by file and line."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SOURCE = Path(__file__).parents[2] / "src"
# Operations whose results have sizes that only the device knows.
OF_UNKNOWN_SIZE = ("nonzero", "masked_select", "unique", "_unique2", "unique_consecutive")


@contextmanager
def counted_waits(device: str) -> Iterator[Counter[str]]:
    """Count waits inside: on CUDA as torch reports them, on another device by its operations."""
    places: Counter[str] = Counter()
    if torch.device(device).type != "cuda":
        with _Operations(torch.device(device).type, places):
            yield places
        return
    with warnings.catch_warnings(record=True) as reports:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for report in reports:
        if "synchronizing CUDA operation" in str(report.message):
            places[f"{Path(report.filename).name}:{report.lineno}"] += 1


class _Operations(TorchDispatchMode):
    """Counts the operations of this thread for which the host must wait."""

    def __init__(self, device_type: str, places: Counter[str]) -> None:
        super().__init__()
        self.device_type, self.places = device_type, places

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self._waits(func.__name__.split(".")[0], args, kwargs or {}, result):
            self.places[_caller()] += 1
        return result

    def _waits(self, name: str, args: tuple, kwargs: dict, result) -> bool:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_device = [x for x in tensors if x.device.type == self.device_type]
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], result) if name == "_to_copy" else (args[1], args[0])
            if source.device == target.device or source.device.type == target.device.type:
                return False
            to_device = target.device.type == self.device_type
            non_blocking = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            return not (to_device and non_blocking and source.is_pinned())
        if not on_device:
            return False
        if name == "_local_scalar_dense" or name in OF_UNKNOWN_SIZE:
            return True
        if name in ("index", "index_put", "index_put_"):
            indices = [x for x in args[1] if x is not None]
            elsewhere = any(x.device.type != self.device_type and x.dim() for x in indices)
            return elsewhere or any(x.dtype is torch.bool for x in indices)
        return False


def _caller() -> str:
    """Return the innermost line of this package's source, as in training.py:40."""
    for frame in reversed(traceback.extract_stack()):
        if Path(frame.filename).is_relative_to(SOURCE):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "elsewhere"
