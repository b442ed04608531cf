"""The network: backbone and its weights, the paper's dropout and the last layer (`classifier`), dropout elsewhere (`dropout`),
equation 1 (`linear`).

Imports from `data` and below.
"""
