"""Reports of a run: history, log files, TensorBoard and the progress bar."""
