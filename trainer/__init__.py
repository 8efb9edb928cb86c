"""Training: data, losses, encoder, export, calibration, evaluation. Needs the train extra."""
