"""Exported graphs: a converted model (or a dense one) for runtimes without PyTorch."""
