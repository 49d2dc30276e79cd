"""One file per paper, generator and discriminator together."""
