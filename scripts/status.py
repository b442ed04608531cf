"""The progress of a study or a sweep: python scripts/status.py --help"""

from vld.commands.main import status

if __name__ == "__main__":
    status()
