"""Fieldmark: a few labeled photos and many unlabeled ones into a fine-grained image classifier."""
