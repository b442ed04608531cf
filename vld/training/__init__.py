"""The training loop, the methods along a run, evaluation, which step is selected, and the arithmetic of soups.

Knows no Hydra, no W&B, no terminal and no files; imports from `model` and below.
"""
