"""TimeSformer, complete and at home in Hugging Face Transformers."""
