"""``python -m recover``."""

from recover.cli import main_of_process

if __name__ == "__main__":
    main_of_process()
