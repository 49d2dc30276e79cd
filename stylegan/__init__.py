"""The StyleGAN family in plain torch: networks, losses, schedule, draws, training step, metrics."""
