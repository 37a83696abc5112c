"""Dynamic resolution on images with detail at several scales, built from photographs.

An image [1, 64, 64] is a product photograph of Fashion-MNIST (28 x 28 pixels), pasted at a side of 14 to 56
pixels (log-uniform) and a random place onto a crop of a landscape or a flower (scikit-learn's two sample
photographs, in gray). What it shows is the product's class. At 32 pixels a product of 56 keeps all the detail
that its photograph ever had, one of 14 is 7 pixels wide: so the smallest sufficient size differs by image.

Products of Fashion-MNIST's test set are for the test alone; training, validation and test take their
backgrounds from different parts of the photographs.
"""
