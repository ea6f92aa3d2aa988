"""Parts of a model, from a checkpoint of another one."""
