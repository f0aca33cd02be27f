"""The rules of the code's shape: which way imports point, and how long things may be."""

import ast
import re
from collections import deque
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "latentdiff"
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = [
    "errors", "names", "config", "media", "diffusion", "models", "interop", "data", "pipelines", "evaluation", "doctor",
    "training", "starter", "commands", "cli",
]  # fmt: skip
"""From the bottom to the top: a part imports itself and what stands before it."""

MAX_FILE, MAX_FUNCTION, MAX_PATH = 400, 60, 4


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def imports(file: Path, lazy: bool = True) -> set[str]:
    """Modules of the package that a file imports; without ``lazy`` those at its import time only."""
    tree = ast.parse(file.read_text())
    nodes: deque[ast.AST] = deque(tree.body)
    found = set()
    while nodes:
        node = nodes.popleft()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef) and not lazy:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= submodules or {node.module or ""}
        nodes.extend(ast.iter_child_nodes(node))
    return found & set(MODULES)


def part(module: str) -> str:
    return module.split(".")[1]


def test_imports_point_one_way() -> None:
    wrong = []
    for module, file in MODULES.items():
        if module == "latentdiff":
            continue  # the front door: it names the public classes and loads them when they are used
        assert part(module) in ORDER, f"{module}: say in ORDER where it stands"
        for imported in imports(file) - {"latentdiff"}:
            if ORDER.index(part(imported)) > ORDER.index(part(module)):
                wrong.append(f"{module} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_pipelines_never_import_training() -> None:
    for module, file in MODULES.items():
        if module.startswith("latentdiff.pipelines"):
            reached, queue = set(), [file]
            while queue:
                for imported in imports(queue.pop()) - reached - {"latentdiff"}:
                    reached.add(imported)
                    queue.append(MODULES[imported])
            assert not [name for name in reached if part(name) == "training"], module


def test_no_import_cycles() -> None:
    graph = {module: imports(file) - {"latentdiff"} for module, file in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def test_light_modules_stay_light() -> None:
    heavy = {"torch", "torchaudio", "transformers", "diffusers", "accelerate", "librosa", "matplotlib", "PIL"}
    light = [
        "",
        "errors",
        "names",
        "config",
        "config.components",
        "config.sections",
        "config.recipes",
        "config.reading",
        "cli",
        "doctor",
        "commands",
        "commands.evaluate",
        "commands.generate",
        "commands.medium",
        "commands.outputs",
        "commands.request",
        "interop",
        "interop.family",
        "interop.folder",
        "interop.hub",
    ]
    for name in light:
        file = MODULES[f"latentdiff.{name}".rstrip(".")]
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {name.split(".")[0] for name in names}, file


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= MAX_FILE, f"{text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{node.name}: {lines} lines"


def test_no_drawers() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc"}
    assert not [file for file in FILES if drawers & {file.stem, file.parent.name}]


def test_four_files_from_train_to_each_loss() -> None:
    """Counted along imports, lazy ones included; a recipe's file holds its named loss terms."""
    distance = {ROOT / "train.py": 1}
    queue = deque(distance)
    while queue:
        file = queue.popleft()
        for imported in imports(file):
            if MODULES[imported] not in distance:
                distance[MODULES[imported]] = distance[file] + 1
                queue.append(MODULES[imported])
    recipes = [f for f in (PACKAGE / "training/recipes").glob("*.py") if f.name != "__init__.py"]
    assert recipes
    for recipe in recipes:
        assert re.search(r"^    def losses\(", recipe.read_text(), re.MULTILINE), f"{recipe.name} has no losses"
        assert distance[recipe] <= MAX_PATH, recipe.name


def test_nothing_that_could_run_code_from_a_model() -> None:
    """Weights are safetensors; see SECURITY.md."""
    unguarded = r"torch\.load\((?![^\n]*weights_only=True)"
    forbidden = re.compile(rf"import pickle|{unguarded}|trust_remote_code|allow_pickle=True|yaml\.load\(|\beval\(\w")
    for file in [*FILES, ROOT / "train.py"]:
        assert not (found := forbidden.search(file.read_text())), f"{file}: {found and found[0]}"
