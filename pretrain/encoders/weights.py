"""Where frozen weights come from, how random ones are drawn, and the hash that names them."""

import argparse
import hashlib
import importlib.util
import logging
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

RANDOM = "random"
PACKAGE = "package:"
HUB = "hub:"
FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of a model on the hub: no code
OLDER = "pytorch_model.bin"  # where there is no .safetensors file; only tensors are read from it

M = TypeVar("M", bound=nn.Module)
log = logging.getLogger(__name__)


def locate(weights: str, what: str) -> Path:
    """The file or folder that `weights` names: a path; `package:NAME/INSIDE`, inside an installed package; or
    `hub:ORG/NAME`, perhaps with `@REVISION`, a model on the Hugging Face hub, fetched once into its own cache."""
    if weights.startswith(HUB):
        return _fetched(weights.removeprefix(HUB), what)
    if not weights.startswith(PACKAGE):
        path = Path(weights).expanduser()
    else:
        name, _, inside = weights.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"{what}: {weights!r} names the Python package {name!r}, which is not installed; {_WAYS}")
        path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise ValueError(f"{what}: looked for weights at {path}, and there is nothing; {_WAYS}")
    refuse_run(path, f"{what}: ")
    return path


def refuse_run(folder: Path, what: str = "") -> None:
    """Raises ValueError for the folder of a training run: it has a log, and no weights of its own."""
    if (folder / "log.jsonl").is_file() and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{what}{folder} is a run; name OUT, the model that `fourfold export {folder} OUT` makes of it"
        )


_WAYS = 'give a path, `package:NAME/FOLDER`, `hub:ORG/NAME`, or `weights = "random"` with a `seed`'


def _fetched(asked: str, what: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, _, revision = asked.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=FILES))
        if any(folder.glob("*.safetensors")):
            return folder
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*FILES, OLDER]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = next(filter(None, str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{what}: {HUB}{asked} could not be had from the hub: {reason}; without a "
            "network, copy the model's folder here and give its path"
        ) from error


def empty(build: Callable[[], M]) -> M:
    """What `build` makes, with storage but without values (or on the meta device, where that is the default).

    The library's own initialisers would draw from the global generator and take many seconds at 650M parameters, only
    to be overwritten. For modules whose every tensor is in the state dict.
    """
    device = torch.get_default_device()
    with torch.device("meta"):
        module = build()
    return module if device.type == "meta" else module.to_empty(device=device)


def initialise(module: M, seed: int, what: str) -> M:
    """Draw every parameter from a generator of its own, so that a seed means the same weights whatever ran before.

    Matrices are Xavier-uniform, biases 0, norms the identity, embeddings N(0, 1): layer after layer adds as much as it
    was given, so that random features tell contexts apart and not letters alone. On the meta device nothing is drawn.
    """
    log.warning("%s: random weights (seed %d); it was never trained and is a fixed random map of its input", what, seed)
    return draw(module, seed)


def draw(module: M, seed: int, embeddings: float = 1.0) -> M:
    """As `initialise`, for a module that is going to be trained. embeddings: their standard deviation; those that
    scores are made with as well must begin small, or every first guess is certain.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if not parameter.is_meta:
                    _draw(part, name, parameter, generator, embeddings)
    return module


def _draw(part: nn.Module, name: str, parameter: Tensor, generator: torch.Generator, embeddings: float) -> None:
    if isinstance(part, nn.Embedding):
        parameter.normal_(std=embeddings, generator=generator)
    elif parameter.ndim >= 2:
        nn.init.xavier_uniform_(parameter, generator=generator)
    else:
        parameter.fill_(1.0 if "norm" in type(part).__name__.lower() and name == "weight" else 0.0)


def read(path: Path, what: str) -> dict:
    """A `.safetensors` file's tensors, or a `.pt` file's dictionary of tensors, plain values and Namespaces."""
    if path.suffix == ".safetensors":
        return _tensors(path, what)
    if path.is_dir():
        raise ValueError(
            f"{what}: {path} is a folder, and none of an exported model (it has no encoders.json); give that, or a "
            "file of weights"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words advise to load it whatever it runs
        raise ValueError(
            f"{what}: {path} is no file of tensors and plain values; what else a pickle can hold is not opened, as it "
            "may run code. Save the tensors as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{what}: {path} does not load as a PyTorch weights file: {reason}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{what}: {path} holds a {type(data).__name__}; a dictionary of weights was expected")
    return data


def read_folder(folder: Path, what: str) -> dict[str, Tensor]:
    """Every tensor of the folder's `*.safetensors` files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{what}: {folder} has no .safetensors file; transformers' `save_pretrained` writes one")
    return {name: tensor for path in files for name, tensor in _tensors(path, what).items()}


def _tensors(path: Path, what: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{what}: {path} does not load as a safetensors file: {error}") from error


def fill(module: M, tensors: dict[str, Tensor], origin: Path, what: str) -> M:
    """Load the tensors, all of them and no others, as float32. Raises ValueError naming what does not fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        name = wrong[0]
        raise ValueError(
            f"{what}: {origin} does not fit: {len(wrong)} tensors differ, the first being {name}, "
            f"{found.get(name, 'absent')} there and {expected.get(name, 'absent')} in this model"
        )
    if not any(parameter.is_meta for parameter in module.parameters()):
        module.load_state_dict(tensors)
    return module


def described(config: Any) -> dict[str, Any]:
    """What a `transformers` configuration says of the arithmetic: all of it but names, versions and training."""
    drop = re.compile(
        r"^_|version|architectures|dtype|dropout|^initializer|^use_cache$|checkpointing|^(bos|eos|sep)_|label"
    )
    return {name: value for name, value in config.to_diff_dict().items() if not drop.search(name)}


def digest(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the state, sorted by name (2.6 GB take a few seconds)."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what matters of them is checked, and raised, here."""
    from transformers.utils import logging as their_log

    verbosity, bars = their_log.get_verbosity(), their_log.is_progress_bar_enabled()
    their_log.set_verbosity_error()
    their_log.disable_progress_bar()
    try:
        yield
    finally:
        their_log.set_verbosity(verbosity)
        if bars:
            their_log.enable_progress_bar()
