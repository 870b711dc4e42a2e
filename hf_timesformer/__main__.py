"""`python -m hf_timesformer COMMAND ...`: the same as `timesformer COMMAND ...`."""

from .cli.__main__ import main


if __name__ == "__main__":
    main()
