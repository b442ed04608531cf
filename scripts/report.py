"""Tables and figures of what runs have left: python scripts/report.py --help"""

from vld.commands.main import report

if __name__ == "__main__":
    report()
