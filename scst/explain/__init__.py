"""Where a caption rests in its image: attributions of words to regions, and how far to trust them.

subject.py     what is explained: log probabilities of a caption's words as a function of the image
segments.py    an image cut into segments, and images with some of them hidden
gradients.py   Integrated Gradients, Grad-CAM
attention.py   attention rollout
shapley.py     Shapley values of segments
faithfulness.py   deletion and insertion curves
explain.py     all of it for one model and one image
overlay.py page.py   PNG overlays, the HTML page
"""
