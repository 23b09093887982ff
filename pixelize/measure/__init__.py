"""The artifact as a number: checkerboard power, spectra, natural levels, notches, responses of phases."""
