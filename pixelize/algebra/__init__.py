"""The mathematics, on tensors and plain numbers: polyphase form, schedules of stages, least squares,
interpolation.
"""
