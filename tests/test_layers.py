"""Imports go downward only, siblings do not import each other, and the package imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "atlas_jax"
LAYERS = {
    "errors": 0, "checks": 0, "names": 0, "interrupts": 0, "files": 0,
    "types": 0, "rows": 0, "sharding": 0, "tensor_file": 0, "progress": 0, "table": 0,
    "statistics": 1,
    "models": 2, "sae": 2, "steering": 2, "translators": 2, "metrics": 2, "labels": 2, "pooling": 2, "stored": 2,
    "atlas": 3, "subject": 3, "translation": 3, "corpus": 3,
    "vectors": 3, "verbalizers": 3, "bridge": 4,
    "pipeline": 4,
    "sae_lab": 5, "lens": 5, "hub": 5,
    "experiments": 6,
    "bundled": 7, "report": 7, "explorer": 7, "cli": 8,
}  # fmt: skip


def _imports():
    for path in sorted(PACKAGE.rglob("*.py")):
        home = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if home == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module] if node.module != "atlas_jax" else [f"atlas_jax.{a.name}" for a in node.names]
            elif isinstance(node, ast.Import):
                modules = [a.name for a in node.names]
            for module in modules:
                parts = module.split(".")
                if parts[0] == "atlas_jax" and len(parts) > 1 and parts[1] != home:
                    yield path.relative_to(PACKAGE), home, parts[1]


def test_every_module_has_a_layer():
    homes = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert homes - {"__init__"} == set(LAYERS)


def test_imports_go_downward():
    low = {name for name, layer in LAYERS.items() if layer == 0}  # each may import those before it
    wrong = [
        f"{path}: {home} imports {target}"
        for path, home, target in _imports()
        if LAYERS[target] >= LAYERS[home] and not (home in low and target in low)
    ]
    assert not wrong


def _modules():
    """Every module, with the modules it imports anywhere in its text."""
    names = {
        p: ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for p in _files()
    }
    found = {}
    for path, name in names.items():
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.module]
        full = {f"{n.module}.{a.name}" for n in nodes for a in n.names} | {n.module for n in nodes}
        found[name] = (full & set(names.values())) - {name}
    return found


def _files():
    return sorted(PACKAGE.rglob("*.py"))


def circle(imports):
    """Modules in a circle of imports, and those that lead to one."""
    left = dict(imports)
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    return sorted(left)


def test_no_module_imports_itself_through_others():
    """Not even within a package, or inside a function. Packages import their own modules, and are left out."""
    imports = _modules()
    packages = {name for name in imports if (PACKAGE.parent / name.replace(".", "/")).is_dir()}
    inner = {
        name: {t for t in targets if not (t in packages and name.startswith(t + "."))}
        for name, targets in imports.items()
    }
    assert circle(inner) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_the_import_check_can_fail():
    assert any(home == "experiments" and target == "pipeline" for _, home, target in _imports())


@pytest.mark.parametrize("module", ["atlas_jax", "atlas_jax.cli._app"])
def test_importing_is_light(module):
    code = f"import {module}, sys; print(sorted({{'jax', 'flax', 'torch', 'transformers', 'nltk'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    import atlas_jax as aj

    for name in aj.__all__:
        assert getattr(aj, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aj.nothing  # noqa: B018
