"""Tables and figures of what runs have left: python scripts/report.py --help"""

from vld.cli import report

if __name__ == "__main__":
    report()
