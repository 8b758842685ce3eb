"""`python -m trainable.data.synthetic`."""

from trainable.data.synthetic import main

if __name__ == "__main__":
    raise SystemExit(main())
