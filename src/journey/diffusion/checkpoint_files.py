"""Files of weights, read without running anything that they contain, and without torch.

A file becomes a tree: dictionaries and lists whose leaves are tensors, numbers and texts. Of a
pickle, only tensors and plain values are built; any other object becomes a `NotRead`.
"""

import functools
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

LFS = b"version https://git-lfs"  # how the pointers of Git LFS begin
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch < 1.6 began its files
SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
STORAGE_TYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
OTHER_FORMATS = {
    b"GGUF": "a GGUF file, of quantised weights",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"<": "a web page, not the file that it links to",
    LFS: "a Git LFS pointer, not the weights; run git lfs pull",
}
ADVICE = "save its state_dict() instead"


class UnreadableError(ValueError):
    """A file is not readable as weights. The message, a part of a line, says what it is."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: str  # as torch names it, such as float32
    read: "Callable[[], Tensor]"  # returns it, on the CPU


class NotRead:
    """An object in a pickle that is no tensor. Nothing of it is imported or run."""

    origin: ClassVar[str] = ""  # module.class

    def __new__(cls, *args: object, **kwargs: object) -> "NotRead":
        """Return an empty object, whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def ignore(self, *args: object) -> None:
        """Ignore an operation of the pickle."""

    __setstate__ = __setitem__ = append = extend = add = ignore

    def __call__(self, *args: object) -> "NotRead":
        """Return another object that is not read, without calling anything."""
        return self


Tree = dict | list | tuple | StoredTensor | NotRead | str | float | bool | None


def read_tree(path: Path) -> Tree:
    """Return the content of a file of weights.

    Raises:
        UnreadableError: It is no such file, or is damaged.
    """
    try:
        return _read_tree(path)
    except UnreadableError:
        raise
    except (OSError, EOFError) as error:
        raise UnreadableError(f"it cannot be read: {reason(error)}") from None
    except Exception as error:  # a damaged or a hostile file fails in many ways
        raise UnreadableError(f"it is damaged: {reason(error)}") from None


def needs_torch(path: Path) -> bool:
    """Return whether a file is read by torch, which takes seconds to import."""
    with open(path, "rb") as file:
        return file.read(len(LEGACY)) == LEGACY


def reason(error: Exception) -> str:
    """Return the first line of an error, without advice about torch.load."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return line if "weights_only" not in line else type(error).__name__


def _read_tree(path: Path) -> Tree:
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise UnreadableError("it is empty")
    if head[6:9] == b"\0\0{":  # the end of a length, and the begin of a header
        return _read_safetensors(path)
    for start, description in OTHER_FORMATS.items():
        if head.lstrip().startswith(start):
            raise UnreadableError(f"it is {description}")
    if head.startswith(b"PK"):
        return _read_zip(path)
    if head.startswith(LEGACY):
        return _read_legacy(path)
    if head[:1] == b"\x80":
        raise UnreadableError(f"it is a pickle that torch did not write, and is not run; {ADVICE}")
    if head[:1] in b"{[":
        raise UnreadableError("it is a JSON file, without weights; name the folder that has them")
    raise UnreadableError("it is neither a safetensors file nor one that torch.save wrote")


def read_json(path: Path) -> dict:
    """Return the dictionary in a JSON file.

    Raises:
        UnreadableError: There is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        pointer = path.is_file() and path.read_bytes().startswith(LFS)
        problem = "a Git LFS pointer; run git lfs pull" if pointer else reason(error)
        raise UnreadableError(f"{path.name} cannot be read: {problem}") from None
    if not isinstance(content, dict):
        raise UnreadableError(f"{path.name} is not a JSON object")
    return content


def stem_files(folder: Path, stem: str, suffix: str = ".safetensors") -> list[Path]:
    """Return the file of weights `stem`, or the files into which it was split; [] without any."""
    if (file := folder / f"{stem}{suffix}").is_file():
        return [file]
    if (index := folder / f"{stem}{suffix}.index.json").is_file():
        return shards(index)
    return []


def shards(index: Path) -> list[Path]:
    """Return the files that an index of weights names.

    Raises:
        UnreadableError: The index names none, or one that is not in its folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableError(f"{index.name} has no weight_map")
    files = []
    for name in sorted(set(map(str, weight_map.values()))):
        files.append(index.parent / name)
        if Path(name).name != name or not files[-1].is_file():
            raise UnreadableError(f"{index.name} names {name}, which is not in its folder")
    return files


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise UnreadableError("it is truncated, in the header of safetensors")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, entry in header.items():
        end = max(end, entry["data_offsets"][1])
        dtype = SAFETENSORS_TYPES.get(entry["dtype"], entry["dtype"])
        read = functools.partial(_read_safetensor, path, name)
        tensors[name] = StoredTensor(tuple(entry["shape"]), dtype, read)
    if 8 + length + end != size:
        raise UnreadableError(f"it has {size} bytes, its header says {8 + length + end}: truncated")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a file of safetensors."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header.get("__metadata__", {})


def _read_safetensor(path: Path, name: str) -> "Tensor":
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def _read_zip(path: Path) -> Tree:
    """Return the content of a file of torch.save; refuse other zip archives by their kind."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        listing = "\n".join(names) + "\n"
        if "/constants.pkl\n" in listing:
            raise UnreadableError(f"it is a TorchScript program, which is not run; {ADVICE}")
        if len(roots) != 1:
            description = "a NumPy archive" if ".npy\n" in listing else "a zip archive"
            raise UnreadableError(f"it is {description}, not a file of torch.save")
        byteorder = f"{roots[0]}byteorder"
        if byteorder in names and archive.read(byteorder) != b"little":
            raise UnreadableError("its numbers are big-endian")
        with archive.open(f"{roots[0]}data.pkl") as file:
            return _Unpickler(file, path, roots[0], set(names)).load()


