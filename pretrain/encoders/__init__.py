"""Uni-modal encoders: a batch's field in, ragged tokens out."""
