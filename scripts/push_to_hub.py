"""`timesformer publish` of a checkout; see hf_timesformer/cli/publish.py."""

from hf_timesformer.cli.publish import main


if __name__ == "__main__":
    main()
