"""Conditions compared: each method's figures, their difference to the plain model, and possible confounds."""
