"""The architecture as assertions: who may import whom, how large things may be, what must not be written down."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sensorium"

LOW = {"types", "params", "errors", "config", "envs", "compat", "inline"}
# Part of the package -> the parts it may import besides itself. What is on top (cli, demo, bench, doctor) may all.
LAYERS = {
    "params": {"errors"},
    "types": {"params", "inline"},
    "inline": set(),
    "errors": set(),
    "config": {"errors"},
    "envs": {"errors"},
    "compat": {"errors", "config"},
    "kernels": LOW,
    "layers": LOW | {"kernels"},
    "media": LOW,
    "models": LOW | {"kernels", "layers", "media"},
    "engine": LOW | {"kernels", "layers", "models", "media"},
    "parsers": LOW,
    "vad": LOW,
    "live_media": LOW | {"media"},
    "messages": LOW | {"live_media"},
    "inputs": set(),
    "outputs": {"types"},
    "sampling_params": {"params"},
    "offline": LOW | {"engine", "models", "live_media", "messages", "outputs"},
    "llm": LOW | {"engine", "messages", "inputs", "outputs", "offline"},
    "inspect": LOW,
    "minicpm": LOW | {"engine", "models", "media", "messages", "live_media", "outputs", "offline", "inspect"},
    "assets": LOW | {"media"},
    "multimodal": {"media"},
    "utils": set(),
    "server": LOW | {"engine", "parsers", "vad", "media"},
}
TOP = {"cli", "bench", "demo", "doctor", "__init__", "__main__"}
# Narrower doors: engine reaches families only through these, media only from the client; both directions are exact.
ENGINE_MODELS = {
    "sensorium.models.registry",
    "sensorium.models.build",
    "sensorium.models.base",
    "sensorium.models.loader",
}
MEDIA_DOORS = ("client", "prepare", "media_pool", "media_worker")
POLICY = ["scheduler", "blocks", "sequence", "session", "encoder_cache"]
# Optional packages, found out about at the moment they are needed.
OPTIONAL = {
    "openai",
    "transformers",
    "triton",
    "flashinfer",
    "huggingface_hub",
    "numba",
    "onnx",
    "onnxruntime",
    "opentelemetry",
}

MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 60


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every imported module, as `from a import b` may mean both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module
            if node.module.startswith("sensorium"):
                for alias in node.names:
                    if (ROOT / node.module.replace(".", "/") / f"{alias.name}.py").is_file():
                        yield node, f"{node.module}.{alias.name}"


def part_of(module: str) -> str | None:
    names = module.split(".")
    return names[1] if names[0] == "sensorium" and len(names) > 1 else None


def test_each_part_imports_only_what_is_below_it():
    wrong = []
    for path in python_files("sensorium"):
        relative = path.relative_to(PACKAGE)
        part = relative.parts[0].removesuffix(".py")
        if part in TOP:
            continue
        for node, module in imports(tree_of(path)):
            target = part_of(module)
            if target not in (None, part) and target not in LAYERS[part]:
                wrong.append(f"{relative}:{node.lineno} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_engine_reaches_models_through_the_registry_and_media_through_the_client():
    wrong = []
    for path in python_files("sensorium/engine"):
        for node, module in imports(tree_of(path)):
            if part_of(module) == "models" and module != "sensorium.models" and module not in ENGINE_MODELS:
                wrong.append(f"{path.name}:{node.lineno} imports {module}")
            if part_of(module) == "media" and path.stem not in MEDIA_DOORS:
                wrong.append(f"{path.name}:{node.lineno} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_server_and_scheduling_policy_import_no_torch():
    policy = [path for path in python_files("sensorium/engine") if path.stem in POLICY]
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in [*policy, *python_files("sensorium/server")]
        for _, module in imports(tree_of(path))
        if module.split(".")[0] == "torch"
    ]
    assert policy
    assert not wrong, "\n".join(wrong)


def test_imports_stand_at_the_top():
    wrong = []
    for path in python_files("sensorium"):
        tree = tree_of(path)
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                wrong += [
                    f"{path.relative_to(ROOT)}:{node.lineno} imports {module} inside {function.name}"
                    for node, module in imports(function)
                    if module.split(".")[0] not in OPTIONAL and path.parent.name != "cli"
                ]
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_stay_small():
    wrong = []
    for path in python_files("sensorium", "benchmarks", "examples"):
        text = path.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            wrong.append(f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines")
        if "kernels" in path.parts:
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def test_names_say_what_a_thing_is():
    wrong = []
    for path in python_files("sensorium", "training", "benchmarks", "examples"):
        if path.stem in ("utils", "util", "helpers", "common", "misc"):
            wrong.append(str(path.relative_to(ROOT)))
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and re.search(r"(Manager|Handler|Helper|Base|Utils?)$", node.name):
                wrong.append(f"{path.relative_to(ROOT)}: class {node.name}")
    assert not wrong, "\n".join(wrong)


def test_no_generic_code_knows_a_family():
    """A family is files in models/ and a line of its registry; what other packages do does not depend on its name."""
    family = re.compile("qwen|llava|minicpm", re.IGNORECASE)
    wrong: list[str] = []
    folders = [f"sensorium/{name}" for name in ("engine", "server", "media", "layers", "kernels", "offline")]
    for path in python_files(*folders):
        tree = tree_of(path)
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            match node:
                case ast.Constant(value=str(word)) if id(node) not in texts:
                    pass
                case ast.Name(id=word) | ast.Attribute(attr=word) | ast.alias(name=word):
                    pass
                case ast.ImportFrom(module=str(word)):
                    pass
                case _:
                    continue
            if family.search(word):
                wrong.append(f"{path.relative_to(ROOT)}: {word[:60]}")
    assert not wrong, "\n".join(wrong)


def test_no_unfinished_work_is_marked_in_the_code():
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files("sensorium", "training", "benchmarks", "examples")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_tracked_file_names_a_machine_or_a_package_registry():
    """Paths of one machine and hosts of one network do not belong in a repository that strangers clone."""
    # Split so that this file passes its own test.
    words = [r"(?<!\w)/wo" + "rk/", "/ro" + "ot/", "/opt/" + "wheels"]
    words += ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org"]
    forbidden = re.compile("|".join(words))
    wrong = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if found := forbidden.search(text):
            wrong.append(f"{path.relative_to(ROOT)}: {found[0]}")
    assert not wrong, "\n".join(wrong)
