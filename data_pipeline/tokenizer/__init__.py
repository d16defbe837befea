"""Trains, measures and loads the tokenizer of a model; its fingerprint holds from corpus to chat."""
