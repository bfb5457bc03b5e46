"""Other programs that read exported models, each in a separate environment."""
