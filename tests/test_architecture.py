"""What holds for the package as a whole: imports point up, nothing global is touched, nothing stored is executed."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import condgen

PACKAGE = Path(condgen.__file__).parent
REPOSITORY = PACKAGE.parents[1]
# Data flows down this list of rooms: one imports only from those above it.
ROOMS = ["random", "io", "data", "nn", "distributions", "losses", "models", "training", "recipes", "sampling"]
ROOMS += ["evaluation", "apps", "cli", "__main__"]
MOST_ENTRIES = 16  # directly under src/condgen


def modules():
    """Names of all modules, room by room."""
    files = (path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
    names = (".".join(parts).removesuffix(".__init__") for parts in files)
    return sorted(names, key=lambda name: (ROOMS.index(room(name)), name) if name != "__init__" else (-1, ""))[1:]


def room(name):
    """The room that a module is in."""
    return name.split(".")[0]


HEAVY = [
    "gradio",
    "jsonargparse",
    "lightning_fabric",
    "matplotlib",
    "medmnist",
    "rich",
    "sklearn",
    "torchmetrics",
    "torchvision",
]


def place(name):
    """The file of a module or a package."""
    path = PACKAGE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def source(name):
    return place(name).read_text(encoding="utf-8")


def imported_from_condgen(name):
    """Modules of the package that a module imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("condgen.")}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names if node.module.split(".")[0] == "condgen" else ():
                whole = f"{node.module}.{alias.name}"
                found.add(whole if place(whole.removeprefix("condgen.")).exists() else node.module)
    return {module.removeprefix("condgen.") for module in found}


ORDER = modules()


def test_every_file_is_in_a_room():
    entries = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("__pycache__")}
    assert entries == {*ROOMS, "__init__", "py.typed"}
    assert len(entries) <= MOST_ENTRIES


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_one_way(name):
    above = ROOMS[: ROOMS.index(room(name))]
    others = {module for module in imported_from_condgen(name) if room(module) != room(name)}
    below = {module for module in others if room(module) not in above}
    assert not below, f"{name} imports from rooms below its own: {sorted(below)}"


