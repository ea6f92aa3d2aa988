"""A picture of a result of the suite `networks`: how many times as long as funcconv other libraries take."""

import json
from pathlib import Path
from typing import Any

COLORS = {"flax": "#4c78a8", "equinox": "#eeca3b", "torch": "#e45756"}
TITLES = {"training step": "training step", "inference": "inference", "HVP": "Hessian-vector product"}


def libraries(result: dict[str, Any]) -> list[str]:
    """Return the libraries that the picture shows: those that a result has for every network and task."""
    rows = [row for task in TITLES for row in result["tables"].get(task, {}).values()]
    return [library for library in COLORS if rows and all(library in row for row in rows)]


def shown(result: dict[str, Any]) -> str:
    """Return the ratios that the picture shows. The file has this text, so that a test can compare it."""
    tables = result["tables"]
    return json.dumps(
        {
            task: {
                name: [round(row[library], 3) for library in libraries(result)] for name, row in tables[task].items()
            }
            for task in TITLES
            if task in tables
        }
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw a panel for each task; bars to the right of one are slower than funcconv."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    tasks = {task: title for task, title in TITLES.items() if task in result["tables"]}
    figure, panels = plt.subplots(1, len(tasks), figsize=(10, 3.6), sharey=True, layout="constrained", squeeze=False)
    names = libraries(result)
    height = 0.8 / max(len(names), 1)
    for panel, (task, title) in zip(panels[0], tasks.items(), strict=True):
        table = result["tables"][task]
        for i, library in enumerate(names):
            places = [row + (i - (len(names) - 1) / 2) * height for row in range(len(table))]
            lengths = [row[library] - 1 for row in table.values()]
            panel.barh(places, lengths, 0.93 * height, left=1, color=COLORS[library], label=library)
        panel.axvline(1, color="black", linewidth=1)
        panel.set(xscale="log", title=title, yticks=range(len(table)), yticklabels=list(table))
        panel.set_xticks(ticks := (0.3, 1, 3, 10, 30), [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    device = result["device"].upper() if result["device"] == "cpu" else result["device"]
    measure = "time divided by funcconv's time: bars to the right of 1 are slower than funcconv"
    figure.supxlabel(f"{measure} ({device}, jax {result['jax']})", fontsize=10)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=80, metadata={"Description": shown(result)})
    plt.close(figure)
