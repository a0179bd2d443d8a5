"""How close a generated image is to its references and to its prompt.

:mod:`retribooru.metrics.functional` holds the computation (``clip_i``, ``clip_t`` and the embeddings under them),
:mod:`retribooru.metrics.clip_i` the same as a module of ``evaluate``, :mod:`retribooru.metrics.register` what makes
``evaluate.load("clip_i")`` find it. Nothing is imported here, so that ``import retribooru`` needs no torch.
"""
