"""argv, schedulers and processes: the only package that knows where a run happens."""
