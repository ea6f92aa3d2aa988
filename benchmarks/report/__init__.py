"""The page `docs/speed.md` and the figures of `README.md`, written from the files in `benchmarks/results/`."""
