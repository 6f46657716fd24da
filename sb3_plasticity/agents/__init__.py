"""What an algorithm is to an instrument or a mitigation: its networks, optimizers, losses, outputs and samples."""
