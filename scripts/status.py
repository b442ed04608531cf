"""How far a study or a sweep is: python scripts/status.py --help"""

from vld.commands.main import status

if __name__ == "__main__":
    status()
