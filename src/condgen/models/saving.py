"""Models on disk: one file, `model.safetensors`, whose header says how the weights are assembled.

Nothing stored is ever executed. A part of condgen is described by its registered name and constructor arguments, a
layer of `torch.nn` by its attributes; anything else is handed over again at load. Loading imports condgen and torch
alone. Being one file, a saved model is whole at every moment. Format 1, two files, is still read.
"""

__all__ = ["build", "describe", "load", "save"]

import copy
import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import condgen
from condgen.io.archives import weights_hash
from condgen.io.atomic import read_json, undisturbed, write_atomically
from condgen.io.places import WEIGHTS, weights_file
from condgen.models.checks import check_assembly, check_depths, check_header, check_names, check_sizes
from condgen.models.generator import Generator
from condgen.nn.parts import FAMILIES, REGISTERED, Part

FORMAT = 2
HEADER = "condgen"
CONFIG = "config.json"  # of format 1
PREPROCESSING = "uint8 images divided by 255, channels first"
MODULE_LISTS = (nn.Sequential, nn.ModuleList)
PLAIN = bool | int | float | str
MAKING: dict[Any, Callable[..., Tensor]] = {  # functions of torch that make a filled tensor; the same, not filled
    torch.rand: torch.empty,
    torch.randn: torch.empty,
    torch.eye: lambda n, m=None, **options: torch.empty(n, n if m is None else m, **options),
    torch.linspace: lambda _start, _end, steps, **options: torch.empty(steps, **options),
}
FILLING = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_")


def save(model: Generator, path: str | Path, *, half: bool = False) -> Path:
    """Write a model to a folder, which is made where it is missing, as the one file `model.safetensors`.

    Before anything is written the description is built again without memory, and every name and shape compared.
    The file takes the place of an earlier one at once.

    Args:
        model: of any family, from any parts. Parts that cannot be described (a user's own modules) are noted
            by their place and handed over again at :func:`load`.
        path: of the folder.
        half: store numbers in half precision, in half the space; they are read back as float32, and images change
            by about a grey level.

    Returns:
        The folder.

    Raises:
        TypeError: if this is no model of condgen, or a subclass, whose code would not be stored.
        ValueError: if the description does not give the same layers, names and shapes.

    Warns:
        UserWarning: if there are parts whose code is not stored.

    Example:
        >>> import tempfile
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2, latent=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(model, Path(folder) / "tiny"))
        >>> torch.equal(model.sample([0, 1]), again.sample([0, 1]))
        True
    """
    content, path = to_file(model, half), Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with undisturbed():
        write_atomically(path / WEIGHTS, content)
        if is_description(path / CONFIG):  # of format 1, it belongs to the weights that were here
            (path / CONFIG).unlink()
    return path


def is_description(file: Path) -> bool:
    """Whether a `config.json` is that of a model in format 1, and not a user's own file of this name."""
    try:
        return "assembly" in read_json(file)
    except (OSError, ValueError):
        return False


def to_file(model: Generator, half: bool = False) -> bytes:
    """The content of the file that :func:`save` writes."""
    if not isinstance(model, Generator) or REGISTERED.get(model.registered) is not type(model):
        raise TypeError(
            f"Expected a model of condgen, not a subclass, whose code would not be stored; got {type(model).__name__}. "
            "Put what is new into a part."
        )
    external: dict[str, nn.Module] = {}
    assembly = describe_module(model, "", external)
    check_rebuilt(model, assembly, external)
    if external:
        warnings.warn(
            f"The code of {', '.join(external)} is not stored, since condgen cannot describe it (a module of your "
            "own, or arguments such as functions). Pass it again to load(path, parts={...}).",
            stacklevel=3,
        )
    # Copies on the CPU; safetensors refuses tensors that share memory.
    weights = {k: v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}
    if half:
        weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    config = {
        "format": FORMAT,
        "condgen": condgen.__version__,
        "image_shape": describe(model.image_shape),
        "class_names": [str(name) for name in model.class_names],
        "preprocessing": PREPROCESSING,
        "provenance": dict(model.provenance),
        "weights": weights_hash(weights),
        "half": half,
        "assembly": assembly,
    }
    return to_bytes(weights, {HEADER: json.dumps(config)})


