"""Which parts of an image a caption rests on: attributions of words to regions, and how far to trust them.

What does not belong here: captioning (``scst.evaluation``) and loading models; a caption and a model are
handed in. The room needs captum and scikit-image (``pip install 'scst[explain]'``); nothing outside of it may
import it but ``scst.config.build_explain``.

attribution_target.py   the log probabilities of a caption's words as a function of the image
segments.py             an image cut into segments, and images with some of them hidden
gradients.py            Integrated Gradients, Grad-CAM
attention.py            attention rollout
shapley.py              Shapley values of segments
faithfulness.py         deletion and insertion curves
explanation.py          all of it for one caption: ``explain_caption``
overlay.py              PNG overlays
explanation_page.py     the HTML page
explanation_files.py    everything as files: ``write_explanations``
"""
