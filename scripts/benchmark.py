"""What training costs on this machine: python scripts/benchmark.py --help"""

from vld.commands.main import benchmark

if __name__ == "__main__":
    benchmark()
