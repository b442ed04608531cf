"""Make a dataset ready to train on: python scripts/prepare.py --help"""

from vld.commands.main import prepare

if __name__ == "__main__":
    prepare()
