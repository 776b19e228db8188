"""Applications on top of the workbench: the dashboard, notebooks."""
