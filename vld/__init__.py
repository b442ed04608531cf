"""Fine-tuning with very large dropout on the DomainBed image datasets (Zhang & Bottou, arXiv 2403.00946)."""

__version__ = "0.1.0"

# Raised whenever a change of the code changes the numbers of a run, so that results of different code never share a run id.
PROTOCOL_VERSION = 2
