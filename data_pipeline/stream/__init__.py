"""Shards -> rows -> one global order -> batches. The state is one integer; any rank count sees the same rows."""
