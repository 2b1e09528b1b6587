"""`python -m stir_train`."""

from stir_train.cli import main

if __name__ == "__main__":
    main()