def load(path: str | Path, parts: Mapping[str, nn.Module] | None = None) -> Any:
    """A model from its folder, on the CPU and in evaluation mode.

    Nothing of the size that a description claims is allocated before it is known to fit the weights.

    Args:
        path: a folder that :func:`save` or a training run wrote, the `model.safetensors` in it, or the name of a model
            that comes with condgen (`condgen.models.weights`), if there is no such folder.
        parts: the modules that were not condgen's or torch's, by their place: `{"encoder": mine}`. Their weights
            are loaded into them.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if a file is damaged or of a newer format, names something that is no part, or if parts are
            missing or do not fit.
    """
    weights = weights_file(path)
    config = read_config(weights)
    external = dict(parts or {})
    check_depths(weights, config["assembly"])
    try:
        with torch.device("meta"), Uninitialised():
            model = build(config["assembly"], external)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    except Exception as error:  # whatever a tampered description makes a constructor raise
        raise ValueError(f"{weights} is damaged: {error!r}.") from error
    if not isinstance(model, Generator):
        raise ValueError(f"Expected a model in {weights}; got {type(model).__name__}.")
    if external:
        raise ValueError(f"This model has no part of yours at {', '.join(external)}. Leave it out of parts=.")
    check_header(weights, model)
    check_sizes(weights, model)
    check_names(weights, model, config["class_names"])
    # Copies: the file's tensors start anywhere in memory, and sums may then differ from the saved model's in a bit.
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    if stored_hash(weights, tensors, config) != config["weights"]:
        raise ValueError(f"{weights} is damaged: its weights are not those it was written with. Restore the file.")
    if config.get("half"):
        tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=True)
    if not parts:
        check_assembly(weights, model)
    model.class_names = tuple(config["class_names"])
    model.provenance = config.get("provenance", {})
    return model.eval()


def load_like(path: str | Path, model: Generator) -> Any:
    """A model from its folder, in which the parts whose code is not stored are copies of those of a model at hand.

    Args:
        path: as :func:`load` takes it.
        model: the one that was saved there, perhaps with other weights.

    Raises:
        ValueError: as :func:`load`.
    """
    external: dict[str, nn.Module] = {}
    describe_module(model, "", external)
    stored = set(external_places(read_config(weights_file(path))["assembly"]))
    return load(path, {place: copy.deepcopy(part) for place, part in external.items() if place in stored})


def external_places(description: Any) -> Iterator[str]:
    """The places of the parts whose code is not stored.

    Example:
        >>> list(external_places({"module": "cvae.ConditionalVAE", "arguments": {"encoder": {"external": "encoder"}}}))
        ['encoder']
    """
    if isinstance(description, list):
        for item in description:
            yield from external_places(item)
    elif isinstance(description, dict):
        if "external" in description:
            yield description["external"]
        for item in description.values():
            yield from external_places(item)


class Uninitialised(TorchFunctionMode):
    """Weights without memory are not filled: what fills them on the device "meta" imports PyTorch's compiler first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, but fill no tensor that has no memory."""
        if func in MAKING:
            return MAKING[func](*args, **(kwargs or {}))
        filled = args[0] if args else (kwargs or {}).get("tensor")
        if getattr(func, "__name__", "") in FILLING and isinstance(filled, Tensor) and filled.is_meta:
            return filled
        return func(*args, **(kwargs or {}))


