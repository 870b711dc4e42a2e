"""`timesformer convert` of a checkout; see hf_timesformer/cli/convert.py."""

from hf_timesformer.cli.convert import main


if __name__ == "__main__":
    main()
