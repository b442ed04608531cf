"""Combine finished runs into a soup or an ensemble: python scripts/combine.py --help"""

from vld.commands.main import combine

if __name__ == "__main__":
    combine()
