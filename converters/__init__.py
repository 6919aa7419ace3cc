"""Weights in, pruned weights out. Importing this imports nothing else and changes nothing."""
