"""How far a study or a sweep is: python scripts/status.py --help"""

from vld.cli import status

if __name__ == "__main__":
    status()
