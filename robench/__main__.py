"""``python -m robench``: the command line."""

from robench.cli.main import main

if __name__ == "__main__":
    main()
