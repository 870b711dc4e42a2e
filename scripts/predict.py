"""`timesformer predict` of a checkout; see hf_timesformer/cli/predict.py."""

from hf_timesformer.cli.predict import main


if __name__ == "__main__":
    main()
