"""One module a stage: (model, batch) -> (sum of losses, number of targets, metrics)."""
