"""`timesformer prepare` of a checkout; see hf_timesformer/cli/prepare.py."""

from hf_timesformer.cli.prepare import main


if __name__ == "__main__":
    main()
