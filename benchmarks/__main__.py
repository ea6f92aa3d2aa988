"""Run the measurements, print their tables, keep them in `benchmarks/results/`, and write a page about them."""

import argparse
import json
from pathlib import Path

import jax

from . import (
    allocator,
    convolutions,
    derivatives,
    eager,
    forms,
    gpu,
    importing,
    peers,
    pools,
    scaling,
    streams,
    training,
    zoo,
)
from .about import about, place
from .report import page
from .tables import show

RESULTS = Path(__file__).parent / "results"
SUITES = {
    "convolutions": convolutions.results,
    "forms": forms.results,
    "pools": pools.results,
    "networks": peers.results,
    "derivatives": derivatives.results,
    "eager": eager.results,
    "importing": importing.results,
    "scaling": scaling.results,
    "training": training.results,
    "streams": streams.results,
    "zoo": zoo.results,
    "allocator": allocator.results,
}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument("--gpu", action="store_true", help="what a GPU shows in eight minutes, instead of the suites")
    parser.add_argument("--any-device", action="store_true", help="with --gpu: go on without a GPU, to test the script")
    parser.add_argument(
        "--seconds", type=float, default=gpu.SECONDS, help="with --gpu: how long (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, smaller arrays; keeps nothing")
    parser.add_argument(
        "--report",
        action="store_true",
        help="measure nothing; write docs/speed.md and figures of README.md and docs/zoo.md",
    )
    options = parser.parse_args()
    unknown = set(options.suites) - set(SUITES)
    if unknown:
        parser.error(f"there is no suite {', '.join(sorted(unknown))}, but {', '.join(SUITES)}")
    if options.report:
        page.write()
        return
    device = jax.devices(None if options.any_device or not options.gpu else "gpu")[0]
    RESULTS.mkdir(exist_ok=True)
    if options.gpu:
        kind = "quick" if options.quick else device.device_kind.lower().replace(" ", "-")
        path = RESULTS / f"gpu-{kind}-jax{jax.__version__}.json"
        gpu.run(path, seconds=options.seconds, quick=options.quick)
        if options.quick:
            path.unlink()
        return
    with jax.default_device(device):
        for suite in options.suites or SUITES:
            tables = SUITES[suite](quick=options.quick)
            for title, table in tables.items():
                show(title, table)
            if options.quick:
                continue
            path = RESULTS / f"{suite}-{place(device)}-jax{jax.__version__}.json"
            path.write_text(json.dumps(about(device) | {"tables": tables}, indent=1) + "\n")
            print(f"\nwrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
