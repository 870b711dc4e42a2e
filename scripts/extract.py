"""`timesformer extract` of a checkout; see hf_timesformer/cli/extract.py."""

from hf_timesformer.cli.extract import main


if __name__ == "__main__":
    main()
