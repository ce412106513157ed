"""Write the page: the templates beside this file, filled in."""

import json
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from journey.report.page import sprites

TEMPLATES = Path(__file__).parent
PAGE = "index.html"


@dataclass(frozen=True)
class Picture:
    """A figure of the report. title: what stands over it, which says what it shows to those who do not see it."""

    path: Path
    title: str

    @property
    def uri(self) -> str:
        return sprites.uri(self.path.read_bytes(), "image/png")


def html(title: str, about: str, contents: dict, pictures: list[Picture]) -> str:
    """The whole page. contents: what its script reads, as `journey.report.page.travel` has it."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    style, script = (Markup((TEMPLATES / name).read_text()) for name in ("page.css", "page.js"))
    page = environment.get_template("index.html.jinja")
    data = Markup(json.dumps(contents, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))  # ends no script
    return page.render(title=title, about=about, data=data, style=style, script=script, pictures=pictures)
