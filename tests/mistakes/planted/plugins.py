"""Plugins that are not there, do not import, or do not do what their family asks."""

from __future__ import annotations

from planted.mistake import Mistake, changed, several, write

HEAD = """\
from torch import nn
from toolbox.registry import BOX_HEADS


@BOX_HEADS.register
class MyHead(nn.Module):
    def __init__(self, in_shape, num_classes, *, channels: int = 8):
        super().__init__()

    def forward(self, regions):
        return None
"""
NECK = """\
from torch import nn
from toolbox.registry import NECKS


@NECKS.register
class MyNeck(nn.Module):
    def __init__(self, in_features, *, depth: int = 1):
        super().__init__()

    def forward(self, features):
        return features
"""
USED = "{type: TwoFCBoxHead, channels: 16}"


def plugin(
    name: str,
    source: str | bytes | None,
    at: str,
    fault: str | tuple[str, ...],
    suggestion: str | tuple[str, ...],
    *,
    use: tuple[str, str] = (USED, "{type: ^MyHead, channels: 16}"),
    listed: str = "mine.py",
    quotes: bool = False,
) -> Mistake:
    """A config that lists `mine.py`; in `at`, TYPE stands for the place where the config uses its component."""
    text, place = changed(*use)
    line, column = place.split(":")
    place = f"{int(line) + 1}:{column}"  # below the line of plugins
    return Mistake(
        name,
        "plugins",
        ("check", "run.yaml"),
        (at.replace("TYPE", f"run.yaml:{place}: "),),
        (fault,) if isinstance(fault, str) else fault,
        (suggestion,) if isinstance(suggestion, str) else suggestion,
        several(write(f"plugins: [{listed}]\n{text}"), *([] if source is None else [write(source, "mine.py")])),
        quotes=quotes,
    )


MISTAKES: tuple[Mistake, ...] = (
    plugin("file is not there", None, "run.yaml:1:11: plugins.0", "no file", "relative to the config's folder"),
    plugin("misspelt file", HEAD, "run.yaml:1:11: plugins.0", "mine2.py", "did you mean 'mine.py'?", listed="mine2.py"),
    plugin("module is not installed", None, "run.yaml:1:11: plugins.0", "no module named 'my_heads'",
           "a file is written as a path", listed="my_heads"),
    plugin("file without its .py", HEAD, "run.yaml:1:11: plugins.0", "no module named 'mine'", "./mine.py",
           listed="mine"),
    plugin("syntax error", HEAD.replace("self):", "self)").replace("int = 8):", "int = 8)"), "mine.py, line 7",
           "SyntaxError", "':'", quotes=True),
    plugin("import of a package that is not there", "import nothere_at_all\n" + HEAD, "mine.py, line 1",
           "No module named 'nothere_at_all'", "install it"),
    plugin("import of a name that is not there", HEAD.replace("BOX_HEADS", "BOXHEADS"), "mine.py, line 2",
           "cannot import name 'BOXHEADS'", "did you mean 'BOX_HEADS'?", quotes=True),
    plugin("registers nothing", HEAD.replace("@BOX_HEADS.register\n", ""), "TYPE", "no box_head named 'MyHead'",
           ("registers nothing", "@")),
    plugin("registered in another family", HEAD.replace("BOX_HEADS", "INSTANCE_HEADS"), "TYPE",
           "no box_head named 'MyHead'", "'MyHead' is an instance_head"),
    plugin("is not listed", None, "TYPE", "no box_head named 'MyHead'", "listed under 'plugins:'", listed=""),
    plugin("hides its arguments in **kwargs", HEAD.replace("*, channels: int = 8", "**kwargs"), "mine.py, line 5",
           ("box_head 'MyHead'", "**kwargs"), "name every argument"),
    plugin("has the name of a built-in", HEAD.replace("MyHead", "TwoFCBoxHead"), "mine.py, line 5",
           "'TwoFCBoxHead' is already registered by toolbox.models.heads.box", "rename the class"),
    plugin("lacks a wired argument", HEAD.replace("in_shape, num_classes", "in_channels, num_classes"),
           "mine.py, line 5", "lacks in_shape", "(in_shape, num_classes)"),
    plugin("lacks a method", HEAD.replace("def forward", "def forwards"), "TYPE", "MyHead has no method 'forward'",
           "toolbox/models/interfaces.py"),
    plugin("sets no out_features", NECK, "run.yaml:4:9: ", "MyNeck sets no 'out_features'",
           "toolbox/models/interfaces.py", use=("{type: FPN, out_channels: 8}", "{type: ^MyNeck}")),
    plugin("misspelt argument of its own", HEAD, "run.yaml:11:26: ", "MyHead has no argument 'chanels'",
           "did you mean 'channels'?", use=(USED, "{type: MyHead, ^chanels: 16}")),
    plugin("raises while it is imported", HEAD + "\n1 / 0\n", "mine.py, line 13", "ZeroDivisionError", "mine.py"),
    plugin("is a compressed file", b"PK\x03\x04\x00\x00", "mine.py", "null bytes", "Python", quotes=True),
)  # fmt: skip
