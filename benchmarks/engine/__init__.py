"""Generation of a sweep against what people do today: what is run, measured and compared by `generation.py`."""
