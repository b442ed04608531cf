"""The training loop, the methods, evaluation, soups, and the paper's formulas.

Knows no Hydra, no W&B, no terminal and no files; imports from `model` and below.
"""
