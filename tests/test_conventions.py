"""The house rules, walked over every file: import arrows, line budgets, docstrings, exports, forbidden calls."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from minilearn.callback import EVENTS, Callback, CancelException

PACKAGE = Path(inspect.getfile(Callback)).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up; a file imports only from rooms above its own, and within `ROOM_ORDER`'s rooms from earlier files.
ROOMS = [
    "errors", "tensors", "random_states", "job_errors", "meeting_place", "distributed", "votes", "signals", "compiling", "operators", "backward", "batches", "files", "archives", "foreign_weights", "exported_graph", "exported", "rows", "joined_rows", "states", "tensor_files", "checkpoints", "sharded_manifest", "sharded_storage", "sharded_files", "sharded_conversions", "shared_checkpoints", "surfaces", "plots", "activation_plots", "data", "class_losses", "flat_losses", "losses", "checks", "preflight", "metrics", "schedule", "lr_suggest", "optim", "sharding", "materialize", "scale", "hooks", "summary_page",
    "graphs", "heard", "diagnosis", "faults", "callback", "handlers", "step", "loop", "managed", "restore", "layered",
    "callbacks",
    "summary", "inspection", "described", "fits", "shortcut", "predictions", "saved", "exchange", "conversions", "trials",
    "learner", "interpret",
    "vision",
    "all",
]  # fmt: skip
ROOM_ORDER = {
    "metrics": [
        "functions",
        "streaming",
        "joining",
        "accumulated",
        "torch_metric",
        "factory",
        "classes",
        "labels",
        "regression",
        "given",
        "__init__",
    ],
    "data": [
        "download",
        "idx",
        "handwritten",
        "columns",
        "position",
        "loader",
        "own_rows",
        "shares",
        "rounds",
        "order",
        "loaders",
        "transforms",
        "__init__",
    ],
    "optim": [
        "pieces",
        "packs",
        "lists",
        "blocks",
        "compiled",
        "steppers",
        "kernels",
        "hypers",
        "groups",
        "calls",
        "apart",
        "shards",
        "sparse",
        "optimizer",
        "in_graph",
        "recipes",
        "wrapper",
        "lookahead",
        "muon",
        "foreign",
        "__init__",
    ],
    "callbacks": [
        "train_eval",
        "distributed",
        "device",
        "recorder",
        "nan",
        "progress",
        "gather_preds",
        "schedule",
        "lr_find",
        "profile",
        "average",
        "swa",
        "mixup",
        "epochs",
        "modes",
        "collect",
        "precision",
        "accumulation",
        "gradient_clip",
        "memory_format",
        "cast",
        "figures",
        "csv_log",
        "tensorboard",
        "wandb",
        "show_graph",
        "profiler",
        "tracker",
        "plateau",
        "save_model",
        "hook",
        "activation_stats",
        "job",
        "checkpoint",
        "preflight",
        "divergence",
        "__init__",
    ],
    "plots": ["ground", "curves", "images", "descent", "results", "confusion", "__init__"],
    "preflight": ["finding", "kinds", "batch", "data", "model", "page", "__init__"],
    "vision": ["compat", "__init__"],
}
RUNS_TEXT = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "os.system", "os.popen", "torch.hub.load",
    "torch.jit.load", "torch.package.PackageImporter", "subprocess.getoutput",
}  # fmt: skip
READS_TORCH = {"torch.load": "minilearn.foreign_weights", "torch.export.load": "minilearn.exported"}
"""What could run code from a file, and the one file in which it is called, after the file was looked through."""
LOOP_FILES, LOOP_BUDGET, FILE_BUDGET = ("callback.py", "step.py", "loop.py", "learner.py"), 1000, 400


def rank(module: str) -> tuple[int, int]:
    """The place of a module, such as ``minilearn.data.loader``, in the order from the ground up."""
    _, room, *rest = module.split(".")
    inside = ROOM_ORDER.get(room, ["__init__"])
    return ROOMS.index(room), inside.index(rest[0] if rest else "__init__")


def module_name(file: Path) -> str:
    parts = ("minilearn", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[str]:
    """The minilearn modules that a file imports, wherever it does; not those for the type checker alone."""

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "minilearn")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module and node.module.startswith("minilearn"):
                for alias in node.names:
                    deeper = f"{node.module}.{alias.name}"
                    is_module = (PACKAGE / Path(*deeper.split(".")[1:])).with_suffix(".py").exists()
                    yield deeper if is_module else node.module
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(file.read_text()))


@pytest.mark.parametrize("file", [f for f in FILES if f.parent != PACKAGE or f.name != "__init__.py"], ids=module_name)
def test_import_arrows_point_to_the_ground(file: Path) -> None:
    own = rank(module_name(file))
    for imported in imports(file):
        assert rank(imported) < own, f"{module_name(file)} imports {imported}"


def test_every_file_has_its_place_in_the_order() -> None:
    for file in FILES:
        if file != PACKAGE / "__init__.py":
            rank(module_name(file))


def test_line_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {str(file.relative_to(PACKAGE)): len(file.read_text().splitlines()) for file in FILES}
    loop = sum(lines.get(name, 0) for name in LOOP_FILES)
    with capsys.disabled():
        print(
            f"\nlines: the loop {loop} of {LOOP_BUDGET}, longest file {max(lines, key=lambda n: lines[n])} {max(lines.values())} of {FILE_BUDGET}"
        )
    assert loop <= LOOP_BUDGET
    assert {name: n for name, n in lines.items() if n > FILE_BUDGET} == {}


def public_things() -> Iterator[tuple[str, object]]:
    """Every public class, function and method of the package."""
    for file in FILES:
        module = importlib.import_module(module_name(file))
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{module.__name__}.{name}", thing
            if inspect.isclass(thing):
                for attribute, member in vars(thing).items():
                    if not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                        yield f"{module.__name__}.{name}.{attribute}", member


def test_everything_public_has_a_docstring() -> None:
    bare = [
        name
        for name, thing in public_things()
        if not getattr(thing, "__doc__", None) and name.split(".")[-1] not in EVENTS
    ]
    assert bare == []


def test_every_module_has_a_docstring() -> None:
    assert [module_name(file) for file in FILES if not ast.get_docstring(ast.parse(file.read_text()))] == []


def library_callbacks() -> list[type[Callback]]:
    for file in FILES:
        importlib.import_module(module_name(file))
    return [cls for cls in Callback.__subclasses__() if cls.__module__.startswith("minilearn.")]


@pytest.mark.parametrize("callback", library_callbacks(), ids=lambda cls: cls.__name__)
def test_library_callback_is_documented_ordered_and_exported(callback: type[Callback]) -> None:
    import minilearn.all

    assert callback.__doc__
    assert "order" in vars(callback), "say where it stands among the others"
    assert callback.__name__ in minilearn.all.__all__
    assert any(event in vars(callback) for event in EVENTS)


def test_every_event_has_one_sentence() -> None:
    assert all(text.endswith(".") for text in EVENTS.values())


def test_every_cancel_exception_is_in_the_front_door() -> None:
    import minilearn.all

    assert {cls.__name__ for cls in CancelException.__subclasses__()} <= set(minilearn.all.__all__)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_no_file_is_code(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in RUNS_TEXT, called
            if called in {"torch.load", "torch.export.load"}:
                assert module_name(file) == READS_TORCH[called], called
            if called == "torch.load":
                assert {kw.arg: ast.unparse(kw.value) for kw in node.keywords}["weights_only"] == "True"
            assert not any(kw.arg in ("shell", "allow_pickle") for kw in node.keywords)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}


def test_each_of_torchs_readers_that_could_run_code_is_called_in_one_place() -> None:
    calls = [
        (ast.unparse(node.func), module_name(file))
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in READS_TORCH
    ]
    assert sorted(calls) == sorted(READS_TORCH.items())


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_torchs_readers_go_by_no_other_name(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.Name, ast.Attribute)):
            last = node.id if isinstance(node, ast.Name) else node.attr
            assert last not in {"_pickle_load_obj", "load_inline", "load_state_dict_from_url", "torch_load"}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            assert "load" not in {alias.name for alias in node.names}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_torchs_private_functions_are_named_in_one_file(file: Path) -> None:
    if module_name(file) != "minilearn.optim.lists":
        assert "torch._foreach" not in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_torchvision_is_imported_through_one_file(file: Path) -> None:
    if module_name(file) == "minilearn.vision.compat":
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("torchvision") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("torchvision")
