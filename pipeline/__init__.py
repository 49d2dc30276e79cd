"""Training, evaluation, tracking and registry around `stylegan`."""