def describe(value: Any, place: str = "", external: dict[str, nn.Module] | None = None) -> Any:
    """A JSON-able description of a part, a layer of torch.nn, a class, a number or a container of these.

    Args:
        value: what to describe.
        place: dotted path of a module inside the model.
        external: collects modules that cannot be described, by their place.

    Raises:
        TypeError: for anything else.

    Example:
        >>> describe(nn.Linear(2, 3))
        {'module': 'torch.nn.Linear', 'arguments': {'in_features': 2, 'out_features': 3}}
    """
    external = {} if external is None else external
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, PLAIN):
        return value
    if isinstance(value, type):
        return {"class": class_name(value)}
    if isinstance(value, nn.Module):
        found = len(external)
        try:
            return describe_module(value, place, external)
        except TypeError:
            for inner in list(external)[found:]:  # a part is external as a whole
                del external[inner]
            external[place] = value
            return {"external": place, "was": type(value).__qualname__}
    if isinstance(value, list | tuple):
        return [describe(item, f"{place}.{k}", external) for k, item in enumerate(value)]
    raise TypeError(f"Expected a part, a class, a number or a string; got {type(value).__name__}.")


def describe_module(module: nn.Module, place: str, external: dict[str, nn.Module]) -> dict[str, Any]:
    """The class name and arguments of one module; TypeError where it has none to tell."""

    def inner(name: str) -> str:
        return f"{place}.{name}" if place else name

    if type(module) in MODULE_LISTS:
        # named_children would leave out a layer that stands in two places, such as one activation used twice.
        children = {n: describe(c, inner(n), external) for n, c in module._modules.items()}
        return {"module": class_name(type(module)), "children": children}
    name = class_name(type(module))
    if isinstance(module, Part):
        arguments = {}
        for key, value in module.arguments.items():
            held = getattr(module, key, value)  # what was replaced after construction counts as it now is
            if isinstance(held, nn.ModuleList):
                value = list(held)
            elif isinstance(held, nn.Module | PLAIN) or (held is None and isinstance(value, nn.Module)):
                value = held
            arguments[key] = describe(value, inner(key), external)
        return {"module": name, "arguments": arguments}
    arguments, told = {}, False
    for key, parameter in inspect.signature(type(module)).parameters.items():
        if key in ("device", "dtype") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(module, key):
            raise TypeError(f"{name} does not tell its {key}.")
        value = getattr(module, key)
        # Whether there is a bias is an argument; the bias itself is a weight.
        value = value is not None if key == "bias" else value
        told = True
        if value is not parameter.default and value != parameter.default:  # other versions of torch know fewer
            arguments[key] = describe(value)
    if not told and any(True for _ in module.parameters()):  # recurrent layers take *args
        raise TypeError(f"{name} does not tell its arguments.")
    return {"module": name, "arguments": arguments}


def class_name(cls: type) -> str:
    """The name that :func:`find_class` resolves again; TypeError for classes it would not."""
    if issubclass(cls, nn.Module):
        if cls.__module__.startswith("torch.nn.modules.") and getattr(nn, cls.__name__, None) is cls:
            return f"torch.nn.{cls.__name__}"
        if issubclass(cls, Part) and REGISTERED.get(cls.registered) is cls:
            return cls.registered
    raise TypeError(f"{cls.__qualname__} is neither a part of condgen nor a layer of torch.nn.")


def find_class(name: Any) -> type[nn.Module]:
    """The class of a name, which must be a part of condgen or a layer of torch.nn."""
    if isinstance(name, str):
        # Format 1 wrote "condgen.likelihoods.Gaussian".
        short = name.removeprefix("condgen.")
        if short not in REGISTERED:  # the families bring all parts with them
            for family in FAMILIES:
                import_module(f"condgen.{family}")
        cls = REGISTERED.get(short) or getattr(nn, name.removeprefix("torch.nn."), None)
        with suppress(TypeError):
            if isinstance(cls, type) and class_name(cls) == short:
                return cls
    raise ValueError(f"Expected the name of a part of condgen or a layer of torch.nn; got {name!r}.")


