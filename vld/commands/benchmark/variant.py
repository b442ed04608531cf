"""A variant of a benchmark, its steps alone: python -m vld.commands.benchmark.variant tried|first OPTION...

tried, first: whether cuDNN tries its algorithms for a convolution, as training has it, or takes the first that it proposes.
"""

import sys

from vld.commands.benchmark import measure
from vld.commands.main import benchmark

measure.STEPS_ONLY = True
measure.ALGORITHMS_TRIED = sys.argv.pop(1) == "tried"
benchmark()