@functools.lru_cache(maxsize=1)
def _zip_entry(path: Path, name: str) -> bytearray:
    """Return the bytes of a storage; the next tensor may be another part of the same one."""
    with zipfile.ZipFile(path) as archive:
        return bytearray(archive.read(name))


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain values, and `NotRead` in place of anything else."""

    def __init__(self, file: IO[bytes], path: Path, root: str, names: set[str]) -> None:
        super().__init__(file)
        self.path, self.root, self.names = path, root, names

    def find_class(self, module: str, name: str) -> object:
        """Return what stands for a global of the pickle; none is imported."""
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return self._tensor
            case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state":
                return lambda data, *rest: data
            case "torch._tensor", "_rebuild_from_type_v2":
                return lambda function, kind, arguments, state: function(*arguments)
            case "torch", "Size":
                return tuple
            case "torch" | "torch.storage", _ if name.endswith("Storage"):
                return STORAGE_TYPES.get(name, name)
        return type(name, (NotRead,), {"origin": f"{module}.{name}"})

    def persistent_load(self, identifier: tuple) -> tuple[str, str]:
        """Return the file and the type of a storage.

        Raises:
            UnreadableError: The archive has no such file.
        """
        _, dtype, key, *_ = identifier
        if (file := f"{self.root}data/{key}") not in self.names:
            raise UnreadableError(f"it is damaged: {file} is missing")
        return file, str(dtype)

    def _tensor(
        self, storage: tuple[str, str], offset: int, shape: tuple, stride: tuple, *rest: object
    ) -> StoredTensor:
        path, (file, dtype) = self.path, storage

        def read() -> "Tensor":
            import torch

            content = _zip_entry(path, file)
            if not content:
                return torch.empty(shape, dtype=getattr(torch, dtype))
            numbers = torch.frombuffer(content, dtype=getattr(torch, dtype))
            return numbers.as_strided(shape, stride, offset)

        return StoredTensor(tuple(shape), dtype, read)


def _read_legacy(path: Path) -> Tree:
    """Return the content of a file of torch < 1.6, unless code would have to be run."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        problem = f"it holds pickled objects beside tensors, which are not run; {ADVICE}"
        raise UnreadableError(problem) from None
    return _as_tree(content)


def _as_tree(value: object) -> Tree:
    """Return loaded values as a tree."""
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value
        dtype = str(value.dtype).removeprefix("torch.")
        return StoredTensor(tuple(value.shape), dtype, lambda: tensor)
    if isinstance(value, dict):
        return {key: _as_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_tree(item) for item in value]
    return value  # type: ignore[return-value]  # a number or a text: torch refuses other types


def state_dicts(tree: Tree, name: str = "") -> Iterator[tuple[str, dict | list]]:
    """Yield all dictionaries and lists of tensors in a tree, with their names such as `ema.model`.

    Of a dictionary that holds other values too, only the tensors are yielded.
    """
    if isinstance(tree, dict):
        tensors = {k: v for k, v in tree.items() if isinstance(v, StoredTensor)}
        if tensors and set(map(type, tensors)) == {str}:
            yield name, tensors
        for key, value in tree.items():
            yield from state_dicts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list) and set(map(type, tree)) == {StoredTensor}:
        yield name, tree


def short_list(names: Collection[object]) -> str:
    """Return the first four names as a text, with "…" if there are more."""
    return ", ".join(map(str, [*names][:4])) + (", …" if len(names) > 4 else "")


def describe_tree(tree: Tree) -> str:
    """Return what a file without a fitting state dict holds, in a few words."""
    if isinstance(tree, NotRead):
        return f"it is a pickled {tree.origin}, which is not run; {ADVICE}"
    if isinstance(tree, StoredTensor):
        return "it is a single tensor"
    if not isinstance(tree, dict):
        return f"it is a {type(tree).__name__}, not a dictionary of tensors"
    for key, value in tree.items():
        if isinstance(value, NotRead):
            return f"{key} is a pickled {value.origin}, which is not run; {ADVICE}"
    keys = "\n".join(map(str, tree))
    if "lora" in keys.lower():
        return "it is a LoRA adapter, not a network"
    if re.search(r"^(model\.)?diffusion_model\.", keys, re.MULTILINE):
        return "it is a checkpoint of CompVis; convert it to a folder of diffusers"
    return f"its keys are {short_list(tree)}"
