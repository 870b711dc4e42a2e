"""`timesformer export` of a checkout; see hf_timesformer/cli/export.py."""

from hf_timesformer.cli.export import main


if __name__ == "__main__":
    main()
