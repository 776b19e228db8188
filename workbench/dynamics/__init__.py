"""Training as a dynamical system: labs that rerun what papers on optimizers show, each with the control it needs."""
