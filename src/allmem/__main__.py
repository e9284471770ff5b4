"""``python -m allmem``, and ``torchrun ... -m allmem`` for several processes."""

from allmem.cli.main import main

if __name__ == "__main__":
    main()
