"""What a model is apart from its numbers: its modes, its random numbers, its modules; changed so that it can
be put back.
"""
