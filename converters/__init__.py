"""Weights in, pruned weights out. Importing this imports nothing else; `import yopo` is its public face."""
