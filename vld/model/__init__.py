"""The network: backbone and its weights, dropout, the last layer, equation 1.

Imports from `data` and below.
"""
