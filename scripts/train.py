"""`timesformer train` of a checkout; see hf_timesformer/cli/train.py."""

from hf_timesformer.cli.train import main


if __name__ == "__main__":
    main()
