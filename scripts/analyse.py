"""How rich the representation of finished runs is: python scripts/analyse.py --help"""

from vld.commands.main import analyse

if __name__ == "__main__":
    analyse()
