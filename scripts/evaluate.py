"""`timesformer evaluate` of a checkout; see hf_timesformer/cli/evaluate.py."""

from hf_timesformer.cli.evaluate import main


if __name__ == "__main__":
    main()
