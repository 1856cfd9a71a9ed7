"""Templates -> pages with their headers."""

from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse

from retro_airflow.pages import format as shown_as
from retro_airflow.pages import security
from retro_ops.plan.paths import root_key

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: security.shown(value) if type(value) is str else value,  # Not the output of a macro.
)
_templates.filters |= {
    name: getattr(shown_as, name) for name in ("number", "share", "size", "seconds", "age", "day", "line")
}
for _name in _templates.list_templates():
    _templates.get_template(_name)  # Compiled when the API server starts, not during a request.


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """The page that ``template`` makes of ``values``, which name a ``place`` or a ``build`` if it is of a dataset."""
    base = request.scope["root_path"]
    place = values.get("place") or (values["build"].place if "build" in values else None)
    here = f"{base}/{root_key(place.root)}/{place.dataset}" if place else base
    values |= {"base": base, "airflow": base.removesuffix("/retro"), "place": place, "here": here}
    text = _templates.get_template(template).render(values)
    return HTMLResponse(text, status, headers=dict(security.HEADERS))
