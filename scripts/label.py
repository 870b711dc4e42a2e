"""`timesformer label` of a checkout; see hf_timesformer/cli/label.py."""

from hf_timesformer.cli.label import main


if __name__ == "__main__":
    main()
