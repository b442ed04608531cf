"""Copy finished runs to Weights & Biases: python scripts/publish.py --help"""

from vld.commands.main import publish

if __name__ == "__main__":
    publish()
