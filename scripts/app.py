"""`timesformer app` of a checkout; see hf_timesformer/cli/app.py."""

from hf_timesformer.cli.app import main


if __name__ == "__main__":
    main()
