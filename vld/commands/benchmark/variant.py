"""A variant of a benchmark, with what others have compiled: python -m vld.commands.benchmark.variant all|steps|untried OPTION...

all: the whole benchmark. steps: the steps alone. untried: these where cuDNN takes the first algorithm that it proposes for a
convolution; else it tries them, as in training.
"""

import sys

from vld.commands.benchmark import measure
from vld.commands.main import benchmark

what = sys.argv.pop(1)
measure.OWN_PROGRAMS = False
measure.STEPS_ONLY, measure.ALGORITHMS_TRIED = what != "all", what != "untried"
benchmark()
