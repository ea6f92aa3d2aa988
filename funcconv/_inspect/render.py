"""Drawings, rendered by the program of Graphviz."""

import io
import shutil
import subprocess
import sysconfig
from pathlib import Path

from .._common.errors import FuncconvError
from .._common.files import write_file
from .._common.optional_packages import needs
from .._common.paths import checked_path

FORMATS = ("svg", "png", "pdf", "dot")
_MOST_SHARP_ARROWS = 200  # beyond which a sharp bitmap is larger than a screen
_PROGRAMS = ("dot", "graphviz-pure")  # Graphviz itself, and its port that comes as a wheel


class Drawing:
    """A drawing in the DOT language, which shows itself in a notebook.

    Attributes:
        dot: its text.
    """

    def __init__(self, dot: str) -> None:
        self.dot = dot

    def save(self, path: str | Path) -> None:
        """Write it to a file, as SVG, PNG, PDF or DOT by the ending of its name.

        Args:
            path: of the file, in a folder that exists. If writing fails, a file that was there before stays as it was.

        Raises:
            FuncconvError: if the ending is another, there is no program to draw a picture, or the file cannot be
                written.
        """
        ending = checked_path("draw", path, wants="file").suffix.removeprefix(".").lower()
        if ending not in FORMATS:
            msg = f"draw: a drawing is written to a file that ends in .{', .'.join(FORMATS)}; got {str(path)!r}"
            raise FuncconvError(msg)
        content = self.dot.encode() if ending == "dot" else self.rendered(ending)
        write_file("draw", path, content)

    def rendered(self, format: str) -> bytes:
        """Return the picture in a format: `"svg"`, `"png"` or `"pdf"`.

        Raises:
            FuncconvError: if there is no program to draw it, or it fails.
        """
        program = _program()
        if format == "pdf" and program.stem != "dot":
            return _pdf(self.rendered("png"), self._dots)
        done = subprocess.run(
            [program, f"-T{format}", *([f"-Gdpi={self._dots}"] if format == "png" else [])],
            input=self.dot.encode(),
            capture_output=True,
            check=False,
        )
        if done.returncode or not done.stdout:
            msg = (
                f"draw: {program} failed: {done.stderr.decode(errors='replace').strip()}. "
                "Draw a part of the graph, or write a .dot file"
            )
            raise FuncconvError(msg)
        return done.stdout

    @property
    def _dots(self) -> int:
        """Dots of a bitmap to an inch."""
        return 144 if self.dot.count(" -> ") < _MOST_SHARP_ARROWS else 60

    def _repr_svg_(self) -> str | None:
        """Return the picture for a notebook, None where no program draws it."""
        try:
            return self.rendered("svg").decode()
        except FuncconvError:
            return None

    def __repr__(self) -> str:
        return f"<Drawing of {self.dot.count(chr(10))} lines of DOT>"


def _program() -> Path:
    """Return the path of a program that draws."""
    for name in _PROGRAMS:
        # In an environment that is not activated, its programs are not on PATH but beside its Python.
        path = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
        if path:
            return Path(path)
    msg = (
        "draw: no program is installed that can draw it. In the checkout: pip install '.[draw]'. "
        "Or install Graphviz (https://graphviz.org)"
    )
    raise FuncconvError(msg)


def _pdf(png: bytes, dots: int) -> bytes:
    """Return a page with a bitmap on it, for a program that has no PDF."""
    with needs("draw", "draw: a PDF without the program dot of Graphviz"):
        from matplotlib.figure import Figure
        from matplotlib.image import imread
    bitmap, page = imread(io.BytesIO(png)), io.BytesIO()
    height, width = bitmap.shape[:2]
    figure = Figure(figsize=(width / dots, height / dots), dpi=dots)
    figure.figimage(bitmap)
    figure.savefig(page, format="pdf", dpi=dots)
    return page.getvalue()
