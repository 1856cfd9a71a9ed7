"""Renders a dataset card as one self-contained HTML page. Does no input or output."""

import io
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retro_ops.plan.parameters import PARAMETERS
from retro_ops.sizes import in_words

HEIGHT = 2.6
"""Inches."""

GREEN, BLUE = "#2a9d8f", "#264f8c"

_STYLE: Any = {
    "svg.hashsalt": "retro-ops",  # Fixed, so that the same figures give the same bytes.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def html(card: Mapping[str, Any]) -> str:
    """The page for the figures ``card`` (see ``card_figures.card``)."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("retro_ops.quality", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": _size, "share": _share, "short": lambda digest: digest[:12]}
    return environment.get_template("card.html.j2").render(card=card, plots=_plots(card), unset=_unset())


def _unset() -> dict[str, str]:
    """The meaning of a parameter without a value, by name."""
    return {name: parameter.unset.replace("`", "") for name, parameter in PARAMETERS.items()}


def _plots(card: Mapping[str, Any]) -> dict[str, list[Markup]]:
    plots: dict[str, list[Markup]] = {}
    for split, figures in card["quality"].items():
        target = card["parameters"]["target_recall"] if card["parameters"]["profile"] != "seed" else None
        plots[split] = [
            _svg(
                partial(_recall, figures=figures, target=target),
                f"Recall (target {target})" if target else "Recall",
                names=figures["categories"],
            ),
            _svg(partial(_distances, histogram=figures["distances"]), "Squared distance of neighbours"),
            _svg(partial(_runs, histogram=figures["longest_shared_run"]), "Longest shared run"),
        ]
        if figures["index"]["lists"] > 1:
            plots[split].append(_svg(partial(_lists, index=figures["index"]), "Sizes of the inverted lists"))
    stages = card["stages"]
    plots["stages"] = [
        _svg(partial(_stages, stages=stages), "Time per stage", 7.2, [stage["stage"] for stage in stages])
    ]
    return plots


def _svg(draw: Callable[[Axes], None], title: str, width: float = 3.6, names: Iterable[str] = ()) -> Markup:
    """A plot as SVG. ``names``: labels of its bars, for which the left margin makes room.

    Margins are fixed, since finding them by drawing first takes twice the time.
    """
    left = 0.65 + 0.065 * max(0, max(map(len, names), default=0) - 8)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, HEIGHT))
        figure.subplots_adjust(left=left / width, right=1 - 0.15 / width, bottom=0.48 / HEIGHT, top=1 - 0.3 / HEIGHT)
        axes = figure.subplots()
        axes.set_title(title, loc="left", fontweight="bold")
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # Drop the XML declaration, which is not valid inside HTML.
    return Markup(out.getvalue()[out.getvalue().index("<svg") :])  # noqa: S704  (matplotlib escapes what it draws)


def _recall(axes: Axes, figures: Mapping[str, Any], target: float | None) -> None:
    names = list(figures["categories"])
    recalls = [figures["categories"][name]["recall"] for name in names]
    bounds = [figures["categories"][name]["recall_lower_bound"] for name in names]
    axes.barh(
        names, recalls, color=GREEN, xerr=[[r - b for r, b in zip(recalls, bounds, strict=True)], [0] * len(names)]
    )
    if target is not None:
        axes.axvline(target, color=BLUE, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the true neighbours found")


def _distances(axes: Axes, histogram: Mapping[str, Any]) -> None:
    axes.stairs(histogram["nearest"], histogram["bins"], fill=True, color=GREEN, alpha=0.6, label="nearest")
    axes.stairs(histogram["last"], histogram["bins"], color=BLUE, label="farthest")
    axes.set_xlabel("squared L2 distance")
    axes.set_ylabel("rows")
    axes.legend(frameon=False)


def _runs(axes: Axes, histogram: Mapping[str, Any]) -> None:
    axes.stairs(histogram["rows"], histogram["bins"], fill=True, color=GREEN)
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("share of the chunk (longest run of its neighbours)")
    axes.set_ylabel("sampled rows")


def _lists(axes: Axes, index: Mapping[str, Any]) -> None:
    axes.stairs(index["list_sizes"]["lists"], index["list_sizes"]["bins"], fill=True, color=GREEN)
    axes.set_xlabel("vectors in the list")
    axes.set_ylabel("lists")


def _stages(axes: Axes, stages: list[Mapping[str, Any]]) -> None:
    names = [stage["stage"] for stage in stages][::-1]
    axes.barh(names, [stage["seconds"] for stage in stages][::-1], color=GREEN, label="measured")
    expected = [
        (stage["stage"], stage["expected_seconds"]) for stage in stages if stage["expected_seconds"] is not None
    ]
    if expected:
        axes.plot([e[1] for e in expected], [e[0] for e in expected], "D", color=BLUE, label="estimated by the plan")
        axes.legend(frameon=False)
    axes.set_xlabel("seconds, summed over tasks")


def _size(count: float | None) -> str:
    return "–" if count is None else in_words(count)  # noqa: RUF001


def _share(value: float) -> str:
    return f"{value:.2%}"
