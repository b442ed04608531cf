"""Fine-tune with each domain left out in turn: python scripts/train.py --help"""

from vld.commands.main import train

if __name__ == "__main__":
    train()
