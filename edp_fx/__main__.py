"""``python -m edp_fx``, and so ``accelerate launch -m edp_fx``: the same as ``edp-fx``."""

from edp_fx.cli import main

if __name__ == "__main__":
    main()
