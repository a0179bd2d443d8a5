"""How close generated images are to their references and to their prompts, how varied they are, and what leaks.

:mod:`retribooru.metrics.functional` holds the computation (``clip_i``, ``clip_t``, ``vqa_diversity``, ``swd``,
``leakage``), the folders of these names the same as modules of ``evaluate``, :mod:`retribooru.metrics.register` what
makes ``evaluate.load("clip_i")`` find them. :mod:`retribooru.metrics.benchmark` makes the paper's tables,
:mod:`retribooru.metrics.truth` reads off pictures of the mini edition what they were to show. Nothing is imported here,
so that ``import retribooru`` needs no torch.
"""
