"""What the methods along a run cost on this machine: python scripts/benchmark.py dataset=glyphs optim.steps=50 ..."""

from vld.commands.main import benchmark

if __name__ == "__main__":
    benchmark()
