"""Records -> ids -> Arrow shards, with a manifest written last."""
