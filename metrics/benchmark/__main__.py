"""python -m retribooru.metrics.benchmark, or accelerate launch -m retribooru.metrics.benchmark."""

from .run import main

if __name__ == "__main__":
    main()
