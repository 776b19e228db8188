"""RASP: programs over sequences, a compiler that writes them down as transformer weights, and the task made of them."""
