"""`Trainer` for clips: arguments, the run, where it starts from, the classifier's fit, checkpoints,
recipes.
"""
