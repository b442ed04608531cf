"""Tables and figures of finished runs: python scripts/report.py --help"""

from vld.commands.main import report

if __name__ == "__main__":
    report()