def build(description: Any, external: dict[str, nn.Module] | None = None) -> Any:
    """What :func:`describe` described; modules of the user's own are taken out of `external` by their place.

    Raises:
        ValueError: for unknown classes, arguments they do not take, or a missing module of the user's own.

    Example:
        >>> build({"module": "torch.nn.Linear", "arguments": {"in_features": 2, "out_features": 3}})
        Linear(in_features=2, out_features=3, bias=True)
    """
    external = {} if external is None else external
    if isinstance(description, list):
        return tuple(build(item, external) for item in description)
    if not isinstance(description, dict):
        return description
    if "external" in description:
        place, was = description["external"], description.get("was", "a module")
        if place not in external:
            raise ValueError(
                f"This model was saved with a {place} of your own ({was}), whose code is not stored. "
                f"Pass load(path, parts={{{place!r}: {was}(...)}})."
            )
        return external.pop(place)
    if "class" in description:
        return find_class(description["class"])
    cls = find_class(description.get("module"))
    if "children" in description:
        children = {name: build(child, external) for name, child in description["children"].items()}
        container: Any = cls() if cls in MODULE_LISTS else None
        if container is None:
            raise ValueError(f"Expected a container of modules; got {description['module']!r}.")
        for name, child in children.items():
            container.add_module(name, child)
        return container
    arguments = {key: build(value, external) for key, value in description.get("arguments", {}).items()}
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{description['module']} cannot be built from {arguments}: {error}") from error


def check_rebuilt(model: nn.Module, assembly: Any, external: Mapping[str, nn.Module]) -> None:
    """Raise unless the description, built without memory, has the model's layers, names, shapes and description."""
    with torch.device("meta"), Uninitialised():
        again = build(json.loads(json.dumps(assembly)), dict(external))
    ours, theirs = (inventory(m) for m in (model, again))
    if ours != theirs:
        differ = "; ".join(f"{place}: {what}" for place, what in sorted(ours ^ theirs)[:4])
        raise ValueError(
            f"The model's layers are not those of its description (first differences: {differ}). Was a layer inside "
            "a part replaced? Wrap your own network and pass it as a part instead."
        )
    if json.dumps(describe(again)) != json.dumps(assembly):
        raise ValueError("The model's description does not describe what it builds; this is a fault of condgen.")


def inventory(module: nn.Module) -> set[tuple[str, str]]:
    """Every layer with its settings and every weight with its shape, by place."""
    layers = {(n, f"{type(m).__name__}({m.extra_repr()})") for n, m in module.named_modules(remove_duplicate=False)}
    return layers | {(name, str(tuple(tensor.shape))) for name, tensor in module.state_dict().items()}


def read_config(weights: Path) -> dict[str, Any]:
    """The description of a model: in the header of its weights, or in the second file of format 1."""
    if not weights.is_file():
        raise FileNotFoundError(f"No model in {weights.parent}: expected the file {WEIGHTS} there. Check the path.")
    try:
        with safe_open(weights, "pt") as file:
            text = (file.metadata() or {}).get(HEADER)
        where = weights if text is not None else weights.parent / CONFIG
        if text is None and not where.is_file():
            raise ValueError("its header does not say what it is the weights of")
        config = json.loads(text, parse_constant=str) if text is not None else read_json(where)
        newer = config["format"] > FORMAT
        if config["format"] < 2:
            config["weights"] = config.get("sha256")
        config["assembly"].items()
        if not isinstance(config["weights"], str | None):
            raise TypeError("weights is no hash")
        if not isinstance(config["class_names"], list) or not all(isinstance(n, str) for n in config["class_names"]):
            raise TypeError("class_names is not a list of names")
        if not isinstance(config.get("provenance", {}), dict):
            raise TypeError("provenance is no table")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"The model in {weights.parent} is damaged: {error!r}. Restore {weights.name}.") from error
    if newer:
        raise ValueError(f"{where} has format {config['format']}, this condgen reads up to {FORMAT}. Upgrade condgen.")
    return config


def stored_hash(weights: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """What the description's hash is to be compared with; format 1 hashed the file."""
    return weights_hash(tensors) if config["format"] >= 2 else hashlib.sha256(weights.read_bytes()).hexdigest()
