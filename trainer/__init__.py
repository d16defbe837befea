"""Rows -> a model: one loop for every stage. Imports data_pipeline, never launch."""
