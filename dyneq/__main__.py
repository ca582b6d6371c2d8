"""``python -m dyneq`` is the ``dyneq`` command."""

from dyneq.cli.main import main

if __name__ == "__main__":
    main()