@pytest.mark.parametrize("inside", ROOMS)
def test_inside_a_room_too(inside):
    """No circle of imports."""
    own = {
        name: {m for m in imported_from_condgen(name) if room(m) == inside} for name in ORDER if room(name) == inside
    }
    # A package lists what its files offer; that is no dependency of the files on it.
    packages = {name for name in own if place(name).name == "__init__.py"}
    left = {name: found - packages for name, found in own.items() if name not in packages}
    while free := [name for name, found in left.items() if not found & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"these import each other: {sorted(left)}"


@pytest.mark.parametrize("inside", [name for name in ROOMS if (PACKAGE / name).is_dir()])
def test_a_room_says_what_it_is_for(inside):
    assert len(importlib.import_module(f"condgen.{inside}").__doc__.split()) > 20


@pytest.mark.parametrize("name", ORDER)
def test_the_package_itself_is_asked_for_its_version_alone(name):
    """Anything else would be an import that points down."""
    asked = {
        node.attr
        for node in ast.walk(ast.parse(source(name)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "condgen"
    }
    assert asked <= {"__version__"}


@pytest.mark.parametrize(
    "shelf",
    [
        *("nn.conditioners", "nn.encoders", "nn.decoders", "distributions.likelihoods"),
        *("distributions.reparameterizers", "distributions.priors.standard", "distributions.priors.mixture"),
        *("distributions.priors.normalizing_flow", "distributions.priors.flow_matching"),
    ],
)
def test_parts_do_not_know_their_assembler(shelf):
    """They know the layers, what every part has in common, and a Gaussian to draw from; a decoder its mirror."""
    known = {"nn.layers", "nn.parts", "nn.threads", "random"}
    known |= {"distributions.reparameterizers", "distributions.priors.scale"}
    known |= {"nn.velocities", "distributions.priors.standard"} if shelf.endswith("flow_matching") else set()
    known |= {"nn.encoders"} if shelf == "nn.decoders" else set()
    assert imported_from_condgen(shelf) <= known


def test_what_receives_objects_knows_no_parts():
    assert imported_from_condgen("sampling.shards") <= {
        *("io.atomic", "io.archives", "io.names", "io.pictures", "io.progress", "models.classes")
    }
    assert imported_from_condgen("losses.elbo") <= {"distributions.likelihoods"}


@pytest.mark.parametrize("name", [None, *ORDER])
def test_public_names_are_chosen_and_described(name):
    module = importlib.import_module(f"condgen.{name}" if name else "condgen")
    assert module.__doc__
    chosen = getattr(module, "__all__", ())
    assert len(set(chosen)) == len(chosen)
    for public in chosen:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing):
            assert inspect.getdoc(thing), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", ORDER)
def test_no_property_begins_with_a_type(name):
    """The docs take what stands before the first colon of a property's first line for its type."""
    module = importlib.import_module(f"condgen.{name}")
    classes = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__]
    for kind in classes:
        for attribute, thing in vars(kind).items():
            if isinstance(thing, property) and not attribute.startswith("_"):
                first = (inspect.getdoc(thing) or "").split("\n")[0]
                assert ": " not in re.sub(r":[a-z]+:`|`[^`]*`", "", first), f"{kind.__name__}.{attribute}: {first}"


@pytest.mark.parametrize("name", [name for name in ORDER if name.split(".")[0] not in ("cli", "__main__")])
def test_public_functions_have_an_example(name):
    """A class or function that takes part in a model or its use shows how."""
    module = importlib.import_module(f"condgen.{name}")
    without = {
        public
        for public in getattr(module, "__all__", ())
        if (inspect.isclass(thing := getattr(module, public)) or inspect.isfunction(thing))
        and ">>>" not in (inspect.getdoc(thing) or "")
    }
    plain = {
        "adam",
        "adamw",
        "Batch",
        "Display",
        "Inference",
        "Schedule",
        "Use",
        "load",
        "replacing",
        "save_grid",
        "write_samples",
    }
    # Records that functions beside them return.
    plain |= {"Embedded", "Features", "LatentHealth", "Mismatch", "Pair", "Result"}
    plain |= {"flush_all", "RunFolder", "environment", "repr_of"}
    assert without <= plain


@pytest.mark.parametrize("name", ORDER)
def test_nothing_stored_is_executed(name):
    """No pickle is opened and no text becomes code, in any file."""
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load"}
            assert not re.match(r"(pickle|cloudpickle|dill|joblib|marshal|shelve)\.", called)
            if called in {"np.load", "numpy.load"}:
                assert "allow_pickle=False" in ast.unparse(node)
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & {"pickle", "marshal", "shelve", "joblib", "dill"}


def test_importing_is_light_and_changes_nothing(tmp_path):
    """In a new process: no heavy package, no setting, no generator, no file."""
    script = f"""if True:
        import json, logging, os, random, sys, warnings
        import numpy, torch
        def state():
            return dict(
                dtype=str(torch.get_default_dtype()), device=str(torch.get_default_device()),
                torch=torch.get_rng_state().tolist(), python=random.getstate(),
                numpy=[str(part) for part in numpy.random.get_state()],
                threads=(torch.get_num_threads(), torch.get_num_interop_threads()), grad=torch.is_grad_enabled(),
                precision=torch.get_float32_matmul_precision(), filters=repr(warnings.filters),
                deterministic=torch.are_deterministic_algorithms_enabled(), printing=repr(numpy.get_printoptions()),
                validation=torch.distributions.Distribution._validate_args, handlers=repr(logging.root.handlers),
                loggers=logging.root.level, environment=dict(os.environ), folder=os.getcwd(), paths=list(sys.path),
                hooks=repr((sys.excepthook, sys.displayhook)),
            )
        before = state()
        import condgen
        after = state()
        changed = [name for name in before if before[name] != after[name]]
        print(json.dumps([changed, [name for name in {HEAVY} if name in sys.modules]]))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "error", "-B", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    changed, heavy = json.loads(done.stdout)
    assert changed == []
    assert heavy == []
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_there_is_one_version():
    try:
        installed = importlib.metadata.version("condgen")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("condgen is not installed")
    assert installed == condgen.__version__


def test_the_repository_holds_no_data_and_no_weights():
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git repository")
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    endings = (".npz", ".npy", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")
    assert not [name for name in listed.stdout.splitlines() if name.endswith(endings)]


def test_what_one_may_use_is_what_one_sees():
    """At the top nothing else shows, and all of it is there."""
    assert dir(condgen) == sorted(condgen.__all__)
    assert all(getattr(condgen, name) is not None for name in dir(condgen))


@pytest.mark.parametrize("inside", ["data", "models", "training", "sampling", "apps"])
def test_lazy_rooms_offer_what_they_list(inside):
    module = importlib.import_module(f"condgen.{inside}")
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)
