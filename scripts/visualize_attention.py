"""`timesformer visualize` of a checkout; see hf_timesformer/cli/visualize.py."""

from hf_timesformer.cli.visualize import main


if __name__ == "__main__":
    main()
