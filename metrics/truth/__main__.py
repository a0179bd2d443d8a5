"""python -m retribooru.metrics.truth: :mod:`.arguments` names all flags."""

from .run import main

if __name__ == "__main__":
    main()
