"""The paper, redone: its figures and tables over grid studies, and its claims held against what was measured [Jain+23]."""
