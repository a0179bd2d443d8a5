"""The paper's tables for any pipeline: characters x prompts x seeds x images, drawn, scored and reported.

`retribooru benchmark --methods methods.yaml --output_dir runs/benchmark`; :mod:`.arguments` names all flags and
:mod:`.families` says what methods.yaml holds.
"""
