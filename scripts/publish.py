"""Copy finished runs to Weights & Biases: python scripts/publish.py --help"""

from vld.cli import publish

if __name__ == "__main__":
    publish()
