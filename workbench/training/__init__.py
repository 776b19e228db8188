"""Training: one loop; pretraining, fine-tuning and reverse fine-tuning are settings of it."""
