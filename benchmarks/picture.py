"""A picture of a result of the suite `networks`: how many times longer than funcconv each library takes."""

from pathlib import Path
from typing import Any

COLOURS = {"lax": "#9aa5b1", "flax": "#4c78a8", "haiku": "#72b7b2", "equinox": "#eeca3b", "torch": "#e45756"}
TASKS = ("training step", "inference", "HVP")


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw a panel for each task; bars to the right of one are slower than funcconv."""
    import matplotlib.pyplot as plt

    tables = result["tables"]
    figure, panels = plt.subplots(1, len(TASKS), figsize=(11, 4.6), sharey=True, layout="constrained")
    for panel, task in zip(panels, TASKS, strict=True):
        names = list(tables[task])
        libraries = [library for library in COLOURS if library in tables[task][names[0]]]
        height = 0.8 / len(libraries)
        for i, library in enumerate(libraries):
            places = [row + (i - (len(libraries) - 1) / 2) * height for row in range(len(names))]
            panel.barh(
                places,
                [tables[task][name][library] - 1 for name in names],
                height,
                left=1,
                color=COLOURS[library],
                label=library,
            )
        panel.set(xscale="log", title=task, xlabel="times as long as funcconv", yticks=range(len(names)))
        panel.set_yticklabels(names)
        panel.axvline(1, color="black", linewidth=1)
        ticks = (0.3, 1, 3, 10, 30)
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.suptitle(f"float32, {result['device']} of {result['machine']}, jax {result['jax']}", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
