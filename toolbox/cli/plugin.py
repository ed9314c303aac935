"""`rcnn plugin new`: a package with a component of your own that installs, trains and is tested."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from toolbox.errors import StorageError, ToolboxError, did_you_mean

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

# What the generated YAML writes where the new component does not stand. It takes the place of its family's line.
_PARTS = {
    "instance_head": (
        "\n    mask:\n      extractor: {type: RoIAlign, output_size: 14}\n"
        "      head: {type: FCNMaskHead, convolutions: 2, channels: 64}"
    ),
    "backbone": "{type: ResNet, depth: 18, norm: gn}",
    "box_head": "{type: TwoFCBoxHead, channels: 256}",
    "neck": "{type: FPN, out_channels: 64}",
    "roi_extractor": "{type: RoIAlign, output_size: 7}",
    "rpn_head": "{type: ConvRPNHead}",
    "transform": "{type: HorizontalFlip}",
    "logger": "",
}
# What it writes of the new component where that is more than its type.
_OWN = {
    "instance_head": (
        "\n    $module:\n      extractor: {type: RoIAlign, output_size: 7}\n"
        "      head: {type: $class_name, weight: 0.5}"
    ),
    "logger": "\n  loggers:\n    - {type: $class_name}",
}


@app.callback()
def plugin() -> None:
    """Start a plugin of your own."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package, e.g. fill-head; its class is FillHead.")],
    family: Annotated[str, typer.Option(help=f"What it is: {', '.join(_PARTS)}.")] = "instance_head",
    into: Annotated[Path, typer.Option(help="Folder that gets the package's folder.")] = Path("."),
) -> None:
    """Write a package with a component that works: change it into your own.

    It holds the component, a config that trains it on synthetic images, a test by the conformance kit, and what pip
    needs to install it.
    """
    if family not in _PARTS:
        raise ToolboxError(
            f"no template for a family '{family}'{did_you_mean(family, _PARTS)} (families: {', '.join(_PARTS)})"
        )
    module, class_name = names_of(name)
    folder = into / module
    if folder.exists():
        raise ToolboxError(f"{folder}: exists already; choose another name, or another folder with --into")
    texts = package(module, class_name, family)
    try:
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror}); name another folder by --into") from error
    typer.echo(
        f"{folder}: a package with the {family} {class_name}. Next:\n"
        f"  cd {folder}\n"
        f"  python -m pytest\n"
        f"  rcnn train {module}.yaml 'plugins=[./{module}]'\n"
        f"Change {module}/__init__.py into your own; README.md says how it is installed."
    )


def names_of(name: str) -> tuple[str, str]:
    """`fill-head`, `fill_head` or `FillHead` → module `fill_head` and class `FillHead`.

    Raises:
        ToolboxError: Python or pip could not use the name, or something else has it.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*", name):
        raise ToolboxError(
            f"'{name}' cannot name a package: expected letters and digits, parts joined by - or _, e.g. fill-head"
        )
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("-", "_")).lower()
    class_name = "".join(part[:1].upper() + part[1:] for part in module.split("_"))
    reserved = any(map(keyword.iskeyword, (module, class_name))) or keyword.issoftkeyword(module)
    if reserved or module in sys.stdlib_module_names:
        raise ToolboxError(f"'{module}' is a name of Python's own; choose another, e.g. my-{module}")
    known = importlib.util.find_spec(module)
    if known is not None and known.origin:  # a folder without code is found too, as a namespace
        raise ToolboxError(f"there is a module '{module}' already, which importing would find; choose another name")
    return module, class_name


def package(module: str, class_name: str, family: str) -> dict[str, str]:
    """The package's files: path → text.

    Raises:
        ToolboxError: a component of that name exists, or the template imports something of that name.
    """
    from toolbox.registry import FAMILIES
    from toolbox.sections import register_builtin

    register_builtin()
    if class_name in FAMILIES[family]:
        raise ToolboxError(f"there is a {family} '{class_name}' already (rcnn list {family}); choose another name")
    names = {"module": module, "class_name": class_name, "family": family, "project": module.replace("_", "-")}
    own = Template(_OWN.get(family, "{type: $class_name}")).substitute(names)
    templates = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}.yaml": "config.yaml",
        f"test_{module}.py": "test.py",
        f"{module}/__init__.py": f"{family}.py",
    }
    home = files("toolbox.cli") / "plugin_templates"
    texts = {
        path: Template((home / f"{source}.template").read_text(encoding="utf-8")).substitute(
            names | _PARTS | {family: own} | {"family": family}
        )
        for path, source in templates.items()
    }
    if re.search(rf"^(from|import)\b.*\b{class_name}\b", texts[f"{module}/__init__.py"], re.MULTILINE):
        raise ToolboxError(f"the template for {family} imports a '{class_name}' itself; choose another name")
    return texts
